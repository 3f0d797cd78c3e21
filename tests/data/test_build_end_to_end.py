"""From data as people have them to training batches: build shards by command, train on them, and find every sample."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
import tiny_tfds
from servers import FaultyServer, serving
from tiny_shards import encode, sample, write_tar

from data_pipelines.images.augment import Box
from data_pipelines.images.decode import training_image
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.__main__ import main


@pytest.fixture
def build(tmp_path):
    """Builds shards by command; returns where they are."""

    def run(*arguments: str) -> str:
        command = ["data", "build", *map(str, arguments), "--out", str(tmp_path / "out"), "--shard-samples", "17"]
        assert main([*command, "--workers", "1"]) == 0
        assert len(list((tmp_path / "out").glob("*.tar"))) > 1
        return str(tmp_path / "out" / "*.tar")

    return run


def check_epoch(config, urls, expected, monkeypatch):
    """One epoch of a stream is these (caption, image), each once, and begins without a scan."""
    monkeypatch.delattr("data_pipelines.sources.index.examine")
    config.sources = dict(built=dict(urls=urls))
    config.inputs.image.crop, config.lanes, config.prefetch = "squash", 1, 0
    tokenizer = Tokenizer.load(config.inputs.text.tokenizer)
    with open_stream(config, batch_size=len(expected), seed=3) as stream:
        assert stream.epoch_size == len(expected)
        batch = next(stream)
        assert stream.counters()["data/replaced"] == 0
    found = [(tokenizer.decode(ids), image.tobytes()) for ids, image in zip(batch["text"], batch["image"])]
    whole = lambda image: training_image(image, 16, lambda height, width: Box(0, 0, height, width))
    assert sorted(found) == sorted((text.lower(), whole(image).tobytes()) for text, image in expected)


def left_out(tmp_path):
    return json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]


def test_from_tfds(config, build, tmp_path, monkeypatch):
    urls = build(tiny_tfds.make(tmp_path / "tfds"), "--type", "tfds", "--filter", "label == 'dog' or number < 30")
    # Label 1 is the dog; of number 7 the caption is empty.
    expected = [(f"thing {i}", encode(i)) for i in range(40) if i != 7 and (i % 2 or i < 30)]
    check_epoch(config, urls, expected, monkeypatch)
    assert left_out(tmp_path) == {"empty caption": 1, "filtered": 5}


def test_from_parquet_as_hugging_face_writes_it(config, build, tmp_path, monkeypatch):
    for part in range(2):
        numbers = range(20 * part, 20 * part + 20)
        images = [dict(bytes=encode(i, "jpg"), path=None) for i in numbers]
        images[4] = dict(bytes=b"<html>", path="4.jpg")
        table = pyarrow.table(dict(image=images, caption=[f"Thing {i}" for i in numbers]))
        pyarrow.parquet.write_table(table, tmp_path / f"train-{part:05d}-of-00002.parquet", row_group_size=6)
    urls = build(tmp_path / "train-*.parquet")
    expected = [(f"Thing {i}", encode(i, "jpg")) for i in range(40) if i not in (4, 24)]
    check_epoch(config, urls, expected, monkeypatch)
    assert left_out(tmp_path) == {"not an image": 2}


def test_from_class_folders(config, build, tmp_path, monkeypatch):
    expected = []
    for i in range(30):
        path = tmp_path / "train" / ("cat", "dog", "sea lion")[i % 3] / f"{i}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(i, "webp"))
        expected.append((f"a {path.parent.name}", path.read_bytes()))
    urls = build(tmp_path / "train", "--template", "a {label}")
    check_epoch(config, urls, expected, monkeypatch)


def test_from_paths_in_a_csv(config, build, tmp_path, monkeypatch):
    rows, expected = [], []
    for i in range(40):
        path = tmp_path / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(i))
        rows.append((f"{i}.png", f'thing, "{i}"\nsmall'))
        expected.append((f'thing, "{i}" small', encode(i)))
    (tmp_path / "photos" / "39.png").unlink()
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("picture", "words"), *rows])
    root = ("--root", tmp_path / "photos")
    urls = build(tmp_path / "list.csv", "--image", "picture", "--caption", "words", *root)
    check_epoch(config, urls, expected[:-1], monkeypatch)
    assert left_out(tmp_path) == {"no image": 1}


def test_from_urls_on_a_server_with_troubles(config, build, tmp_path, monkeypatch):
    with serving(FaultyServer()) as server:
        server.files |= {f"{i}.png": encode(i) for i in range(40)} | {"page.png": b"<html>"}
        server.faults |= {"1.png": ("503", 1), "2.png": ("half", 1), "3.png": ("drop", 1), "4.png": ("404", 99)}
        server.faults |= {"5.png": ("403", 99), "6.png": ("503", 99)}
        names = [*map(str, range(41)), "page"]
        lines = [json.dumps(dict(url=f"{server.address}/{name}.png", caption=f"thing {name}")) for name in names]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        monkeypatch.setattr("data_pipelines.io.retry.pause", lambda *_: 0.01)
        urls = build(tmp_path / "list.jsonl", "--attempts", "2")
    expected = [(f"thing {i}", encode(i)) for i in range(40) if i not in (4, 5, 6)]
    check_epoch(config, urls, expected, monkeypatch)
    assert left_out(tmp_path) == {"fetch failed": 1, "forbidden image": 1, "no image": 2, "not an image": 1}


def test_from_other_shards_with_a_filter(config, build, tmp_path, monkeypatch):
    members = {f"{i:03d}": sample(i) for i in range(60)}
    del members["050"]["txt"]
    write_tar(tmp_path / "old-0.tar", dict(list(members.items())[:25]))
    write_tar(tmp_path / "old-1.tar", dict(list(members.items())[25:]))
    urls = build(tmp_path / "old-{0..1}.tar", "--type", "tar", "--filter", "group >= 8 and 'red' in tags")
    expected = [(f"thing {i}", encode(i)) for i in range(16, 60) if i != 50]
    check_epoch(config, urls, expected, monkeypatch)
    assert left_out(tmp_path) == {"filtered": 16, "no caption": 1}
