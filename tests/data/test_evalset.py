"""Evaluation sees every usable sample once, in order, on any number of processes."""

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from tiny_shards import encode, sample, write_tar

from data_pipelines.decode import evaluation_image
from data_pipelines.errors import DataError
from data_pipelines.evalset import EvalSet


@pytest.fixture(scope="module")
def urls(tmp_path_factory) -> str:
    """30 samples of which four cannot be used."""
    samples = {f"{i:03d}": sample(i, "jpg") for i in range(30)}
    samples["004"]["jpg"] = b"<html>"
    samples["010"]["txt"] = b" "
    samples["011"]["json"] = b"{"
    samples["029"]["jpg"] = samples["029"]["jpg"][:80]
    return str(write_tar(tmp_path_factory.mktemp("eval") / "e.tar", samples))


KEPT = [i for i in range(30) if i not in (4, 10, 11, 29)]


def test_records_in_order_and_bad_samples_left_out(config, urls, caplog):
    found = EvalSet(urls, config)
    assert len(found) == len(found.records) == 26
    assert [record["key"] for record in found.records] == [f"{i:03d}" for i in KEPT]
    assert found.skipped == {"not an image": 1, "empty caption": 1, "bad json": 1, "corrupt jpeg": 1}
    assert "4 samples left out" in caplog.text
    assert found.records[3] == dict(
        **json.loads(sample(3)["json"]), key="003", shard="e.tar", captions=["thing 3"], identity="e.tar/003"
    )


def test_templates_and_group(config, urls):
    config.text.templates, config.group_key = ((1.0, "{label}"), (1.0, "{label}, {tags}")), "group"
    record = EvalSet(urls, config).records[0]
    assert record["captions"] == ["thing 0", "thing 0, tag0, red, round"] and record["identity"] == "0"
    config.group_key = "grup"
    with pytest.raises(DataError, match="did you mean 'group'"):
        EvalSet(urls, config)


@pytest.mark.parametrize(("batch_size", "processes"), [(26, 1), (10, 1), (8, 4), (64, 2), (1, 1)])
def test_batches_cover_the_set_once(config, urls, batch_size, processes):
    found = EvalSet(urls, config)
    parts = [list(found.batches(batch_size, (i, processes))) for i in range(processes)]
    assert {len(part) for part in parts} == {-(-26 // batch_size)}
    batches = [{name: np.concatenate([part[name] for part in group]) for name in group[0]} for group in zip(*parts)]
    for batch in batches:
        assert batch["image"].shape == (batch_size, 16, 16, 3) and batch["image"].dtype == np.uint8
        assert batch["valid"].dtype == bool and batch["index"].dtype == np.int32
        assert (batch["index"][~batch["valid"]] == -1).all() and not batch["image"][~batch["valid"]].any()
    index = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(26))
    images = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    for i, image in zip(KEPT, images):
        np.testing.assert_array_equal(image, evaluation_image(sample(i, "jpg")["jpg"], 16))


def test_limit(config, urls):
    assert [record["key"] for record in EvalSet(urls, config, limit=6).records] == [f"{i:03d}" for i in KEPT[:6]]
    assert len(EvalSet(urls, config, limit=1000)) == 26


def test_squash_shows_the_whole_image(config, urls):
    config.image.crop = "squash"
    batch = next(EvalSet(urls, config).batches(4))
    np.testing.assert_array_equal(batch["image"][0], evaluation_image(sample(0, "jpg")["jpg"], 16, squash=True))


def test_leaving_early_leaves_no_thread(config, urls):
    batches = EvalSet(urls, config).batches(4)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("data-")]


def test_thumbnails(config, tmp_path):
    data = dict(png=encode(0, "png", size=(200, 100)), txt=b"x")
    found = EvalSet(str(write_tar(tmp_path / "a.tar", {"a": data})), config)
    assert Image.open(io.BytesIO(found.thumbnail(0, 50))).size == (50, 25)
    assert Image.open(io.BytesIO(found.thumbnail(0, 500))).size == (200, 100)


def test_faults(config, tmp_path, urls):
    with pytest.raises(DataError, match="no shard matches"):
        EvalSet("missing.tar", config)
    with pytest.raises(DataError, match="no usable sample"):
        EvalSet(str(write_tar(tmp_path / "a.tar", {"a": dict(txt=b"x")})), config)
    with pytest.raises(DataError, match="not a multiple of the 3 processes"):
        next(EvalSet(urls, config).batches(8, (0, 3)))
