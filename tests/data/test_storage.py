"""Files on disk and in stores behind one interface, with everything that networks do to them."""

import contextlib
import gzip
import io
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from servers import FaultyServer, GoogleStorage, serving

from data_pipelines.errors import DataError
from data_pipelines.io import packed, readahead, remote, retry, storage
from data_pipelines.io.storage import Files, Forbidden, MissingFile, in_flight
from data_pipelines.io.tar import groups

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


@pytest.fixture
def server():
    with serving(FaultyServer()) as server:
        server.files["a.tar"] = CONTENT
        yield server


@pytest.fixture
def files():
    with Files(attempts=4, timeout=5.0, backoff=0.001) as files:
        yield files
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("storage")]


@pytest.fixture(scope="module")
def moto():
    """An S3 server, found as users have it: through the environment."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = dict(
        ENDPOINT_URL=f"http://{host}:{port}", ACCESS_KEY_ID="key", SECRET_ACCESS_KEY="secret", REGION="us-east-1"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto):
    import boto3

    s3 = boto3.client("s3")
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket="data")
    s3.put_object(Bucket="data", Key="set/a.tar", Body=CONTENT, ACL="public-read")
    yield s3
    for entry in s3.list_objects_v2(Bucket="data").get("Contents", []):
        s3.delete_object(Bucket="data", Key=entry["Key"])
    s3.close()


@pytest.fixture
def google(monkeypatch):
    with serving(GoogleStorage()) as server:
        server.put("data/set/a.tar", CONTENT)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        yield server


# ---------------------------------------------------------------------------------------------- names


def test_only_plain_paths_and_known_stores_are_read(files):
    for path, words in {
        "pipe:curl -s 'https://host/a?key=secret'": "'pipe' is not supported",
        "file:///data/a.tar": "'file' is not supported",
        "simplecache::s3://data/a.tar": "'simplecache::s3' is not supported",
        "zip://a.tar::file:///data/a.zip": "'zip' is not supported",
        "gcs://data/a.tar": "did you mean 'gs'",
    }.items():
        for access in (files.stat, files.glob, files.read_all, files.exists):
            with pytest.raises(DataError, match=words) as error:
                access(path)
            assert "secret" not in str(error.value)
    assert storage.is_remote("pipe:cat a.tar") and not storage.is_remote("/data/a::b.tar")


def test_the_query_of_a_web_address_is_no_part_of_its_name():
    signed = "https://user:pass@host/set/a.tar?X-Amz-Signature=b/c"
    assert storage.basename(signed) == "a.tar"
    assert storage.printable(signed) == "https://host/set/a.tar"
    assert storage.join(storage.parent(signed), ".index", "x.json") == "https://user:pass@host/set/.index/x.json"
    assert storage.basename("s3://data/set/what?.tar") == "what?.tar"
    assert storage.parent("s3://data/a.tar") == "s3://data"
    assert storage.join(storage.parent("/data/a.tar"), "b.tar") == "/data/b.tar"


def test_a_missing_package_names_the_command_that_installs_it(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3:// needs the package s3fs .*pip install -e '.\[remote\]'"):
        files.stat("s3://data/a.tar")


# ---------------------------------------------------------------------------------------------- every store


@pytest.fixture(params=["disk", "memory", "s3", "gs"])
def folder(request, tmp_path, files):
    """A folder that can be written, in each kind of place."""
    if request.param == "disk":
        return str(tmp_path)
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    request.getfixturevalue("bucket" if request.param == "s3" else "google")
    return f"{request.param}://data/deep/{tmp_path.name}"


def test_what_is_written_is_read(folder, files):
    path = storage.join(folder, "new", "a [1].bin")
    assert not files.exists(path)
    files.write_atomic(path, CONTENT)
    assert files.exists(path)
    assert files.stat(path).size == len(CONTENT)
    assert files.read_all(path) == CONTENT
    assert files.read(path, 1000, 2001) == CONTENT[1000:2001]
    assert files.read(path, 7, 7) == b""


def test_the_version_changes_with_the_content_and_only_then(folder, files):
    path = storage.join(folder, "a.bin")
    files.write_atomic(path, b"one")
    before = files.stat(path)
    assert files.stat(path) == before
    time.sleep(0.01)  # the times of files are that exact
    files.write_atomic(path, b"two")
    assert files.stat(path).version != before.version
    assert files.stat_many([path]) == {path: files.stat(path)}


def test_missing_and_short_files_are_told_apart(folder, files):
    path = storage.join(folder, "a.bin")
    with pytest.raises(MissingFile, match=r"a.bin does not exist"):
        files.stat(path)
    with pytest.raises(MissingFile, match=r"a.bin does not exist"):
        files.read(path, 0, 10)
    files.write_atomic(path, CONTENT[:1000])
    with pytest.raises(DataError, match=r"stale index: .*a.bin ends at 1,000, expected 1,500 bytes"):
        files.read(path, 900, 1500)
    with pytest.raises(DataError, match=r"stale index: .*a.bin ends at 1,000, expected 2,500 bytes"):
        files.read(path, 2000, 2500)


def test_patterns_match_files_of_a_folder(folder, files):
    for name in ("a-00.tar", "a-01.tar", "a-10.tar", "b.tar", "a-02.tar/deep.tar"):
        files.write_atomic(storage.join(folder, name), b"x")
    for pattern, names in {
        "a-*.tar": ("a-00.tar", "a-01.tar", "a-10.tar"),
        "a-0?.tar": ("a-00.tar", "a-01.tar"),
        "a-[01]0.tar": ("a-00.tar", "a-10.tar"),
        "c*": (),
    }.items():
        assert files.glob(storage.join(folder, pattern)) == [storage.join(folder, name) for name in names]


@pytest.mark.parametrize("count", [3, 40])
def test_many_files_are_looked_up_at_once(folder, files, count):
    paths = [storage.join(folder, f"a-{i:02d}.bin") for i in range(count)]
    for i, path in enumerate(paths[:-1]):
        files.write_atomic(path, bytes(i + 1))
    found = files.stat_many([*paths, paths[0]])
    assert [found[path] for path in paths[:-1]] == [files.stat(path) for path in paths[:-1]]
    assert paths[-1] not in found
    with Files(concurrency=3) as other:  # of other connections, which may remember nothing of these
        other.write_atomic(paths[0], b"changed")
        other.write_atomic(paths[-1], b"new")
    assert [files.stat_many(paths)[path].size for path in (paths[0], paths[-1])] == [7, 3]
    assert files.glob(storage.join(folder, "a-*.bin")) == paths
    assert files.stat_many([storage.join(folder, "nowhere", path) for path in "abcdefghijklmnopqrstuvw"]) == {}


def test_a_bucket_is_listed_once_for_many_files(google, files):
    for i in range(40):
        google.put(f"data/many/{i}.tar", b"x")
    assert len(files.stat_many(f"gs://data/many/{i}.tar" for i in range(40))) == 40
    assert [request.name for request in google.requests] == ["data/"]


def test_files_open_as_libraries_want_them(folder, files, monkeypatch):
    monkeypatch.setattr(readahead, "_CHUNK", 50_000)
    path = storage.join(folder, "a.gz")
    files.write_atomic(path, gzip.compress(CONTENT))
    with files.open(path) as file, gzip.open(file) as plain:
        assert plain.read() == CONTENT
    with files.open(path) as file:
        file.seek(-8, io.SEEK_END)
        assert int.from_bytes(file.read()[4:], "little") == len(CONTENT)


# ---------------------------------------------------------------------------------------------- disk


def test_a_failed_write_leaves_nothing(tmp_path, files):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        files.write_atomic(str(tmp_path / "taken"), b"x")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_local_read_is_in_flight_until_it_returns(tmp_path, files):
    os.mkfifo(tmp_path / "stuck")  # opening it for reading waits for a writer, as on a network disk that hangs
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(files.read, str(tmp_path / "stuck"), 5, 9)
        while not in_flight():
            time.sleep(0.005)
        (read,) = in_flight()
        assert read[:3] == (str(tmp_path / "stuck"), 5, 9) and read.seconds >= 0
        assert in_flight(longer_than=100.0) == []
        os.close(os.open(tmp_path / "stuck", os.O_WRONLY))
        with pytest.raises(DataError):
            reading.result()
    assert in_flight() == []


# ---------------------------------------------------------------------------------------------- web servers


@pytest.mark.parametrize("kind", ["500", "503", "429", "half", "short", "reset", "drop", "drip", "hang"])
def test_passing_faults_do_not_show(server, monkeypatch, kind):
    monkeypatch.setattr(remote, "PART", 40_000)
    slow = kind in ("drip", "hang")
    server.faults["a.tar"] = (kind, 1 if slow else 2)
    with Files(attempts=8, timeout=0.2 if slow else 5.0, backoff=0.001) as files:
        assert files.read(f"{server.address}/a.tar", 10, 100_010) == CONTENT[10:100_010]
    asked = [request for request in server.requests if request.range != "bytes=0-0"]
    assert len(asked) >= 6 if slow else len(asked) == 9  # three parts; a busy machine may add to the slow ones


def test_large_reads_go_in_parallel_parts_and_never_more_than_allowed(server, monkeypatch):
    monkeypatch.setattr(remote, "PART", 20_000)
    server.latency = 0.02
    seen = []
    with Files(concurrency=3) as files, ThreadPoolExecutor(2) as pool:
        reads = [pool.submit(files.read, f"{server.address}/a.tar", 0, 150_000) for _ in range(2)]
        while not all(read.done() for read in reads):
            seen.append(len(server.connections))
            time.sleep(0.002)
        assert all(read.result() == CONTENT[:150_000] for read in reads)
    assert max(seen) == 3
    assert len(server.requests) == 16


@pytest.mark.parametrize(
    ("status", "kind"), [("404", MissingFile), ("403", Forbidden), ("401", Forbidden), ("400", DataError)]
)
def test_what_no_attempt_can_change_is_not_tried_again(server, files, status, kind):
    server.faults["a.tar"] = (status, 99)
    for access in (files.stat, lambda url: files.read(url, 0, 10)):
        server.requests.clear()
        with pytest.raises(kind, match=r"a.tar"):
            access(f"{server.address}/a.tar")
        assert len(server.requests) == 1


def test_giving_up_names_file_range_attempts_and_cause_but_no_secret(server, files, caplog):
    caplog.set_level(logging.DEBUG, "data_pipelines")
    for kind, cause in {
        "503": "503 Service Unavailable",
        "reset": "Connection reset|payload|disconnect",
        "hang": "timed out",
    }.items():
        server.faults["a.tar"] = (kind, 99)
        with (
            Files(attempts=3, timeout=0.1 if kind == "hang" else 5.0, backoff=0.001) as files,
            pytest.raises(
                DataError, match=rf"gave up on .*/a.tar \(bytes 5 to 1,000\) after 3 attempts.*({cause})"
            ) as error,
        ):
            files.read(f"{server.address}/a.tar?X-Amz-Signature=secret", 5, 1000)
        assert "secret" not in str(error.value)
        assert error.value.__context__ is None or error.value.__suppress_context__
    assert "attempt 2 of 3" in caplog.text and "secret" not in caplog.text


def test_errors_of_libraries_lose_their_secrets():
    error = OSError("400, message='no', url='https://me:word@host/a.tar?key=secret&more=secret'")
    assert retry.cause(error) == "OSError: 400, message='no', url='https://host/a.tar'"


def test_a_signed_url_is_sent_as_it_is_written(server, files):
    server.files["a b.tar"] = CONTENT
    assert files.read(f"{server.address}/a%20b.tar?key=%2F%3D", 0, 5) == CONTENT[:5]
    assert files.read(f"{server.address}/a b.tar", 0, 5) == CONTENT[:5]
    assert server.targets == ["/a%20b.tar?key=%2F%3D", "/a%20b.tar"]


@pytest.mark.parametrize("kind", ["plain", "flood"])
def test_a_server_that_ignores_ranges_is_noticed_before_it_sends_the_file(server, files, kind):
    server.faults["a.tar"] = (kind, 99)
    url = f"{server.address}/a.tar"
    assert files.stat(url).size == len(CONTENT)
    for start, end in ((0, 1000), (1000, 2000), (1, len(CONTENT))):
        with pytest.raises(DataError, match="ignores ranges and sends whole files"):
            files.read(url, start, end)
    if kind == "plain":  # the whole file is what was asked for
        assert files.read_all(url) == CONTENT


def test_other_bytes_than_asked_for_are_noticed(server, files):
    server.faults["a.tar"] = ("shifted", 99)
    with pytest.raises(DataError, match="asked for byte 100 on and the server sent other bytes"):
        files.read(f"{server.address}/a.tar", 100, 200)


def test_web_versions_follow_the_tag(server, files):
    url = f"{server.address}/a.tar"
    assert files.stat(url).version == f"{len(CONTENT)} bytes"
    server.tags["a.tar"] = '"one"'
    assert files.stat(url) == (url, len(CONTENT), "one")
    server.tags["a.tar"] = '"two"'
    assert files.stat(url).version == "two"
    server.files["empty"] = b""
    assert files.stat(f"{server.address}/empty").size == 0 and files.read_all(f"{server.address}/empty") == b""


def test_web_servers_neither_list_nor_take_files(server, files):
    with pytest.raises(DataError, match=r"cannot list files.*braces"):
        files.glob(f"{server.address}/*.tar")
    with pytest.raises(OSError, match="read only"):
        files.write_atomic(f"{server.address}/b.tar", b"x")


# ---------------------------------------------------------------------------------------------- closing


def test_closing_ends_reads_threads_and_connections(server):
    server.faults["a.tar"] = ("hang", 99)
    server.files["b.tar"] = CONTENT
    url, good = f"{server.address}/a.tar", f"{server.address}/b.tar"
    limits = dict(attempts=1, timeout=5.0)
    files, other = Files(**limits), Files(**limits)
    assert other.read(good, 0, 10) == CONTENT[:10]
    with ThreadPoolExecutor(8) as pool, files:
        reads = [pool.submit(files.read, f"{url}?key=secret", i, i + 10) for i in range(8)]
        while len(server.requests) < 9:
            time.sleep(0.005)
        assert sorted(read[:3] for read in in_flight()) == [(url, i, i + 10) for i in range(8)]
        files.close()
        assert all(isinstance(read.exception(), CancelledError) for read in reads)
    assert in_flight() == []
    assert other.read(good, 10, 20) == CONTENT[10:20]  # the connections of others stay
    other.close()
    other.close()
    while server.connections:
        time.sleep(0.005)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("storage")]
    for access in (lambda: files.stat(good), lambda: files.read(__file__, 0, 1)):
        with pytest.raises(CancelledError):
            access()


def test_a_program_that_closes_nothing_ends_in_silence(server):
    program = (
        "from data_pipelines.io.storage import Files; import sys; files = Files(); print(files.stat(sys.argv[1]).size)"
    )
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program, f"{server.address}/a.tar"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (f"{len(CONTENT)}\n", "", 0)


# ---------------------------------------------------------------------------------------------- buckets


def test_buckets_of_others_are_forbidden(moto, bucket, files, monkeypatch):
    with pytest.raises(MissingFile, match=r"s3://nowhere/a.tar does not exist"):
        files.stat("s3://nowhere/a.tar")
    with pytest.raises(MissingFile, match=r"set is a folder|set does not exist"):
        files.stat("s3://data/set")
    with pytest.raises(OSError):
        files.write_atomic("s3://nowhere/a.tar", b"x")


def test_public_buckets_need_no_credentials(moto, bucket, monkeypatch, tmp_path):
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    for name in ("SHARED_CREDENTIALS_FILE", "CONFIG_FILE"):
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with Files(backoff=0.001) as files, pytest.raises(Forbidden, match=r"needs credentials.*FSSPEC_S3"):
        files.stat("s3://data/set/a.tar")
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", dict(anon=True))  # as FSSPEC_S3 has it at start
    with Files() as files:
        assert files.stat("s3://data/set/a.tar").size == len(CONTENT)


def test_s3_is_asked_as_often_as_configured_and_no_more(moto, server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    server.files["data/a.tar"] = CONTENT
    for kind, times, attempts in (
        ("503", 2, 3),
        ("half", 1, 2),
        ("short", 1, 2),
        ("403", 9, 1),
        ("404", 9, 1),
        ("503", 9, 4),
        ("drop", 9, 4),
    ):
        server.faults["data/a.tar"] = (kind, times)
        server.forget()
        with Files(attempts=4, backoff=0.001) as files:
            if times < 4:
                assert files.read("s3://data/a.tar", 10, 1000) == CONTENT[10:1000]
            else:
                with pytest.raises(DataError, match=r"a.tar"):
                    files.read("s3://data/a.tar", 10, 1000)
        asked = len([request for request in server.requests if request.range])
        # Where a connection breaks before an answer, aiohttp itself asks once more at once.
        assert asked in ((attempts, 2 * attempts) if kind == "drop" else (attempts,)), kind


# ---------------------------------------------------------------------------------------------- scans and twins


def test_a_scan_reads_ahead_and_jumps_over_large_members(server, files, monkeypatch):
    monkeypatch.setattr(readahead, "_CHUNK", 1000)
    url, size = f"{server.address}/a.tar", len(CONTENT)
    with files.buffered(url, size) as read:
        for offset in range(0, 20_000, 100):
            assert read(offset, 50) == CONTENT[offset : offset + 50]
            assert read(max(offset - 500, 0), 50) == CONTENT[max(offset - 500, 0) :][:50]
        assert len(read._chunks) <= 6
        for offset in range(30_500, 290_000, 10_000):
            assert read(offset, 100) == CONTENT[offset : offset + 100]
        asked = [request.range for request in server.requests]
        assert len(set(asked)) == len(asked)
        assert all(entry.endswith("999") for entry in asked)  # whole chunks, also for what lies a little behind
        jumps = [entry for entry in asked if len(entry) == len("bytes=30000-30999") and entry >= "bytes=30000"]
        assert jumps == [f"bytes={start}-{start + 999}" for start in range(30_000, 100_000, 10_000)]
        assert read(5, 10) == CONTENT[5:15]  # far back
        assert server.requests[-1].range == "bytes=5-14"
        assert read(size - 10, 100) == CONTENT[-10:] and read(size, 5) == b""
        assert read(size - 25_500, 8_000) == CONTENT[-25_500:-17_500]


def test_a_remote_tar_is_scanned_as_a_local_one(server, files, shards):
    path = str(shards / "s-00.tar")
    server.files["s.tar"] = files.read_all(path)
    size = files.stat(path).size
    with files.buffered(path, size) as local, files.buffered(f"{server.address}/s.tar", size) as distant:
        expected = list(groups(local, 0, size))
        assert list(groups(distant, 0, size)) == expected and len(expected) == 90


def test_the_twin_of_a_remote_gzipped_tar_follows_its_version(server, files, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_CACHE", tmp_path)
    server.files["a.tar.gz"], server.tags["a.tar.gz"] = gzip.compress(CONTENT), "one"
    url = f"{server.address}/a.tar.gz?key=secret"
    assert packed.is_packed(url)
    twin = packed.unpacked(url, files)
    assert twin.name == "a.tar" and twin.read_bytes() == CONTENT
    asked = len(server.requests)
    assert packed.unpacked(url, files) == twin and len(server.requests) == asked + 1
    server.files["a.tar.gz"], server.tags["a.tar.gz"] = gzip.compress(CONTENT[::-1]), "two"
    assert packed.unpacked(url, files).read_bytes() == CONTENT[::-1]
    server.files["a.tar.gz"], server.tags["a.tar.gz"] = gzip.compress(CONTENT)[:-9], "three"
    with pytest.raises(DataError, match=r"a.tar.gz is damaged") as error:
        packed.unpacked(url, files)
    assert "secret" not in str(error.value) and os.listdir(twin.parent) == ["a.tar"]


def test_pauses_grow_and_are_the_same_in_each_run():
    pauses = [retry.pause(1.0, attempt, "a") for attempt in range(1, 12)]
    assert pauses == [retry.pause(1.0, attempt, "a") for attempt in range(1, 12)]
    assert all(2 ** (n - 1) / 2 <= pause < 2 ** (n - 1) for n, pause in enumerate(pauses[:6], 1))
    assert max(pauses) <= 60
    assert len({retry.pause(1.0, 1, name) for name in "abcdefgh"}) == 8


def test_an_answer_that_never_ends_is_not_read(server, files):
    server.files["a.tar"], server.faults["a.tar"] = CONTENT, ("endless", 99)
    with pytest.raises(DataError, match=r"a\.tar was asked for 90 bytes and the server sent more"):
        files.read(f"{server.address}/a.tar", 10, 100)
