"""A modality of a project: one class and one line, and the stream, runs and evaluations take it as they are."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import xmodal
from data_pipelines import modalities
from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import train_bpe
from tests import tiny_runs
from tests.data.tiny_shards import write_tar
from xmodal.config import load_config
from xmodal.models import presets

DOC = (Path(__file__).resolve().parents[1] / "docs" / "own_project.md").read_text(encoding="utf-8")
SAMPLES, LENGTH = 48, 6
IMPORTS = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_pipelines.modalities import MODALITIES
from data_pipelines.modalities.base import ArraySpec, Fact, Modality, NoPart, Part, shown
from data_pipelines.text.fields import lookup
"""


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    """Registers the modality that the document shows."""
    (code,) = re.findall(r"^```python\n(@dataclass\(frozen=True\)\nclass Digits.*?)^```$", DOC, re.M | re.S)
    monkeypatch.setattr(modalities, "MODALITIES", dict(modalities.MODALITIES))
    exec(compile(IMPORTS + code, "digits", "exec"), dict(__name__="digits"))
    return modalities.MODALITIES["digits"]


def numbers(i: int) -> list[int]:
    return [(i // 10**k + k) % 10 for k in range(LENGTH)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards whose samples have numbers and a text; every sixth has no numbers."""
    folder = tmp_path_factory.mktemp("digits")
    fields = lambda i: dict(number=i) if i % 6 == 5 else dict(number=i, digits=numbers(i))
    members = lambda i: dict(txt=f"thing {i}".encode(), json=json.dumps(fields(i)).encode())
    write_tar(folder / "d.tar", {f"{i:03d}": members(i) for i in range(SAMPLES)})
    (folder / "tokenizer.json").write_text(train_bpe([f"thing {i}" for i in range(SAMPLES)], 320).json)
    return folder


@pytest.fixture
def config(data) -> ConfigDict:
    c = load_config(str(tiny_runs.RECIPE))
    text = dict(type="text", tokenizer=str(data / "tokenizer.json"), length=8)
    c.data.inputs = dict(numbers=dict(type="digits", field="digits"), text=text)
    c.data.sources = dict(main=dict(urls=str(data / "d.tar")))
    tower = lambda **embed: presets.text_tower(32, 1, 2, embed_dim=32, scan=False, embed=embed)
    c.model = presets.dual_tower(numbers=tower(input="numbers", mask_padding=False), text=tower())
    c.objectives = dict(contrastive=dict(type="softmax", between=("numbers", "text"), weight=1.0))
    entry = dict(type="retrieval", between=("numbers", "text"), every="100%", batch_size=24, examples=0)
    c.evals = dict(held_out=entry | dict(urls=str(data / "d.tar")))
    c.batch_size, c.schedule.total = 8, "2steps"
    return c


def take(config, count=1, **options):
    with open_stream(config.data, batch_size=8, seed=3, **options) as stream:
        return [next(stream) for _ in range(count)], stream.summary()


def test_it_streams_and_its_chance_is_its_own(config):
    (first, second), summary = take(config, 2)
    assert summary["skipped"] == {"no digits": 8} and summary["samples"] == 40
    assert first["numbers"].shape == (8, LENGTH) and first["numbers"].dtype == np.int32
    (again,), _ = take(config, 1, position=8)
    np.testing.assert_array_equal(again["numbers"], second["numbers"])
    del config.data.inputs.numbers
    (alone,), _ = take(config, 1)
    assert "numbers" not in alone


def test_a_sample_may_lack_what_is_not_required(config):
    config.data.inputs.numbers.required = False
    batches, summary = take(config, 6)
    assert summary["samples"] == SAMPLES and not summary["skipped"]
    there = np.concatenate([batch["numbers_there"] for batch in batches])
    numbers_of = np.concatenate([batch["numbers"] for batch in batches])
    assert there.dtype == bool and (~there).sum() == 8
    assert not numbers_of[~there].any() and numbers_of[there].any(axis=1).all()


def test_held_out_sets_have_it(config):
    held_out = EvalSet(config.data.sources.main.urls, config.data)
    (batch,) = held_out.batches(40)
    kept = [i for i in range(SAMPLES) if i % 6 != 5]
    np.testing.assert_array_equal(batch["numbers"], [numbers(i) for i in kept])
    assert "text" not in batch and held_out.records[1].captions == ["thing 1"]


def test_a_run_trains_evaluates_and_embeds_it(config, tmp_path, capsys):
    results = tiny_runs.run_config(tmp_path / "run", config)
    assert results["retrieval"]["held_out"]["image_to_text"]["R@10"] > 0
    assert re.search(r"numbers +8 x 6 +int32 +data\.inputs\.numbers", capsys.readouterr().out)
    model = xmodal.load(tmp_path / "run")
    assert set(model.inputs) == {"numbers", "text"}
    found = model.embed("numbers", [numbers(i) for i in range(3)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.embed("numbers", [numbers(2)])[0], found[2], atol=1e-6)
    with pytest.raises(DataError, match="digits number 1 cannot be used"):
        model.embed("numbers", [numbers(0), [1, 2]])


def test_its_options_are_checked_as_all_others(config):
    config.data.inputs.numbers.lenght = 3
    with pytest.raises(DataError, match=r"data\.inputs\.numbers has no key 'lenght'; did you mean 'length'"):
        inputs_of(config.data)
    config.data.inputs.numbers = dict(type="digit")
    with pytest.raises(DataError, match=r"data\.inputs\.numbers\.type is 'digit', not one of .*did you mean 'digits'"):
        inputs_of(config.data)
