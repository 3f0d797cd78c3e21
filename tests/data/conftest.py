"""Three small shards, a tokenizer, and a config that reads them."""

from pathlib import Path

import pytest
from tiny_inputs import data_section
from tiny_shards import FORMATS, sample, write_tar

from data_pipelines.text.tokenizers import train_bpe


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A folder of three shards with 211 samples in all, in three image formats."""
    folder = tmp_path_factory.mktemp("shards")
    bounds = (0, 90, 150, 211)
    for shard, extension in enumerate(FORMATS):
        numbers = range(bounds[shard], bounds[shard + 1])
        write_tar(folder / f"s-{shard:02d}.tar", {f"{i:05d}": sample(i, extension) for i in numbers})
    return folder


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe([f"thing {i}" for i in range(300)], 400).json)
    return path


@pytest.fixture
def config(shards, tokenizer_file):
    """The `data` section of a config that reads the three shards."""
    data = data_section()
    data.sources.main = dict(urls=str(shards / "s-{00..02}.tar"))
    data.inputs.image.size, data.inputs.image.scale = 16, (0.5, 1.0)
    data.inputs.text.tokenizer, data.inputs.text.length = str(tokenizer_file), 16
    data.lanes, data.window, data.threads, data.prefetch = 8, 4, 2, 2
    return data
