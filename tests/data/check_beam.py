"""Builds and indexes made with Apache Beam are those made without it.

Not part of the suite: Beam's pins of protobuf, pyarrow and Pillow are older than ours. In an environment of its own:

    python -m venv beam && beam/bin/pip install apache-beam pytest ml-collections fsspec numpy pillow simplejpeg \
        opencv-python-headless tokenizers rich
    beam/bin/python -m pytest --noconftest tests/data/check_beam.py
"""

from pathlib import Path

from tiny_inputs import data_section, make_rules
from tiny_shards import sample, write_tar

from data_pipelines.io.storage import Files
from data_pipelines.prepare.beam import beam_options, index_with_beam, run_beam
from data_pipelines.prepare.building import Limits, build, plan
from data_pipelines.prepare.writer import ImageRule
from data_pipelines.sources import index_source, open_source


def test_beam_gives_the_same_shards(tmp_path):
    options = beam_options(["--runner=DirectRunner"])
    entry = dict(type="synthetic", samples=90, scale=0.1)
    with Files() as files:
        config = data_section()
        source = open_source("input", entry, config, files, every_field=True)
        how = Limits(samples=20), ImageRule(64), make_rules(), files
        make = lambda out, **engine: build(plan(source, str(out), *how), {}, **engine)
        ours = make(tmp_path / "local")
        theirs = make(tmp_path / "beam", run=lambda job, shards: run_beam(job, shards, options))
    assert ours == theirs
    assert len(ours["shards"]) == 5
    for path in (tmp_path / "local").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "beam" / path.name).read_bytes()


def test_beam_gives_the_same_index(tmp_path):
    options = beam_options(["--runner=DirectRunner"])
    for name in ("here", "beam"):
        for folder in ("a", "b"):
            for shard in range(2):
                numbers = {f"{i:03d}": sample(i) for i in range(10 * shard, 10 * shard + 7 + shard)}
                del numbers[f"{10 * shard + 2:03d}"]["txt"]
                (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
                write_tar(tmp_path / name / folder / f"{shard}.tar", numbers)
    urls = lambda name: str(tmp_path / name / "{a,b}" / "*.tar")
    entry = lambda name: dict(urls=urls(name), unique="caption")
    engine = lambda stats, captions, files, measures, _: index_with_beam(stats, captions, files, measures, options)
    with Files() as files:
        config = data_section()
        ours = index_source("main", entry("here"), config, files)
        theirs = index_source("main", entry("beam"), config, files, engine=engine)
        assert theirs.samples == ours.samples == 26
        assert theirs.skipped == ours.skipped == {"no caption": 4}
        for a, b in zip(ours.shards, theirs.shards):
            assert (a.ends.tolist(), a.counts.tolist(), a.facts()["skipped_keys"]) == (
                b.ends.tolist(), b.counts.tolist(), b.facts()["skipped_keys"],
            )  # fmt: skip
            assert [column.tolist() for column in a.columns.values()] == [c.tolist() for c in b.columns.values()]
        assert sorted(path.parent.parent.name for path in (tmp_path / "beam").rglob("*.npz")) == ["a", "b"]
        # What is known is not scanned again; one new shard joins the others in the index of its folder.
        write_tar(tmp_path / "beam" / "b" / "2.tar", {"900": sample(900)})
        scanned = []
        note = lambda stats, *rest: scanned.extend(stats) or engine(stats, *rest)
        assert index_source("main", entry("beam"), config, files, engine=note).samples == 27
        assert [Path(stat.path).name for stat in scanned] == ["2.tar"]
        assert open_source("main", entry("beam"), config, files).samples == 14  # both folders hold the same
