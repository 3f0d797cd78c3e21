"""An index that a disk or a stranger damaged: what is left is read, or one line says what is wrong."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import DataError
from tests.fuzzing import damaged, damaged_json, survives
from xmodal.search.index import MANIFEST, Index
from xmodal.search.parts import Part
from xmodal.search.query import Query, Searcher

NAMES = ("00000.safetensors", "00001.jsonl", "00002.thumbnails", MANIFEST)


@pytest.fixture(scope="module")
def model(made_index):
    return Searcher.open(made_index).model


@pytest.fixture(scope="module")
def damaged_index(made_index, tmp_path_factory):
    """A copy of the index, of which each case damages one file."""
    return shutil.copytree(made_index, tmp_path_factory.mktemp("damaged") / "pictures")


def look_at_everything(folder, model):
    index = Index(folder)
    list(index.records())
    for row in range(len(index)):
        index.record(row)
        index.thumbnail(row)
    searcher = Searcher(index, model)
    for among in searcher.among:
        searcher.search(Query(sample=len(index) - 1, among=among, top=3))


def look_anew(folder, model, name, content, case):
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        survives(lambda: look_at_everything(folder, model), (DataError,), case)
    finally:
        (folder / name).write_bytes(before)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes(damaged_index, model, fuzz_cases, name):
    content = (damaged_index / name).read_bytes()
    for seed in range(fuzz_cases):
        look_anew(damaged_index, model, name, damaged(content, seed), (name, seed))


def test_a_damaged_manifest(damaged_index, model, fuzz_cases):
    manifest = json.loads((damaged_index / MANIFEST).read_text())
    for seed in range(2 * fuzz_cases):
        text = json.dumps(damaged_json(manifest, seed)).encode()
        look_anew(damaged_index, model, MANIFEST, text, (MANIFEST, seed))


def test_a_damaged_header(damaged_index, model, fuzz_cases):
    name = NAMES[0]
    content = (damaged_index / name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for seed in range(2 * fuzz_cases):
        text = json.dumps(damaged_json(header, seed)).encode()
        text += b" " * (-len(text) % 8)
        changed = len(text).to_bytes(8, "little") + text + content[8 + length :]
        look_anew(damaged_index, model, name, changed, ("header", seed))


def test_damaged_records(damaged_index, model, fuzz_cases):
    name = NAMES[1]
    lines = (damaged_index / name).read_text().splitlines()
    path = damaged_index / "00001.safetensors"
    before, arrays, note = path.read_bytes(), load_file(path), Part(damaged_index, 1).note
    try:
        for seed in range(fuzz_cases):
            lines[0] = json.dumps(damaged_json(json.loads(lines[1]), seed))
            arrays["record_end"] = np.cumsum([len(line.encode()) + 1 for line in lines])
            save_file(arrays, path, metadata=dict(note=json.dumps(note)))
            look_anew(damaged_index, model, name, "".join(f"{line}\n" for line in lines).encode(), (name, seed))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(index_copy, model, bad):
    path = index_copy / NAMES[0]
    arrays, note = load_file(path), Part(index_copy, 0).note
    arrays["image"][3, 1] = bad
    save_file(arrays, path, metadata=dict(note=json.dumps(note)))
    for query in (Query("w9"), Query(sample=3)):
        with pytest.raises(DataError, match=r"00000\.safetensors holds embeddings that are NaN or infinite"):
            Searcher(Index(index_copy), model).search(query)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_refused(index_copy, model, tmp_path, name):
    secret = tmp_path / "secret"
    shutil.copy(index_copy / name, secret)
    (index_copy / name).unlink()
    (index_copy / name).symlink_to(secret)
    with pytest.raises(DataError, match=f"{name} is a link"):
        look_at_everything(index_copy, model)


def test_pipes_are_refused(index_copy, model):
    (index_copy / NAMES[2]).unlink()
    os.mkfifo(index_copy / NAMES[2])
    with pytest.raises(DataError, match="is no plain file"):
        look_at_everything(index_copy, model)


def test_what_is_no_jpeg_is_no_thumbnail(index_copy):
    content = (index_copy / NAMES[2]).read_bytes()
    (index_copy / NAMES[2]).write_bytes(b"root:x:0" + content[8:])
    index = Index(index_copy)
    with pytest.raises(DataError, match="is no JPEG"):
        [index.thumbnail(row) for row in range(len(index))]
