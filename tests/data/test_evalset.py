"""Evaluation sees every usable sample once, in order, on any number of processes."""

import io
import json
import threading

import numpy as np
import pytest
import tiny_tfds
from PIL import Image
from servers import FaultyServer, serving
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.images.decode import evaluation_image
from data_pipelines.sources import index
from data_pipelines.stream.evalset import EvalRecord, EvalSet, texts_of


@pytest.fixture(scope="module")
def urls(tmp_path_factory) -> str:
    """30 samples of which three cannot be used, and one has no fields."""
    samples = {f"{i:03d}": sample(i, "jpg") for i in range(30)}
    samples["004"]["jpg"] = b"<html>"
    samples["010"]["txt"] = b" "
    samples["011"]["json"] = b"{"
    samples["029"]["jpg"] = samples["029"]["jpg"][:80]
    return str(write_tar(tmp_path_factory.mktemp("eval") / "e.tar", samples))


KEPT = [i for i in range(30) if i not in (4, 10, 29)]


def test_records_in_order_and_bad_samples_left_out(config, urls, caplog):
    found = EvalSet(urls, config)
    assert len(found) == len(found.records) == 27
    assert [record.key for record in found.records] == [f"{i:03d}" for i in KEPT]
    assert found.skipped == {"not an image": 1, "empty caption": 1, "corrupt jpeg": 1}
    assert "3 samples left out" in caplog.text
    assert found.records[3] == EvalRecord(json.loads(sample(3)["json"]), "003", "e.tar", ["thing 3"])
    assert found.names[3] == "e.tar/003" and found.title(3) == "sample 003 of e.tar"


def test_fields_that_no_caption_needs_decide_nothing(config, urls):
    record = next(record for record in EvalSet(urls, config).records if record.key == "011")  # its json is damaged
    assert record.captions == ["thing 11"] and "label" not in record.fields
    config.inputs.text.templates = ((1.0, "{label}"),)
    found = EvalSet(urls, config)
    assert found.skipped["bad json"] == 1 and "011" not in [record.key for record in found.records]


def test_templates_and_group(config, urls):
    config.inputs.text.templates, config.group_key = ((1.0, "{label}"), (1.0, "{label}, {tags}")), "group"
    record = EvalSet(urls, config).records[0]
    assert record.captions == ["thing 0", "thing 0, tag0, red, round"]
    config.group_key = "grup"
    with pytest.raises(DataError, match="did you mean 'group'"):
        EvalSet(urls, config)


@pytest.mark.parametrize(("batch_size", "processes"), [(27, 1), (10, 1), (8, 4), (64, 2), (1, 1)])
def test_batches_cover_the_set_once(config, urls, batch_size, processes):
    found = EvalSet(urls, config)
    parts = [list(found.batches(batch_size, (i, processes))) for i in range(processes)]
    assert {len(part) for part in parts} == {-(-27 // batch_size)}
    batches = [{name: np.concatenate([part[name] for part in group]) for name in group[0]} for group in zip(*parts)]
    for batch in batches:
        assert batch["image"].shape == (batch_size, 16, 16, 3) and batch["image"].dtype == np.uint8
        assert batch["valid"].dtype == bool and batch["index"].dtype == np.int32
        assert (batch["index"][~batch["valid"]] == -1).all() and not batch["image"][~batch["valid"]].any()
    index = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(27))
    images = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    for i, image in zip(KEPT, images):
        np.testing.assert_array_equal(image, evaluation_image(sample(i, "jpg")["jpg"], 16))


def test_limit(config, urls):
    assert [record.key for record in EvalSet(urls, config, limit=6).records] == [f"{i:03d}" for i in KEPT[:6]]
    assert len(EvalSet(urls, config, limit=1000)) == 27


def test_squash_shows_the_whole_image(config, urls):
    config.inputs.image.crop = "squash"
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


def pixels(found):
    return np.concatenate([batch["image"][batch["valid"]] for batch in found.batches(16)])


def test_a_list_with_templates_and_a_filter(config, tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(b"<html>" if i == 33 else encode(i, "jpg"))
    lines = [f"{i}.jpg,{('star', 'moon')[i % 2]},{i}" for i in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["path,kind,width", *lines]))
    entry = dict(type="files", urls=str(tmp_path / "list.csv"), filter="width >= 30", templates=((1, "a {kind}"),))
    found = EvalSet(entry, config)
    assert found.skipped == {"filtered": 30, "not an image": 1}
    kept = [i for i in range(30, 40) if i != 33]
    assert [record.key for record in found.records] == [f"row {i + 1}" for i in kept]
    fields = dict(path="31.jpg", kind="moon", width="31")
    assert found.records[1] == EvalRecord(fields, "row 32", "list.csv", ["a moon"])
    np.testing.assert_array_equal(pixels(found), [evaluation_image(encode(i, "jpg"), 16) for i in kept])


def test_tfds_and_synthetic(config, tmp_path):
    found = EvalSet(dict(type="tfds", dataset=tiny_tfds.make(tmp_path), split="train[10:30]"), config, limit=12)
    assert [record.captions for record in found.records] == [[f"thing {r.fields['number']}"] for r in found.records]
    expected = [evaluation_image(encode(record.fields["number"]), 16) for record in found.records]
    np.testing.assert_array_equal(pixels(found), expected)
    assert len(found) == 12
    config.inputs.text.templates = ((1.0, "{label}"),)  # a class in place of a caption, which one example does not have
    labelled = EvalSet(dict(type="tfds", dataset=tiny_tfds.make(tmp_path), split="train"), config)
    assert sorted(record.fields["label"] for record in labelled.records) == ["cat"] * 20 + ["dog"] * 20
    config.inputs.text.templates = ()
    assert len(EvalSet(dict(type="synthetic", samples=30, scale=0.1, unique="image"), config)) == 30


def test_what_could_not_be_fetched_is_counted_and_never_scored(config, tmp_path):
    config.remote.update(attempts=2, backoff=0.01)
    with serving(FaultyServer()) as server:
        server.files |= {f"{i}.png": encode(i) for i in range(30)}
        server.faults |= {"3.png": ("503", 99), "4.png": ("403", 99), "5.png": ("503", 1)}
        lines = [f"{server.address}/{i}.png?token=secret,thing {i}" for i in range(31)]
        (tmp_path / "list.csv").write_text("\n".join(["url,caption", *lines]))
        found = EvalSet(dict(type="files", urls=str(tmp_path / "list.csv")), config)
        assert found.skipped == {"fetch failed": 1, "forbidden image": 1, "no image": 1}
        kept = [i for i in range(30) if i not in (3, 4)]
        assert [record.captions for record in found.records] == [[f"thing {i}"] for i in kept]
        np.testing.assert_array_equal(pixels(found), [evaluation_image(encode(i), 16) for i in kept])
        server.faults["20.png"] = ("404", 99)
        server.forget()
        with pytest.raises(DataError, match=r"row 21 of .*list\.csv could be used .* and not now: no image"):
            pixels(found)


def test_a_held_out_set_is_indexed_whatever_its_size(config, urls, monkeypatch):
    config.inputs.text.templates = ((1.0, "the {label}"),)  # not indexed yet
    monkeypatch.setattr(
        "data_pipelines.sources.index.load.__kwdefaults__", index.load.__kwdefaults__ | dict(at_most=10)
    )
    assert len(EvalSet(urls, config)) == 27


def test_messages_say_which_entry_is_meant(config, urls):
    with pytest.raises(DataError, match=r"evals\.val\.source has no key 'url'; did you mean 'urls'"):
        EvalSet(dict(url=urls), config, where="evals.val.source")
    with pytest.raises(DataError, match=r"evals\.val: no shard matches"):
        EvalSet("missing.tar", config, where="evals.val")


def test_faults(config, tmp_path, urls):
    with pytest.raises(DataError, match="no shard matches"):
        EvalSet("missing.tar", config)
    with pytest.raises(DataError, match="no usable sample"):
        EvalSet(str(write_tar(tmp_path / "a.tar", {"a": dict(txt=b"x")})), config)
    with pytest.raises(DataError, match="not a multiple of the 3 processes"):
        next(EvalSet(urls, config).batches(8, (0, 3)))


NAMES = ("captions", "key", "shard", "identity", "fields")


def test_fields_may_have_any_name(config, tmp_path):
    """The sample's place and its captions are kept apart from its fields."""
    fields = [{name: f"{name} {i}" for name in NAMES} | dict(captions=[f"one {i}", f"two {i}"]) for i in range(4)]
    samples = {f"{i}": {"png": encode(i), "json": json.dumps(own).encode()} for i, own in enumerate(fields)}
    config.inputs.text.templates = ((1.0, "{key}"), (1.0, "{shard} {identity}"))
    found = EvalSet(str(write_tar(tmp_path / "odd.tar", samples)), config)
    for i, record in enumerate(found.records):
        assert record.fields == fields[i] and (record.key, record.shard) == (f"{i}", "odd.tar")
        assert record.captions == [f"key {i}", f"shard {i} identity {i}"]
    assert found.names == [f"odd.tar/{i}" for i in range(4)]
    assert texts_of(found.records, "shard") == [f"shard {i}" for i in range(4)]
