"""`embed`: what an index holds, and that it is the same however it was made."""

import io
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import xmodal
from data_pipelines.errors import DataError
from tests.search.conftest import BAD, GOOD, SAMPLES, caption, contents, embed, picture
from tests.tiny_runs import finish, start
from xmodal.__main__ import main
from xmodal.search.index import Index
from xmodal.search.parts import Part, write_part


def refused(capsys, *arguments, code=1):
    with pytest.raises(SystemExit) as end:
        main(["embed", *map(str, arguments)])
    assert end.value.code == code
    return capsys.readouterr().err


def test_an_index_holds_what_the_model_gives(made_index, model_folder):
    index, model = Index(made_index), xmodal.load(f"hf:{model_folder}", batch_size=8)
    assert len(index) == len(GOOD) and len(index.parts) > 4 and index.kinds == ("image", "text")
    images, texts = model.embed_image([picture(i) for i in GOOD]), model.embed_text([caption(i) for i in GOOD])
    np.testing.assert_allclose(index.vectors("image").matrix(), images, atol=6e-4)
    np.testing.assert_allclose(index.vectors("text").matrix(), texts, atol=6e-4)
    assert index.vectors("image").dtype == np.float16
    records = list(index.records())
    assert [record["key"] for record in records] == [f"{i:03d}" for i in GOOD]
    assert [record["caption"] for record in records] == [caption(i) for i in GOOD]
    assert {os.path.basename(record["shard"]) for record in records} == {"a.tar", "b.tar"}
    for row in (0, 8, 9, len(index) - 1):
        assert index.record(row) == records[row]
        shown = Image.open(io.BytesIO(index.thumbnail(row)))
        assert shown.format == "JPEG" and shown.size == (32, 23)
        whole = Image.open(io.BytesIO(picture(GOOD[row]))).resize(shown.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(shown, float) - np.asarray(whole, float)).mean() < 8
    for row in (-1, len(index)):
        with pytest.raises(DataError, match=f"no sample {row}"):
            index.record(row)


def test_records_say_where_an_image_came_from(tmp_path):
    records = [
        dict(shard="list.csv", key="row 1", caption="a", file="photos/1.png"),
        dict(shard="b", key="2", caption=""),
    ]
    write_part(tmp_path, 0, dict(image=np.zeros((2, 4), np.float16)), records, None, {})
    part = Part(tmp_path, 0)
    assert list(part.records()) == records == [part.record(0), part.record(1)]


def test_bad_images_are_left_out_and_counted(made_index):
    manifest = json.loads((made_index / "manifest.json").read_text())
    assert manifest["complete"] and manifest["samples"] == len(GOOD)
    assert manifest["skipped"] == {"corrupt png": 2, "no caption": 1}
    lines = [json.loads(line) for line in (made_index / "skipped.jsonl").read_text().splitlines()]
    found = {(os.path.basename(line["shard"]), line["key"], line["reason"]) for line in lines}
    bad = {("a.tar", f"{i:03d}", "corrupt png") for i in BAD}
    assert found == bad | {("b.tar", "x", "no caption")}


def test_any_reader_of_safetensors_reads_the_parts(made_index):
    arrays, part = load_file(made_index / "00000.safetensors"), Part(made_index, 0)
    assert set(arrays) == {"image", "text", "record_end", "thumbnail_end"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, part.arrays[name])


def test_processes_share_the_work(made_index, made_shards, model_folder, tmp_path, capsys):
    arguments = (made_shards, "--model", f"hf:{model_folder}", "--part-samples", 9, "--thumbnails", 32)
    arguments += ("--out", tmp_path / "index")
    embed(*arguments, "--process", "1/2")
    assert "parts are the work of other processes" in capsys.readouterr().out
    with pytest.raises(DataError, match="is not complete; run the same `embed`"):
        Index(tmp_path / "index")
    embed(*arguments, "--process", "0/2")
    assert f"{len(GOOD)} samples in" in capsys.readouterr().out
    assert contents(tmp_path / "index") == contents(made_index)
    embed(*arguments)  # nothing is left to be done
    assert "samples embedded" not in capsys.readouterr().out


def test_a_killed_process_goes_on(made_index, made_shards, model_folder, tmp_path):
    out = tmp_path / "index"
    arguments = [made_shards, "--model", f"hf:{model_folder}", "--part-samples", "9", "--thumbnails", "32"]
    command = ["-m", "xmodal", "embed", *arguments, "--out", str(out), "--batch-size", "8"]
    process = start(command)
    while not list(out.glob("*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    (out / f"00004.jsonl.{process.pid}.draft").write_bytes(b"half a rec")
    code, _, error = finish(start(command))
    assert code == 0, error
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there  # those were not made again
    ours, whole = Index(out), Index(made_index)  # with one device, sums may differ in their last bit
    assert list(ours.records()) == list(whole.records())
    for kind in ("image", "text"):
        np.testing.assert_allclose(ours.vectors(kind).matrix(), whole.vectors(kind).matrix(), atol=2e-3)
    assert contents(out).keys() == contents(made_index).keys()


def test_damaged_parts_are_found_and_made_again(index_copy, made_index, made_shards, model_folder):
    part = index_copy / "00002.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"00002\.safetensors is missing or damaged"):
        Index(index_copy)
    manifest = json.loads((index_copy / "manifest.json").read_text())
    (index_copy / "manifest.json").write_text(json.dumps(manifest | dict(complete=False)))
    arguments = (made_shards, "--model", f"hf:{model_folder}", "--part-samples", 9, "--thumbnails", 32)
    embed(*arguments, "--out", index_copy)
    assert contents(index_copy) == contents(made_index)


def test_what_does_not_belong_into_a_folder_is_refused(index_copy, made_shards, model_folder, tmp_path, capsys):
    common = ("--out", index_copy, "--part-samples", 9, "--thumbnails", 32)
    other = shutil.copytree(model_folder, tmp_path / "other")
    arrays = load_file(other / "model.safetensors")
    name = next(name for name in arrays if name.endswith("visual_projection.weight"))
    arrays[name] = arrays[name] + 1e-3
    save_file(arrays, other / "model.safetensors")
    model = ("--model", f"hf:{model_folder}")
    told = refused(capsys, made_shards, "--model", f"hf:{other}", *common)
    assert "other model (fingerprint" in told and "or delete the folder or name another with --out" in told
    assert "other model (compute" in refused(capsys, made_shards, *model, *common, "--compute", "bfloat16")
    assert "other data (digest" in refused(capsys, made_shards.replace("*", "a"), *model, *common)
    assert "other options (dtype" in refused(capsys, made_shards, *model, *common, "--dtype", "float32")
    assert contents(index_copy)  # and nothing was touched
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "holds other files, such as thesis.txt" in refused(capsys, made_shards, *model, "--out", tmp_path / "full")
    assert "an index lies on a disk" in refused(capsys, made_shards, *model, "--out", "s3://bucket/i", code=2)
    assert "expected I/N" in refused(capsys, made_shards, *model, "--out", tmp_path / "x", "--process", "2/2", code=2)
    assert "no data are named" in refused(capsys, *model, "--out", tmp_path / "x", code=2)


def test_a_folder_without_captions(model_folder, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "photos" / "2.txt").write_text("w9")
    arguments = (tmp_path / "photos", "--model", f"hf:{model_folder}", "--out", tmp_path / "index")
    embed(*arguments, "--what", "images", "--thumbnails", 0, "--dtype", "float32")
    index = Index(tmp_path / "index")
    assert index.kinds == ("image",) and not index.has_thumbnails and index.thumbnail(0) is None
    assert [(r["key"], r["caption"]) for r in index.records()] == [(f"{i}.png", "w9" * (i == 2)) for i in range(5)]
    images = xmodal.load(f"hf:{model_folder}", batch_size=8).embed_image([picture(i) for i in range(5)])
    np.testing.assert_allclose(index.vectors("image").matrix(), images, atol=2e-6)
    with pytest.raises(DataError, match="'text', only of image"):
        index.vectors("text")


def test_captions_alone_need_no_images(made_shards, model_folder, tmp_path):
    embed(made_shards, "--model", f"hf:{model_folder}", "--out", tmp_path / "index", "--what", "captions")
    index = Index(tmp_path / "index")
    assert index.kinds == ("text",) and len(index) == SAMPLES and not index.has_thumbnails
