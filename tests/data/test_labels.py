"""Classes of samples reach the batch; samples without a known class are left out and counted."""

import json

import numpy as np
import pytest
from tiny_inputs import make_label
from tiny_shards import encode, write_tar

from data_pipelines.errors import BadSample, DataError
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer


def labels(**changes):
    return make_label(**dict(field="kind", classes=("ant", "bee", "cat"), count=0, most=1) | changes)


def test_names_become_ids():
    assert labels().ids(dict(kind="cat")).tolist() == [2]
    assert labels(field="a.b").ids(dict(a=dict(b=" bee "))).tolist() == [1]
    assert labels(most=3).ids(dict(kind=["cat", "ant", "cat"])).tolist() == [2, 0, -1]
    numbers = labels(classes=(), count=10)
    assert numbers.ids(dict(kind=9)).tolist() == numbers.ids(dict(kind="9")).tolist() == [9]


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({}, "no class"),
        (dict(kind=""), "no class"),
        (dict(kind=None), "no class"),
        (dict(kind=True), "no class"),
        (dict(kind="dog"), "unknown class"),
        (dict(kind=["ant", "bee"]), "too many classes"),
    ],
)
def test_other_samples_are_bad(fields, reason):
    with pytest.raises(BadSample, match=reason):
        labels().ids(fields)


@pytest.mark.parametrize("value", ["3", "-1", "1.5", "²", 1.5])
def test_ids_out_of_range_are_bad(value):
    with pytest.raises(BadSample, match="class"):
        labels(classes=(), count=3).ids(dict(kind=value))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(classes=()), "needs either data.inputs.label.classes"),
        (dict(count=3), "needs either data.inputs.label.classes"),
        (dict(most=0), "at least 1 class"),
        (dict(classes=("ant", "ant")), "twice"),
    ],
)
def test_incomplete_settings(changes, message):
    with pytest.raises(DataError, match=message):
        labels(**changes).check()


def shard(path, members):
    """A tar of images with the given other members."""
    write_tar(path, {f"{i:04d}": dict(png=encode(i)) | own for i, own in enumerate(members)})


def batches(config, count):
    with open_stream(config, batch_size=16, seed=1) as stream:
        return [next(stream) for _ in range(count)], stream.summary()


def test_json_labels_reach_the_batch_beside_their_captions(config, tmp_path):
    names = ("ant", "bee", "cat")
    kinds = [names[i % 3] if i % 5 else "dog" for i in range(40)]
    shard(tmp_path / "s.tar", [dict(json=json.dumps(dict(kind=kind)).encode()) for kind in kinds])
    config.sources = dict(main=dict(urls=str(tmp_path / "s.tar"), templates=((1.0, "{kind}"),)))
    config.inputs.label = dict(type="label", field="kind", classes=names)
    found, summary = batches(config, 4)
    assert summary["skipped"] == {"unknown class": 8}
    tokenizer = Tokenizer.load(config.inputs.text.tokenizer)
    for batch in found:
        assert batch["label"].dtype == np.int32 and batch["label"].shape == (16, 1)
        wanted, _ = tokenizer.encode([names[i] for i in batch["label"][:, 0]], config.inputs.text.length)
        np.testing.assert_array_equal(batch["text"], wanted)


def test_integer_members_need_no_json(config, tmp_path):
    shard(tmp_path / "s.tar", [dict(cls=f"{i % 4}\n".encode()) for i in range(32)])
    config.sources = dict(main=dict(urls=str(tmp_path / "s.tar"), templates=((1.0, "thing {cls}"),)))
    config.inputs.label = dict(type="label", field="cls", count=4)
    (batch, *_), summary = batches(config, 2)
    assert summary["samples"] == 32 and set(batch["label"][:, 0]) == {0, 1, 2, 3}


def test_without_a_field_there_are_no_labels(config):
    found, _ = batches(config, 1)
    assert "label" not in found[0]


def test_a_field_that_no_sample_has(config):
    config.inputs.label = dict(type="label", field="knd", classes=("ant",))
    with pytest.raises(DataError, match=r"no usable|data.inputs.label.field uses the field 'knd'"):
        batches(config, 1)
