"""Builds with Apache Beam give the bytes of local builds.

Not part of the suite: Beam's pins of protobuf, pyarrow and Pillow are older than ours. In an environment of its own:

    python -m venv beam && beam/bin/pip install apache-beam pytest ml-collections fsspec numpy pillow simplejpeg \
        opencv-python-headless tokenizers rich
    beam/bin/python -m pytest --noconftest tests/data/check_beam.py
"""

from configs.base import get_config
from data_pipelines.beam import beam_options, run_beam
from data_pipelines.building import Limits, build, plan
from data_pipelines.sources import open_source
from data_pipelines.storage import Files
from data_pipelines.writer import ImageRule


def test_beam_gives_the_same_shards(tmp_path):
    options = beam_options(["--runner=DirectRunner"])
    entry = dict(type="synthetic", samples=90, scale=0.1)
    with Files() as files:
        source = open_source("input", entry, get_config().data, files, every_field=True)
        make = lambda out, **how: build(plan(source, str(out), Limits(samples=20), ImageRule(64), files), {}, **how)
        ours = make(tmp_path / "local")
        theirs = make(tmp_path / "beam", run=lambda job, shards: run_beam(job, shards, options))
    assert ours == theirs
    assert len(ours["shards"]) == 5
    for path in (tmp_path / "local").iterdir():
        assert path.read_bytes() == (tmp_path / "beam" / path.name).read_bytes()
