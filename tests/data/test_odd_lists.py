"""Lists as other programs write them: what they say is read, or the reason that is true is given."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_inputs import data_section, make_label
from tiny_shards import encode

from data_pipelines.errors import BadSample, DataError
from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source
from data_pipelines.stream.evalset import EvalSet
from xmodal.__main__ import main


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in side").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "in side/d.jpg"):
        (tmp_path / name).write_bytes(encode(1, "jpg"))
    return tmp_path


def captions(path, **entry):
    """Returns the captions of a list and what was left out of it."""
    config = data_section()
    config.inputs.text.lower = False
    with Files() as files:
        source = open_source("d", dict(type="files", urls=str(path)) | entry, config, files, every_field=True)
        blocks = source.blocks(2**20)
        samples = [sample for i in range(len(blocks)) for sample in source.read(blocks, i)]
    assert all(sample.bytes > 100 and not sample.fault for sample in samples)
    return [source.rules.captions(sample.record)[0] for sample in samples], source.skipped


READ = {
    "comma.tsv": ("image,caption\na.jpg,cat\n", ["cat"]),
    "escaped.csv": ('image,caption\na.jpg,"he said \\"hi\\" twice"\nb.jpg,dog\n', ['he said "hi" twice', "dog"]),
    "cr.csv": ("image,caption\ra.jpg,cat\rb.jpg,dog\r", ["cat", "dog"]),
    "spaces.csv": ("image, caption\na.jpg, cat\n b.jpg, dog\n", ["cat", "dog"]),
    "windows.csv": ("image,caption\nin side\\d.jpg,cat\na.jpg,dog\n", ["cat", "dog"]),
    "late.jsonl": ('{"image": "a.jpg"}\n{"image": "b.jpg", "caption": "dog"}\n', ["dog"]),
    "true.jsonl": ('{"image": "a.jpg", "caption": true}\n{"image": "b.jpg", "caption": "dog"}\n', ["dog"]),
    "late.json": ('[{"image": "a.jpg"}, {"image": "b.jpg", "caption": "dog"}]', ["dog"]),
    "lines.json": ('{"image": "a.jpg", "caption": "cat"}\n{"image": "b.jpg", "caption": "dog"}\n', ["cat", "dog"]),
    "columns.json": ('{"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "cat", "1": "dog"}}', ["cat", "dog"]),
}


@pytest.mark.parametrize("name", READ)
def test_odd_lists_are_read(folder, name):
    content, expected = READ[name]
    (folder / name).write_text(content, newline="")
    assert captions(folder / name)[0] == expected


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "image,caption\na.jpg,cat\n".encode("utf-16"), "is UTF-16, .*iconv"),
        ("a.csv", b"image,caption\na.jpg,a cat, on a mat\n", "too many values: 1"),
        ("a.csv", b",".join(b"c%d" % i for i in range(100_000)) + b"\n", r"has 100,000 columns \(c0, c1, c2"),
        ("a.json", b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]}',
         r"have no `caption` \(image_id, bbox\): these are boxes"),
    ],
)  # fmt: skip
def test_the_reason_is_told(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        captions(folder / name)


def test_annotations_of_images_that_are_not_listed_are_passed_over(folder):
    notes = [dict(image_id=1, caption="cat"), dict(image_id=2, caption="of another image")]
    document = dict(images=[dict(id=1, file_name="a.jpg")], annotations=notes)
    (folder / "a.json").write_text(json.dumps(document))
    assert captions(folder / "a.json", templates=((1.0, "{sentences}"),))[0] == ["cat"]


def test_words_for_no_value_are_left_out_counted_and_can_be_kept(folder, caplog):
    words = ["nan", "NaN", "None", "null", "nano"]
    (folder / "a.csv").write_text("image,caption\n" + "".join(f"a.jpg,{word}\n" for word in words))
    assert captions(folder / "a.csv") == (["nano"], {"null word": 4})
    assert caplog.text.count("nulls=() keeps them") == 1
    assert captions(folder / "a.csv", nulls=())[0] == words
    assert captions(folder / "a.csv", nulls=("nano",)) == (words[:4], {"null word": 1})
    templates = ((1.0, "see {caption}"),)
    assert captions(folder / "a.csv", templates=templates) == (["see nano"], {"empty caption": 4})


TABLES = dict(
    fixed=dict(image=["a.jpg", "b.jpg"], caption=pa.array([b"cat", b"dog"], pa.binary(3))),
    binary=dict(image=["a.jpg", "b.jpg"], caption=pa.array([b"cat", b"dog"])),
    paths=dict(image=pa.array([b"a.jpg", b"b.jpg"]), caption=["cat", "dog"]),
    webdataset=dict(jpg=pa.array([encode(1, "jpg")] * 2), txt=["cat", "dog"]),
    times=dict(image=["a.jpg", "b.jpg"], caption=["cat", "dog"], when=pa.array([1, 3], pa.timestamp("ns"))),
    others=dict(image=["a.jpg", "b.jpg"], caption=["cat", "dog"], more=[dict(bytes=b"x", path="y")] * 2),
)


@pytest.mark.parametrize("name", TABLES)
def test_odd_tables_are_read(folder, name):
    pq.write_table(pa.table(TABLES[name]), folder / "a.parquet")
    assert captions(folder / "a.parquet")[0] == ["cat", "dog"]


def test_tables_that_cannot_be_meant_are_told(folder):
    names = ["image", "caption", "caption"]
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a.jpg"]), pa.array(["x"]), pa.array(["y"])], names), folder / "a.pq"
    )
    with pytest.raises(DataError, match="has the column caption twice"):
        captions(folder / "a.pq")
    pq.write_table(pa.table(dict(image=[[b"x"]], caption=["cat"])), folder / "b.pq")
    with pytest.raises(DataError, match=r"'image' of .* is a list.*; expected one image a row"):
        captions(folder / "b.pq")


def test_options_that_nothing_reads_are_refused(folder):
    (folder / "a.jsonl").write_text('{"image": "a.jpg", "caption": "cat"}\n')
    with pytest.raises(DataError, match="`columns` is for CSV and TSV files"):
        captions(folder / "a.jsonl", columns=("image", "caption"))
    pq.write_table(pa.table(dict(image=["a.jpg"], caption=["cat"])), folder / "a.parquet")
    with pytest.raises(DataError, match="`columns` is for CSV and TSV files"):
        captions(folder / "a.parquet", columns=("image", "caption"))
    (folder / "a.txt").write_text("cat")
    with pytest.raises(DataError, match="`root` is for lists"):
        captions(folder, root="elsewhere")


def test_folders_whose_names_hold_braces_and_brackets(tmp_path):
    for name in ("data {v1}", "data [v1]", "a{b,c}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x-1.csv").write_text("image,caption\nx.jpg,cat\n")
        (tmp_path / name / "x.jpg").write_bytes(encode(1, "jpg"))
        for pattern in ("x-1.csv", "x-*.csv", "x-{1..1}.csv"):
            assert captions(tmp_path / name / pattern)[0] == ["cat"], (name, pattern)


def test_classes_may_be_whole_floats():
    labels = make_label(field="y", count=10)
    for value in (1.0, "1.0", 1, "1"):
        np.testing.assert_array_equal(labels.ids(dict(y=value)), [1])
    for value in (1.5, "1.5", float("nan"), "1.", "-1.0"):
        with pytest.raises(BadSample):
            labels.ids(dict(y=value))


def test_a_build_of_nothing_fails(folder, capsys):
    (folder / "a.csv").write_text("image,caption\nbad.jpg,cat\n")
    (folder / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit) as end:
        main(["data", "build", str(folder / "a.csv"), "--out", str(folder / "out"), "--workers", "1"])
    assert end.value.code == 1 and "nothing was built" in capsys.readouterr().err


def test_words_for_no_value_are_named_in_the_statistics(folder, capsys):
    (folder / "a.jsonl").write_text("".join(json.dumps(dict(text=text)) + "\n" for text in ("None", "nan", "cat")))
    main(["data", "stats", str(folder / "a.jsonl"), "--texts", "--template", "{text}", "--workers", "1"])
    assert "2 captions are words for no value" in capsys.readouterr().out


def test_evaluation_sets_refuse_what_only_training_uses(folder):
    (folder / "a.jsonl").write_text('{"image": "a.jpg", "caption": "cat"}\n')
    entry = dict(type="files", urls=str(folder / "a.jsonl"), weight=2.0, temperature=2.0)
    with pytest.raises(DataError, match=r"evals\.x sets weight, temperature, which only training uses"):
        EvalSet(entry, data_section(), where="evals.x")
