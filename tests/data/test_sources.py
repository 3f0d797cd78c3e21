"""Sources: the blocks of each hold every usable sample once, and what is not usable is counted."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny_tfds
from servers import FaultyServer, serving
from source_checks import open_it, read_whole
from tiny_shards import encode

from data_pipelines.errors import DataError
from data_pipelines.images.decode import check_image
from data_pipelines.io.storage import Files
from data_pipelines.sources.rows import UNUSED, row_blocks

TARGETS = (1, 3_000, 10**9)


@pytest.fixture
def files():
    with Files(attempts=2, timeout=5.0, backoff=0.01) as files:
        yield files


@pytest.fixture
def listed(tmp_path):
    """A list of 60 images, some of which cannot be used."""
    lines = ["file_name,caption,width"]
    for i in range(60):
        (tmp_path / f"{i}.png").write_bytes(b"" if i == 5 else encode(i))
        lines.append(f"{i}.png,{'' if i == 9 else f'Thing {i}'},{i}")
    (tmp_path / "6.png").unlink()
    (tmp_path / "list.csv").write_text("\n".join(lines))
    return tmp_path


def test_blocks_respect_target_edges_and_unused_rows():
    sizes = np.array([10, 10, UNUSED, 10, 30, 10, UNUSED, UNUSED], np.int32)
    blocks = row_blocks([(sizes, (0, 4)), (np.full(2, UNUSED, np.int32), (0,)), (sizes[:1], (0,))], 20)
    assert blocks.shard.tolist() == [0, 0, 0, 0, 2]
    assert list(zip(blocks.start, blocks.end)) == [(0, 2), (2, 4), (4, 5), (5, 6), (0, 1)]
    assert blocks.count.tolist() == [2, 1, 1, 1, 1]
    assert blocks.bytes.tolist() == [20, 10, 30, 10, 10]
    assert len(row_blocks([], 20)) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_list_gives_every_usable_row_once(files, listed, target):
    source = open_it(files, type="files", urls=str(listed / "list.csv"))
    assert source.skipped == {"empty image": 1, "no image": 1, "empty caption": 1}
    assert sorted(fault.key for fault in source.faults()) == ["row 10", "row 6", "row 7"]
    samples = read_whole(source, target)
    kept = [i for i in range(60) if i not in (5, 6, 9)]
    assert [sample.key for sample in samples] == [f"row {i + 1}" for i in kept]
    assert [sample.content for sample in samples] == [encode(i) for i in kept]
    assert [sample.record.text for sample in samples] == [f"thing {i}" for i in kept]


def test_templates_filters_and_group_keys_use_the_columns(files, listed):
    entry = dict(urls=[str(listed / "list.csv")], templates=[(1, "{caption} of {width}")], group_key="width")
    source = open_it(files, type="files", filter="width >= 50", **entry)
    assert source.samples == 10
    assert source.skipped == {"filtered": 49, "empty caption": 1}
    sample = read_whole(source, 10_000)[0]
    assert source.rules.captions(sample.record) == ["thing 50 of 50"]
    assert source.rules.identity(sample.record) == "50"


def test_a_source_goes_to_another_process(files, listed):
    for entry in (dict(type="files", urls=str(listed / "list.csv")), dict(type="synthetic", samples=30, scale=0.1)):
        source = open_it(files, **entry)
        assert read_whole(pickle.loads(pickle.dumps(source)), 5_000) == read_whole(source, 5_000)


def test_several_lists_and_folders(files, listed):
    (listed / "more").mkdir()
    (listed / "more" / "x.png").write_bytes(encode(1))
    (listed / "more" / "x.txt").write_text("from a folder")
    (listed / "second.jsonl").write_text('{"image": "more/x.png", "caption": "from json"}')
    urls = [str(listed / "{list.csv,second.jsonl}"), str(listed / "more")]
    source = open_it(files, type="files", urls=urls)
    samples = read_whole(source, 4_000)
    assert (source.shards, source.samples) == (3, 59)
    assert [sample.record.text for sample in samples[-2:]] == ["from json", "from a folder"]
    with pytest.raises(DataError, match="named twice"):
        open_it(files, type="files", urls=[str(listed / "list.csv"), str(listed / "l*.csv")])


def test_class_folders_need_a_template(files, tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(encode(1))
    with pytest.raises(DataError, match=r"no caption: 1.*templates over the fields \(label, file\)"):
        open_it(files, type="files", urls=str(tmp_path))
    source = open_it(files, type="files", urls=str(tmp_path), templates=((1, "a photo of {label}"),))
    (sample,) = read_whole(source, 100)
    assert source.rules.captions(sample.record) == ["a photo of cats"]
    with pytest.raises(DataError, match=r"field 'lable'.*did you mean 'label'\?"):
        open_it(files, type="files", urls=str(tmp_path), templates=((1, "a photo of {lable}"),))


@pytest.mark.parametrize("target", TARGETS)
def test_parquet_as_hugging_face_writes_it(files, tmp_path, target):
    images = [dict(bytes=encode(i), path=f"{i}.png") for i in range(30)]
    images[3], images[4] = None, dict(bytes=b"", path=None)
    table = pyarrow.table(dict(image=images, text=[f"thing {i}" for i in range(30)], n=range(30)))
    pyarrow.parquet.write_table(table, tmp_path / "train-00000.parquet", row_group_size=7)
    source = open_it(files, type="files", urls=str(tmp_path / "*.parquet"), filter="n != 8")
    assert source.skipped == {"no image": 1, "empty image": 1, "filtered": 1}
    blocks = source.blocks(target)
    assert all(start // 7 == (end - 1) // 7 for start, end in zip(blocks.start, blocks.end))
    samples = read_whole(source, target)
    assert [sample.content for sample in samples] == [encode(i) for i in range(30) if i not in (3, 4, 8)]


def test_what_cannot_be_fetched_is_a_fault_of_its_sample(files, tmp_path):
    with serving(FaultyServer()) as server:
        server.files |= {f"{i}.png": encode(i) for i in range(6)} | {"empty.png": b""}
        server.faults["2.png"] = ("503", 99)
        server.faults["3.png"] = ("503", 1)
        names = [f"{i}.png" for i in range(6)] + ["gone.png", "empty.png"]
        rows = [f"{server.address}/{name},thing" for name in names]
        (tmp_path / "list.csv").write_text("\n".join(["url,caption", *rows, "ftp://host/a.png,thing"]))
        source = open_it(files, type="files", urls=str(tmp_path / "list.csv"))
        samples = read_whole(source, 10**9)
    assert source.skipped == {"unsupported url": 1}
    expected = {2: "fetch failed", 6: "no image", 7: "empty image"}
    assert {i: sample.fault for i, sample in enumerate(samples) if sample.fault} == expected
    assert all(samples[i].parts["image"] == encode(i) for i in (0, 1, 3, 4, 5))


def test_a_list_that_changed_is_an_error(files, listed):
    source = open_it(files, type="files", urls=str(listed / "list.csv"))
    text = (listed / "list.csv").read_text()
    (listed / "list.csv").write_text(text.replace("\n", "\r").replace("\r", "\n", 3) + " " * 10)
    with pytest.raises(DataError, match=r"stale index.*list\.csv"):
        read_whole(source, 3_000)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(urls="nowhere-*.csv"), "nowhere-"),
        (dict(urls="x.csv", imgae="a"), r"no key 'imgae'; did you mean 'image'\?"),
        (dict(), "needs `urls`"),
        (dict(urls="x.csv", image=3), r"main.image is 3; expected str"),
    ],
)
def test_wrong_entries_are_named(files, entry, message):
    with pytest.raises(DataError, match=message):
        open_it(files, type="files", **entry)


def test_no_usable_row_says_why(files, tmp_path):
    (tmp_path / "list.csv").write_text("image,caption\na.png,one\n")
    with pytest.raises(DataError, match=r"no usable image.*no image: 1.*root=DIR"):
        open_it(files, type="files", urls=str(tmp_path / "list.csv"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encode(1))
    source = open_it(files, type="files", urls=str(tmp_path / "list.csv"), root=str(tmp_path / "images"))
    assert source.samples == 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tiny_tfds.make(tmp_path_factory.mktemp("tfds"))


@pytest.mark.parametrize("target", TARGETS)
def test_tfds_gives_every_example_once(files, prepared, target):
    source = open_it(files, type="tfds", dataset=prepared)
    samples = read_whole(source, target)
    assert (source.samples, source.shards) == (40, 3)
    assert [sample.fault for sample in samples if sample.fault] == ["empty caption"]
    for sample in samples:
        if not sample.fault:
            assert sample.content == encode(int(sample.record.text.removeprefix("thing ")))
    assert len({bytes(sample.content) for sample in samples}) == 40
    assert [samples == read_whole(pickle.loads(pickle.dumps(source)), target)] == [True]


def test_tfds_gives_texts_alone(files, prepared):
    samples = read_whole(open_it(files, images=False, type="tfds", dataset=prepared), 1_000)
    assert sorted(s.record.text for s in samples if not s.fault) == sorted(f"thing {i}" for i in range(40) if i != 7)
    assert [s.fault for s in samples if s.fault] == ["empty caption"] and not any(s.parts for s in samples)


def test_tfds_fields_splits_and_filters(files, prepared):
    entry = dict(type="tfds", dataset=prepared, split="train[:50%]", templates=((1, "a {label}: {captions.text}"),))
    source = open_it(files, **entry)
    assert source.samples == 20
    record = read_whole(source, 1_000)[0].record
    number = record.fields["number"]
    assert record.fields["label"] == ("cat", "dog")[number % 2]
    assert source.rules.captions(record) == [f"a {record.fields['label']}: one {number}, two"]
    assert record.fields["box"] == [0.0, 0.0, 0.5, 1.0]
    odd = open_it(files, type="tfds", dataset=prepared, filter='label == "dog" and number > 20')
    assert {sample.record.fields["number"] for sample in read_whole(odd, 1_000)} == set(range(21, 40, 2))
    assert odd.skipped == {"filtered": 29, "empty caption": 1}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(split="test"), "split 'test'.*splits: train"),
        (dict(image="imag"), r"no image feature 'imag'; did you mean 'image'\?"),
        (dict(caption="captoin"), r"no feature 'captoin'.*did you mean 'caption'\?"),
        (dict(caption="captions"), "is a dict and not a text"),
        (dict(dataset="no_such_set_at_all"), "no data set 'no_such_set_at_all'.*tfds build"),
    ],
)
def test_tfds_errors_say_what_to_do(files, prepared, tmp_path, entry, message):
    with pytest.raises(DataError, match=message):
        read_whole(open_it(files, **dict(type="tfds", dataset=prepared, data_dir=str(tmp_path)) | entry), 1_000)


def test_tfds_is_found_by_its_name(files, prepared, tmp_path):
    """Also by one that the library has code for, which it would ask for config and version, with TensorFlow."""
    for place in ("coco_captions/2014/1.1.0", "coco_captions/2014/1.10.0", "plain/1.0.0"):
        name, folder = place.partition("/")[0], tmp_path / place
        folder.mkdir(parents=True)
        for path in Path(prepared).iterdir():
            (folder / path.name.replace("tiny-", f"{name}-")).write_bytes(path.read_bytes())
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace('"name": "tiny"', f'"name": "{name}"'))
    opened = lambda name: open_it(files, type="tfds", dataset=name, data_dir=str(tmp_path))
    for name in ("plain", "plain:1.0.0", "coco_captions", "coco_captions/2014", "coco_captions/2014:1.1.0"):
        assert opened(name).samples == 40
    assert "2014/1.10.0" in opened("coco_captions").read(opened("coco_captions").blocks(1), 0)[0].shard
    with pytest.raises(DataError, match=r"2014:2\.0\.0 was not prepared in .*; versions there: 1\.1\.0, 1\.10\.0"):
        opened("coco_captions/2014:2.0.0")
    (tmp_path / "coco_captions" / "2014").rename(tmp_path / "2014")
    for config in ("a", "b"):
        shutil.copytree(tmp_path / "2014", tmp_path / "coco_captions" / config)
    with pytest.raises(DataError, match=r"several configs; name one, as in coco_captions/a \(a, b\)"):
        opened("coco_captions")


def test_tfds_is_read_without_tensorflow(prepared, tmp_path):
    (tmp_path / "tensorflow").mkdir()  # installed, but nobody may import it
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os.write(2, b'imported'); os._exit(3)")
    code = (
        f"import sys; sys.path[:0] = ['tests/data', {str(tmp_path)!r}]\n"
        "from source_checks import open_it, read_whole; from data_pipelines.io.storage import Files\n"
        f"print(len(read_whole(open_it(Files(), type='tfds', dataset={prepared!r}), 1000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "40", done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_synthetic_samples_follow_from_the_seed(files, target):
    source = open_it(files, type="synthetic", samples=90, seed=3, scale=0.1)
    samples = read_whole(source, target)
    assert samples == read_whole(open_it(files, type="synthetic", samples=90, seed=3, scale=0.1), 777)
    assert len({sample.record.text for sample in samples}) == 90
    assert len({sample.content for sample in samples}) == 64
    for sample in samples[:10]:
        check_image(sample.content)
    other = read_whole(open_it(files, type="synthetic", samples=5, seed=4, scale=0.1), target)
    assert all(a.content != b.content for a, b in zip(samples, other))


def test_synthetic_images_are_about_as_large_as_stated(files):
    source = open_it(files, type="synthetic", samples=64)
    total = sum(len(sample.content) for sample in read_whole(source, 10**9))
    assert 0.7 < total / source.bytes < 1.4
