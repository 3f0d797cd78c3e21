"""Damaged lists, tables, tars and indexes: what is left is read, or one line says what is wrong."""

import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import damaged, damaged_json, survives
from tiny_inputs import data_section
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source

ROWS = 30
IMAGES = [encode(i, "jpg") for i in range(3)]


def read(path: Path, kind: str) -> None:
    """Opens a source of one file and reads all of it."""
    with Files() as files:
        source = open_source("d", dict(type=kind, urls=str(path)), data_section(), files)
        blocks = source.blocks(2**14)
        for i in range(len(blocks)):
            for found in source.read(blocks, i):
                source.rules.captions(found.record)
        list(source.faults())


def table(kind: str) -> bytes:
    buffer = io.BytesIO()
    captions = [f"thing {i}" for i in range(ROWS)]
    if kind == "embedded":
        columns = dict(image=[dict(bytes=IMAGES[i % 3], path=None) for i in range(ROWS)], caption=captions)
    else:
        columns = dict(image=[f"{i}.jpg" for i in range(ROWS)], caption=captions, tags=[["a", "b"]] * ROWS)
    pq.write_table(pa.table(columns), buffer, row_group_size=10, compression="snappy" if kind == "embedded" else "none")
    return buffer.getvalue()


def rows() -> list[dict]:
    return [dict(image=f"{i}.jpg", caption=f"thing, {i}", tags=["a"], size=i * 0.5) for i in range(ROWS)]


def lists() -> dict[str, bytes]:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", "caption", "tags", "size"])
    writer.writeheader()
    writer.writerows(rows())
    values = text.getvalue().encode()
    return {
        "a.csv": values,
        "a.tsv": values.replace(b",", b"\t"),
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows()).encode(),
        "a.json": json.dumps(rows()).encode(),
        "embedded.parquet": table("embedded"),
        "paths.parquet": table("paths"),
    }


@pytest.fixture
def folder(tmp_path):
    for i in range(ROWS):
        (tmp_path / f"{i}.jpg").write_bytes(IMAGES[i % 3])
    return tmp_path


@pytest.mark.parametrize("name", lists())
def test_damaged_lists(folder, name, fuzz_cases):
    content = lists()[name]
    for seed in range(fuzz_cases):
        (folder / name).write_bytes(damaged(content, seed))
        survives(lambda: read(folder / name, "files"), (DataError,), f"{name} {seed}")


@pytest.mark.parametrize("name", ["embedded.parquet", "paths.parquet"])
def test_names_of_columns_that_are_no_text(folder, name):
    content = lists()[name]
    places = [match.start() for match in re.finditer(b"image", content)]
    assert len(places) > 1, "the schema and each row group name it"
    for place in places:
        (folder / name).write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        survives(lambda: read(folder / name, "files"), (DataError,), f"{name} {place}")


@pytest.mark.parametrize("layout", ["rows", "coco", "karpathy", "columns"])
def test_damaged_documents(folder, layout, fuzz_cases):
    images = [dict(id=i, file_name=f"{i}.jpg") for i in range(4)]
    document = dict(
        rows=rows()[:4],
        coco=dict(images=images, annotations=[dict(image_id=i, caption="a") for i in range(4)]),
        karpathy=dict(images=[dict(filepath="", filename=f"{i}.jpg", sentences=[dict(raw="a")]) for i in range(4)]),
        columns=dict(image={str(i): f"{i}.jpg" for i in range(4)}, caption={str(i): "a" for i in range(4)}),
    )[layout]
    for seed in range(fuzz_cases):
        (folder / "a.json").write_text(json.dumps(damaged_json(document, seed)))
        survives(lambda: read(folder / "a.json", "files"), (DataError,), f"{layout} {seed}")


def test_damaged_tars(tmp_path, fuzz_cases):
    content = write_tar(tmp_path / "a.tar", {f"{i:03d}": sample(i) for i in range(8)}).read_bytes()
    for seed in range(fuzz_cases):
        (tmp_path / "a.tar").write_bytes(damaged(content, seed))
        survives(lambda: read(tmp_path / "a.tar", "tar"), (DataError,), seed)


@pytest.mark.parametrize("kind", ["tar", "files"])
def test_damaged_indexes_are_made_again(folder, kind, fuzz_cases):
    path = folder / ("a.tar" if kind == "tar" else "a.jsonl")
    if kind == "tar":
        write_tar(path, {f"{i:03d}": sample(i) for i in range(8)})
    else:
        path.write_bytes(lists()["a.jsonl"])
    read(path, kind)
    (index,) = (folder / ".index").iterdir()
    content = index.read_bytes()
    for seed in range(fuzz_cases):
        index.write_bytes(damaged(content, seed))
        survives(lambda: read(path, kind), (), f"{kind} {seed}")
