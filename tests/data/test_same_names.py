"""Data sets whose shards and keys are called the same: their samples are different ones, in batches and in lists."""

import json

import numpy as np
import pytest
from tiny_shards import encode, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.names import shard_labels
from data_pipelines.order.grouped import write_groups
from data_pipelines.sources import open_source
from data_pipelines.sources.sample_lists import write_names
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.rows import hash64
from data_pipelines.stream.stream import open_stream

COUNT = 64


def key(i: int) -> str:
    return f"{i:09d}"


@pytest.fixture
def places(tmp_path):
    """Two outputs of img2dataset, two CSV lists and two folders, each pair of the same names and of other content."""
    for part, name in enumerate(("cc3m", "cc12m")):
        folder = tmp_path / name
        (folder / "photos").mkdir(parents=True)
        samples = {key(i): dict(png=encode(2 * i + part), txt=f"{name} {i}".encode()) for i in range(COUNT)}
        write_tar(folder / "00000.tar", samples)
        rows = ["image,caption"]
        for i in range(COUNT):
            (folder / "photos" / f"{i}.png").write_bytes(encode(2 * i + part))
            (folder / "photos" / f"{i}.txt").write_text(f"{name} {i}")
            rows.append(f"photos/{i}.png,{name} {i}")
        (folder / "pairs.csv").write_text("\n".join(rows))
    return tmp_path


def entries(places, kind: str) -> list[dict]:
    name = dict(tar="00000.tar", csv="pairs.csv", folder="photos")[kind]
    more = {} if kind == "tar" else dict(type="files")
    return [dict(urls=str(places / part / name), **more) for part in ("cc3m", "cc12m")]


def ids_of(config, sources, batches=4, batch_size=32) -> list[np.ndarray]:
    config.sources = sources
    with open_stream(config, batch_size=batch_size, seed=0) as stream:
        return [next(stream)["key_id"].copy() for _ in range(batches)]


@pytest.mark.parametrize("kind", ["tar", "csv", "folder"])
@pytest.mark.parametrize("together", [False, True])
def test_no_sample_is_another_ones_positive(config, places, kind, together):
    a, b = entries(places, kind)
    sources = dict(one=a | dict(urls=(a["urls"], b["urls"]))) if together else dict(a=a, b=b)
    found = np.concatenate(ids_of(config, sources))
    assert len(np.unique(found, axis=0)) == 2 * COUNT


def test_synthetic_data_of_other_seeds_are_other_samples(config):
    made = [dict(type="synthetic", samples=COUNT, seed=seed, scale=0.1) for seed in (0, 1)]
    found = np.concatenate(ids_of(config, dict(a=made[0], b=made[1])))
    assert len(np.unique(found, axis=0)) == 2 * COUNT


def test_names_that_say_enough_stay_as_they_are(config, places):
    """The identity of a sample is its shard's file name and its key wherever no other shard is called so."""
    found = np.concatenate(ids_of(config, dict(a=entries(places, "tar")[0]), batches=2))
    wanted = hash64(f"00000.tar/{key(i)}" for i in range(COUNT))
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in wanted.tolist()}
    config.sources = {}
    records = EvalSet(entries(places, "tar")[0], config).records
    assert [(r.shard, r.key) for r in records[:2]] == [("00000.tar", key(i)) for i in (0, 1)]


def test_a_file_that_two_sources_read_holds_the_same_samples(config, places):
    a, _ = entries(places, "tar")
    found = np.concatenate(ids_of(config, dict(a=a, b=a)))
    assert len(np.unique(found, axis=0)) == COUNT


def test_evaluations_tell_them_apart(config, places):
    a, b = entries(places, "tar")
    found = EvalSet(dict(urls=(a["urls"], b["urls"])), config)
    assert len(set(found.names)) == 2 * COUNT == len({(record.shard, record.key) for record in found.records})
    assert {record.shard for record in found.records} == {"cc3m/00000.tar", "cc12m/00000.tar"}


def test_labels():
    assert shard_labels(["/a/x.tar", "/b/y.tar"]) == {"/a/x.tar": "x.tar", "/b/y.tar": "y.tar"}
    assert shard_labels(["/a/x.tar", "/b/y.tar"], 2) == {"/a/x.tar": "a/x.tar", "/b/y.tar": "b/y.tar"}
    assert shard_labels(["s3://b/u/d/x.tar", "s3://b/v/d/x.tar", "z.tar"]) == {
        "s3://b/u/d/x.tar": "u/d/x.tar", "s3://b/v/d/x.tar": "v/d/x.tar", "z.tar": "z.tar"
    }  # fmt: skip
    assert sorted(shard_labels(["x.tar", "a/x.tar"]).values()) == ["a/x.tar", "x.tar"]
    assert shard_labels(["d/.unpacked/x.tar"], 2) == {"d/.unpacked/x.tar": "d/x.tar"}


def left(config, entry) -> list[str]:
    with Files() as files:
        source = open_source("main", entry, config, files)
        table = source.blocks(2**20)
        return [sample.record.text for i in range(len(table)) for sample in source.read(table, i)]


@pytest.mark.parametrize("extension", ["txt", "npy"])
def test_lists_name_the_data_set(config, places, extension):
    """A list that was made for one data set leaves the other alone, whether they are one source or two."""
    a, b = entries(places, "tar")
    both, out = dict(urls=(a["urls"], b["urls"])), str(places / f"drop.{extension}")
    with Files() as files:
        write_names(out, [(a["urls"], key(i)) for i in range(40)], files)
    if extension == "txt":
        assert (places / "drop.txt").read_text().startswith(f"cc3m/00000.tar/{key(0)}\n")
    assert left(config, both | dict(drop=out)) == [f"cc3m {i}" for i in range(40, 64)] + [
        f"cc12m {i}" for i in range(64)
    ]
    assert len(left(config, a | dict(drop=out))) == 24 and len(left(config, b | dict(drop=out))) == 64
    assert left(config, both | dict(keep=out)) == [f"cc3m {i}" for i in range(40)]


def test_names_that_can_mean_two_samples_are_refused(config, places):
    a, b = entries(places, "tar")
    both = dict(urls=(a["urls"], b["urls"]))
    (places / "drop.txt").write_text("".join(f"00000.tar/{key(i)}\n" for i in range(40)))
    with pytest.raises(DataError, match=r"names samples of 00000\.tar, and 2 shards .* write the folder"):
        left(config, both | dict(drop=str(places / "drop.txt")))
    assert len(left(config, a | dict(drop=str(places / "drop.txt")))) == 24, "one shard of that name: as before"


def test_a_drop_list_of_other_data_is_said(config, places, caplog):
    (places / "drop.txt").write_text(f"elsewhere/00000.tar/{key(1)}\n")
    assert len(left(config, entries(places, "tar")[0] | dict(drop=str(places / "drop.txt")))) == 64
    assert "none of the 1 names" in caplog.text and f"such as cc3m/00000.tar/{key(0)}" in caplog.text


def test_groups_name_the_data_set(config, places):
    a, b = entries(places, "tar")
    groups = [[(entry["urls"], key(2 * i + j)) for j in (0, 1)] for entry in (a, b) for i in range(COUNT // 2)]
    with Files() as files:
        write_groups(str(places / "groups.npy"), groups, files)
    config.sources = dict(main=dict(urls=(a["urls"], b["urls"]), groups=str(places / "groups.npy")))
    config.lanes = 2
    with open_stream(config, batch_size=32, seed=0) as stream:
        assert stream.summary()["samples"] == 2 * COUNT
    with Files() as files:  # as older versions wrote them
        np.save(places / "old.npy", np.load(places / "groups.npy"))
        write_groups(str(places / "old.npy"), [[("00000.tar", k) for _, k in group] for group in groups[:32]], files)
    config.sources.main.groups = str(places / "old.npy")
    with pytest.raises(DataError, match=r"old\.npy names samples of 00000\.tar, and 2 shards"):
        open_stream(config, batch_size=32, seed=0)
    config.sources.main.urls = a["urls"]
    with open_stream(config, batch_size=32, seed=0) as stream:
        assert stream.summary()["samples"] == COUNT


def test_what_is_dropped_is_named(config, places):
    a, _ = entries(places, "tar")
    (places / "drop.txt").write_text(f"cc3m/00000.tar/{key(7)}\n")
    config.sources = dict(main=a | dict(drop=str(places / "drop.txt")))
    with open_stream(config, batch_size=32, seed=0, workdir=places / "run"):
        (line,) = (places / "run" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == dict(shard=a["urls"], key=key(7), reason="in the drop list")
