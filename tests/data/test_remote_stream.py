"""A stream from a bucket or a failing web server is, bit for bit, the stream from disk, and leaves nothing behind."""

import gc
import threading

import numpy as np
import pytest
from servers import FaultyServer, serving

from data_pipelines.errors import DataError
from data_pipelines.sources import sidecar
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.stream import open_stream

BATCHES = 14  # of 16: more than an epoch of 211 samples


@pytest.fixture
def web(shards, tmp_path, monkeypatch):
    """The three shards on a web server; their index goes to a cache folder of this test's own."""
    monkeypatch.setattr(sidecar, "_CACHE", tmp_path / "cache")
    with serving(FaultyServer()) as server:
        server.files = {f"set/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
        yield server


def take(config, **options) -> list[dict]:
    with open_stream(config, **(dict(batch_size=16, seed=5) | options)) as stream:
        return [next(stream) for _ in range(BATCHES)]


def assert_same(a: list[dict], b: list[dict]) -> None:
    for left, right in zip(a, b, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def remote(config, server):
    config.sources.main.urls = f"{server.address}/set/s-{{00..02}}.tar"
    config.remote.update(attempts=4, timeout=5.0, backoff=0.001)
    config.readers = 6
    return config


@pytest.mark.parametrize("fault", ["none", "503", "half", "short", "reset", "drop"])
def test_every_kind_of_trouble_changes_nothing(config, web, fault):
    expected = take(config)
    if fault != "none":
        web.faults = dict.fromkeys(web.files, (fault, 2))
    assert_same(take(remote(config, web)), expected)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("storage", "data"))]


def test_memory_stores_keep_their_index_beside_the_shards(config, shards, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    expected, store, folder = take(config), MemoryFileSystem(), f"/{tmp_path.name}"
    for path in shards.glob("*.tar"):
        store.pipe_file(f"{folder}/{path.name}", path.read_bytes())
    config.sources.main.urls = f"memory:/{folder}/s-*.tar"
    assert_same(take(config), expected)
    assert len(store.ls(f"{folder}/.index")) == 1
    store.rm(folder, recursive=True)


def test_the_index_of_a_web_server_is_kept_in_the_cache(config, web, tmp_path):
    take(remote(config, web))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    web.requests.clear()
    with open_stream(config, batch_size=16, seed=5):
        assert not [r for r in web.requests if r.name.endswith(".tar") and r.range != "bytes=0-0"], "scanned again"


def test_evaluation_reads_from_a_server(config, web, shards):
    here = EvalSet(str(shards / "s-{00..02}.tar"), config)
    there = EvalSet(f"{web.address}/set/s-{{00..02}}.tar", config)
    assert [record.key for record in here.records] == [record.key for record in there.records]
    assert_same(list(there.batches(32)), list(here.batches(32)))


def test_connections_end_with_the_set_that_used_them(config, web):
    """At once, and not when the garbage collector comes by: no error on the way keeps its callers alive."""
    gc.disable()
    try:
        EvalSet(f"{web.address}/set/s-01.tar", config)  # the server has no index of it
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("storage")]
    finally:
        gc.enable()


@pytest.mark.parametrize(("fault", "message"), [("503", "503"), ("404", "does not exist"), ("403", "forbidden")])
def test_a_shard_that_never_comes_ends_the_start_with_its_name(config, web, fault, message):
    web.faults["set/s-01.tar"] = (fault, 10**6)
    with pytest.raises(DataError, match=rf"data\.sources\.main: .*s-01\.tar.*{message}"):
        open_stream(remote(config, web), batch_size=16, seed=5)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("storage")]


def test_a_shard_that_vanishes_in_the_run_ends_it_with_its_name(config, web):
    config.prefetch = 0
    with open_stream(remote(config, web), batch_size=16, seed=5) as stream:
        next(stream)
        web.faults["set/s-01.tar"] = ("404", 10**6)
        with pytest.raises(DataError, match=r"s-01\.tar.*does not exist"):
            for _ in range(40):
                next(stream)


def test_signed_addresses_are_read_and_never_shown(config, web, tmp_path, caplog):
    expected = take(config)
    remote(config, web).sources.main.urls = tuple(f"{web.address}/set/s-{i:02d}.tar?sig=SECRET{i}" for i in range(3))
    assert_same(take(config, workdir=tmp_path), expected)
    assert "SECRET" not in caplog.text
    web.faults["set/s-02.tar"] = ("403", 10**6)
    with pytest.raises(DataError) as error:
        open_stream(config, batch_size=16, seed=5)
    assert "s-02.tar" in str(error.value) and "SECRET" not in str(error.value)
