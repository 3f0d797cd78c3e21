"""`keep` and `drop`: lists of samples, as text or as hashes, for every kind of source."""

import json

import numpy as np
import pytest
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.modalities import inputs_of
from data_pipelines.names import sample_name, shard_labels
from data_pipelines.sources import open_source
from data_pipelines.sources.sample_lists import located, name_hashes, write_names
from data_pipelines.stream.stream import open_stream
from data_pipelines.workers import in_processes


@pytest.fixture
def sources(tmp_path):
    """Entries of two shards with the same keys, and of a list whose rows have the same names as another's."""
    for shard in range(2):
        write_tar(tmp_path / f"s-{shard}.tar", {f"a/{i:03d}": sample(40 * shard + i) for i in range(40)})
    rows = []
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
        rows.append(dict(image=f"{i}.png", caption=f"picture {i}"))
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return dict(
        tar=dict(urls=str(tmp_path / "s-{0..1}.tar")),
        files=dict(type="files", urls=str(tmp_path / "list.jsonl")),
        synthetic=dict(type="synthetic", samples=25, scale=0.1),
    )


def read(source):
    table = source.blocks(3000)
    return [sample for i in range(len(table)) for sample in source.read(table, i)]


@pytest.mark.parametrize("extension", ["txt", "npy"])
@pytest.mark.parametrize("kind", ["tar", "files", "synthetic"])
def test_lists_choose_the_samples_they_name(config, sources, tmp_path, kind, extension):
    out = str(tmp_path / f"list.{extension}")
    with Files() as files:
        whole = read(open_source("main", sources[kind], config, files))
        named = [(s.shard, s.key) for s in whole[1::3]]
        assert write_names(out, [*named, ("elsewhere.tar", "a/001")], files) == len(named) + 1
        kept, dropped = (open_source("main", sources[kind] | {how: out}, config, files) for how in ("keep", "drop"))
        assert [s.record.text for s in read(kept)] == [s.record.text for s in whole[1::3]]
        assert kept.skipped == {"not in the keep list": len(whole) - len(named)}
        rest = [s.record.text for i, s in enumerate(whole) if i % 3 != 1]
        assert [s.record.text for s in read(dropped)] == rest and dropped.samples == len(rest)
        assert kept.identity() != dropped.identity()


def test_a_name_is_the_same_in_text_hash_and_source(config, sources, tmp_path):
    with Files() as files:
        source = open_source("main", sources["tar"], config, files)
        for least in (1, 2, 3, 99):
            labels = shard_labels(source.shard_names(), least)
            names = [sample_name(s.shard, s.key, labels) for s in read(source)]
            (tmp_path / "names.txt").write_text("\n".join([*names, "", *names]) + "\n")
            assert len(set(names)) == 80
            chosen = open_source("main", sources["tar"] | dict(keep=str(tmp_path / "names.txt")), config, files)
            assert chosen.samples == 80
            hashes = name_hashes([(labels[s.shard], s.key) for s in read(source)])
            np.testing.assert_array_equal(located(chosen, hashes, "list"), np.arange(80))


def test_lists_come_before_unique(config, sources, tmp_path):
    """The first of two equal keys is dropped: the second one then is the first."""
    (tmp_path / "drop.txt").write_text("s-0.tar/a/003\r\ns-0.tar/a/004\n")
    config.sources.main = sources["tar"] | dict(unique="key", drop=str(tmp_path / "drop.txt"))
    config.lanes = 2
    with open_stream(config, batch_size=2, seed=0) as stream:
        assert stream.summary()["samples"] == 40
        assert stream.summary()["skipped"] == {"in the drop list": 2, "duplicate": 38}
    with Files() as files:
        texts = [s.record.text for s in read(open_source("main", config.sources.main, config, files))]
    assert texts[:3] == ["thing 0", "thing 1", "thing 2"] and texts[-2:] == ["thing 43", "thing 44"]


def test_several_lists_are_one(config, sources, tmp_path):
    for i in range(3):
        (tmp_path / f"keep-{i}.txt").write_text(f"s-1.tar/a/{i:03d}\n")
    with Files() as files:
        entry = sources["tar"] | dict(keep=(str(tmp_path / "keep-{0..1}.txt"), str(tmp_path / "keep-2.txt")))
        source = open_source("main", entry, config, files)
        assert [s.record.text for s in read(source)] == ["thing 40", "thing 41", "thing 42"]
        parts = list(in_processes(_texts, range(2), 2, source))  # a source goes to other processes
        assert parts == [["thing 40", "thing 41", "thing 42"]] * 2


def _texts(_, source):
    return [s.record.text for s in read(source)]


def test_what_is_wrong_with_a_list_is_said(config, sources, tmp_path):
    def refused(match, how, content, name="bad.txt"):
        (tmp_path / name).write_bytes(content)
        with Files() as files, pytest.raises(DataError, match=match):
            open_source("main", sources["tar"] | {how: str(tmp_path / name)}, config, files)

    refused(r"line 2 of .*bad\.txt is '003'; expected SHARD/KEY", "keep", b"s-0.tar/a/001\n003\n")
    refused(r"none of the 1 names .* 80 samples .* such as [^/]+/s-0\.tar/a/000", "keep", b"a-0.tar/a/001")
    refused(r"no list of samples", "drop", b"no array", "bad.npy")
    np.save(tmp_path / "floats.npy", np.ones(3))
    refused(r"holds float64 \(3,\)", "drop", (tmp_path / "floats.npy").read_bytes(), "floats.npy")
    every = b"".join(b"s-%d.tar/a/%03d\n" % (shard, i) for shard in range(2) for i in range(40))
    refused("names all of the 80 samples", "drop", every)
    with Files() as files, pytest.raises(DataError, match="no file matches"):
        open_source("main", sources["tar"] | dict(keep=str(tmp_path / "none.txt")), config, files)


def test_samples_without_captions_are_usable_where_they_may_be(config, tmp_path):
    plain = {"a": dict(png=encode(1)), "b": dict(png=encode(2), txt=b"a text"), "c": dict(txt=b"no picture")}
    write_tar(tmp_path / "u.tar", plain)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode(i))
    templates, inputs = ((1.0, "{label}"),), inputs_of(config).changed("text", required=False)
    with Files() as files:
        texts = lambda **entry: [
            source.rules.captions(s.record)
            for source in [open_source("main", entry, config, files, inputs=inputs)]
            for s in read(source)
        ]
        assert texts(urls=str(tmp_path / "u.tar")) == [[""], ["a text"]]
        assert texts(type="files", urls=str(tmp_path / "photos")) == [[""]] * 3
        assert open_source("main", dict(urls=str(tmp_path / "u.tar")), config, files).samples == 1
        with pytest.raises(DataError, match="no usable image"):
            open_source("main", dict(type="files", urls=str(tmp_path / "photos")), config, files)
        plain["d"] = dict(png=encode(3), json=b'{"label": "chair"}')
        write_tar(tmp_path / "u.tar", plain)
        assert texts(urls=str(tmp_path / "u.tar"), templates=templates) == [[], [], ["chair"]]
