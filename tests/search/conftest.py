"""A tiny CLIP, shards with some faults, and an index of them, made once."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.tiny_shards import write_tar
from tests.interop import folders
from xmodal.__main__ import main

SAMPLES, BAD = 40, (7, 23)  # numbers of samples whose image cannot be decoded
GOOD = [i for i in range(SAMPLES) if i not in BAD]


def picture(i, size=(60, 44)):
    """A picture that no other number gives."""
    coarse = np.random.default_rng(i).integers(0, 256, (3, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def caption(i):
    return f"w{8 + i} w{50 + i % 7}"


def embed(*arguments):
    """Runs `python -m xmodal embed`; small batches, so that one program is compiled."""
    assert main(["embed", *map(str, arguments), "--batch-size", "8"]) == 0


def contents(folder):
    """{name: bytes} of an index, but for the manifest, which holds paths."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return folders.hugging_face(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def made_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    samples = {f"{i:03d}": dict(png=picture(i), txt=caption(i).encode()) for i in range(SAMPLES)}
    for i in BAD:
        samples[f"{i:03d}"]["png"] = picture(i)[:200]
    first = list(samples)[:25]
    write_tar(folder / "a.tar", {key: samples[key] for key in first})
    write_tar(
        folder / "b.tar", {key: samples[key] for key in samples if key not in first} | {"x": dict(png=picture(99))}
    )
    return str(folder / "*.tar")


@pytest.fixture(scope="session")
def made_index(model_folder, made_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "pictures"
    embed(made_shards, "--model", f"hf:{model_folder}", "--out", folder, "--part-samples", 9, "--thumbnails", 32)
    return folder


@pytest.fixture
def index_copy(made_index, tmp_path):
    """The index, to be damaged."""
    return shutil.copytree(made_index, tmp_path / "pictures")
