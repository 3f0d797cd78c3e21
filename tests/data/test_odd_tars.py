"""Tars as other programs write them: every sample is read, or left out with the reason that is true."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile

import pytest
import zstandard
from tiny_inputs import data_section
from tiny_shards import encode, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io import packed
from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source

IMAGE = encode(1, "jpg")


@pytest.fixture
def opened():
    """Opens a source of one tar; its files are open as long as the test."""
    with Files() as files:
        yield lambda path: open_source("d", dict(urls=str(path)), data_section(), files)


def keys(source) -> list[str]:
    blocks = source.blocks(2**20)
    return [sample.key for i in range(len(blocks)) for sample in source.read(blocks, i)]


def pairs(*names: str) -> dict[str, dict[str, bytes]]:
    return {name: dict(jpg=IMAGE, txt=f"caption {name}".encode()) for name in names}


def pack(path, *members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                tar.addfile(info)
    return path


def test_keys_that_begin_with_underscores_are_keys(opened, tmp_path):
    names = ["__Ab3kZx91QQ", "_b", "--b", "__", "a__", "__d/e"]
    content = pairs(*names) | {"__manifest__": dict(json=b"{}"), "__MACOSX/._a": dict(jpg=b"junk")}
    source = opened(write_tar(tmp_path / "a.tar", content))
    assert keys(source) == [name for name in names if name != "__"] and source.skipped == {}


def test_members_that_do_not_lie_side_by_side_are_told(opened, tmp_path, caplog):
    apart = [(f"{i}.jpg", IMAGE) for i in range(3)] + [(f"{i}.txt", b"c") for i in range(3)]
    with pytest.raises(DataError, match=r"members apart: 3\).* side by side: .*--sort=name") as error:
        opened(pack(tmp_path / "a.tar", *apart))
    assert "no image" not in str(error.value)
    source = opened(pack(tmp_path / "b.tar", *apart, ("x.jpg", IMAGE), ("x.txt", b"c"), ("y.jpg", IMAGE)))
    assert keys(source) == ["x"] and source.skipped == {"members apart": 3, "no caption": 1}
    assert [fault.key for fault in source.faults()] == ["0", "1", "2", "y"]
    assert "3 samples are left out (members apart)" in caplog.text


def test_links_and_sparse_members_have_a_reason_of_their_own(opened, tmp_path):
    links = [
        ("b.jpg", (tarfile.SYMTYPE, "a.jpg")),
        ("b.txt", b"d"),
        ("c.jpg", IMAGE),
        ("c.txt", (tarfile.LNKTYPE, "a")),
    ]
    source = opened(pack(tmp_path / "a.tar", ("a.jpg", IMAGE), ("a.txt", b"c"), *links))
    assert keys(source) == ["a"] and source.skipped == {"link": 2}
    with pytest.raises(DataError, match=r"link: 2\)\. links have no content: .*--hard-dereference"):
        opened(pack(tmp_path / "b.tar", *links))
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text("c")
        (folder / f"{name}.jpg").write_bytes(IMAGE)
    with open(folder / "b.jpg", "r+b") as file:  # with so many holes that their map takes blocks of its own
        for place in range(1, 40):
            file.seek(place * 2**16)
            file.write(b"x" * 4096)
    for kind in ("gnu", "posix"):
        path = tmp_path / f"{kind}.tar"
        subprocess.run(
            ["tar", "--sparse", f"--format={kind}", "--sort=name", "-C", folder, "-cf", path, "."], check=True
        )
        source = opened(path)
        assert keys(source) == ["./a", "./c"], kind
        assert [(fault.key, fault.reason) for fault in source.faults()] == [("./b", "sparse member")]


@pytest.mark.parametrize(
    "members, words",
    [
        ([("22.05.jpg", IMAGE), ("22.05.txt", b"x")], r"dot in the name: 1\)\. a key ends at the first dot"),
        ([("a.jpg", IMAGE), ("a.json", b'{"caption": "c"}')], r"templates such as \(\(1\.0, '\{caption\}'\),\)"),
        ([("a.jpg", IMAGE), ("a.txt", "a cat".encode("utf-16"))], r"bad text: 1\)\. texts are read as UTF-8"),
    ],
)
def test_what_is_missing_is_told_with_a_way_out(opened, tmp_path, members, words):
    with pytest.raises(DataError, match=words):
        opened(pack(tmp_path / "a.tar", *members))


def test_joined_archives_are_told(opened, tmp_path, caplog):
    one, two = (write_tar(tmp_path / f"{name}.tar", pairs(name)).read_bytes() for name in "ab")
    (tmp_path / "c.tar").write_bytes(one + two)
    assert opened(tmp_path / "c.tar").skipped == {"early end mark": 1}
    assert "tar --concatenate" in caplog.text


@pytest.mark.parametrize(
    "ending, pack_with",
    [
        (".tar.gz", gzip.compress),
        (".tgz", gzip.compress),
        (".tar.bz2", bz2.compress),
        (".tar.xz", lzma.compress),
        (".tar.zst", zstandard.compress),
    ],
)
def test_compressed_shards_are_unpacked(opened, tmp_path, ending, pack_with):
    content = write_tar(tmp_path / "plain", pairs("a", "b")).read_bytes()
    (tmp_path / f"s{ending}").write_bytes(pack_with(content))
    source = opened(tmp_path / f"s{ending}")
    assert keys(source) == ["a", "b"] and [os.path.basename(name) for name in source.shard_names()] == ["s.tar"]
    (tmp_path / "s.tar").write_bytes(pack_with(content))
    with pytest.raises(DataError, match=r"is not a tar archive but compressed \(\w+\); name it with one of"):
        opened(tmp_path / "s.tar")
    (tmp_path / f"s{ending}").write_bytes(pack_with(content)[:-30])
    with pytest.raises(DataError, match=r"is damaged and cannot be unpacked|no usable sample|truncated"):
        opened(tmp_path / f"s{ending}")


def test_a_replaced_shard_of_the_same_time_and_size_is_unpacked_again(opened, tmp_path):
    path, times = tmp_path / "s.tar.gz", (10**9, 10**9)
    packs = [gzip.compress(write_tar(tmp_path / "t", pairs(name)).read_bytes(), 0, mtime=0) for name in ("a", "b")]
    assert len(packs[0]) == len(packs[1])
    for content, name in zip(packs, "ab"):
        path.write_bytes(content)
        os.utime(path, times)
        assert keys(opened(path)) == [name]


def test_shards_of_other_endings_share_no_twin(opened, tmp_path):
    for ending, name in ((".tar.gz", "a"), (".tgz", "b")):
        (tmp_path / f"x{ending}").write_bytes(gzip.compress(write_tar(tmp_path / "t", pairs(name)).read_bytes()))
    assert packed.unpacked(tmp_path / "x.tgz") != packed.unpacked(tmp_path / "x.tar.gz")
    assert keys(opened(tmp_path / "x.tgz")) == ["b"] and keys(opened(tmp_path / "x.tar.gz")) == ["a"]
    assert keys(opened(tmp_path / "x.tgz")) == ["b"]


def test_a_bomb_is_not_unpacked(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_MOST", 2**20)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(8 * 2**20)))
    with pytest.raises(DataError, match=r"bomb\.tar\.gz unpacks to more than .* MiB, .*which no tar of samples does"):
        opened(path)
    assert list((tmp_path / ".unpacked").iterdir()) == []
