"""The tar reader agrees with the standard library's writer, and stops exactly at damage."""

import io
import tarfile

import pytest
from tiny_shards import write_tar

from data_pipelines.io.tar import BLOCK, TarDamage, groups, members


def reader(content: bytes):
    return lambda offset, size: content[offset : offset + size]


def names_and_data(content: bytes, start: int = 0, end: int | None = None) -> list[tuple[str, bytes]]:
    found = members(reader(content), start, len(content) if end is None else end)
    return [(m.name, content[m.offset : m.offset + m.size]) for m in found]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_standard_library_writes(tmp_path, tar_format):
    # A long folder needs ustar's prefix field, a GNU long name or a pax header.
    samples = {f"{'folder/' * 20}k{i}": dict(txt=b"x" * (i * 300), jpg=bytes([i])) for i in range(6)}
    content = write_tar(tmp_path / "a.tar", samples, tar_format).read_bytes()
    expected = [(f"{key}.{ext}", data) for key, parts in samples.items() for ext, data in parts.items()]
    assert names_and_data(content) == expected


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_very_long_and_foreign_names(tmp_path, tar_format):
    samples = {"ä" * 200: dict(txt=b"1"), "😀": dict(txt=b"2")}
    content = write_tar(tmp_path / "a.tar", samples, tar_format).read_bytes()
    assert [name for name, _ in names_and_data(content)] == ["ä" * 200 + ".txt", "😀.txt"]


def header(name: str, size_field: bytes, kind: bytes = b"0") -> bytes:
    raw = bytearray(BLOCK)
    raw[: len(name)] = name.encode()
    raw[124:136] = size_field
    raw[156:157] = kind
    raw[257:263] = b"ustar\0"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def test_base_256_sizes_and_pax_sizes_reach_beyond_8_gib():
    size = 9 * 2**30
    base256 = b"\x80" + size.to_bytes(11, "big")
    body = b" size=%d\n" % size
    record = b"%d" % (len(body) + 2) + body  # a record states its own length, its two digits included
    pax = header("x", b"%011o\0" % len(record), b"x") + record.ljust(BLOCK, b"\0") + header("b.jpg", b"0" * 11 + b"\0")
    for head in (header("b.jpg", base256), pax):
        found = next(members(reader(head), 0, 10 * 2**30))
        assert (found.name, found.size, found.offset) == ("b.jpg", size, len(head))


def test_folders_links_and_archive_remarks_are_passed_over():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        for name, kind in (("d.dir", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            tar.addfile(info)
        info = tarfile.TarInfo("a.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    content = buffer.getvalue()
    assert [(m.name, m.without) for m in members(reader(content), 0, len(content))] == [
        ("l.jpg", "link"), ("h.jpg", "link"), ("a.txt", ""),
    ]  # fmt: skip
    assert names_and_data(content)[2:] == [("a.txt", b"hi")]


def test_groups_as_webdataset_does(tmp_path):
    order = [
        "a/1.jpg",
        "a/1.TXT",
        "a/1.seg.png",
        "b/1.jpg",
        "a/2.jpg",
        ".hidden.jpg",
        "README",
        "__meta__.json",
        "a/2.txt",
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in order:
            tar.addfile(tarfile.TarInfo(name))
    content = buffer.getvalue()
    found = [(g.key, list(g.members)) for g in groups(reader(content), 0, len(content))]
    assert found == [("a/1", ["jpg", "txt", "seg.png"]), ("b/1", ["jpg"]), ("a/2", ["jpg", "txt"])]


def test_every_truncation_gives_the_samples_before_it(tmp_path):
    content = write_tar(tmp_path / "a.tar", {f"{i}": dict(jpg=b"j" * 700, txt=b"t") for i in range(3)}).read_bytes()
    whole = list(groups(reader(content), 0, len(content)))
    for cut in range(0, whole[-1].end, 100):
        found, damaged = [], False
        try:
            for group in groups(reader(content[:cut]), 0, cut):
                found.append(group.key)
        except TarDamage as damage:
            damaged = damage.reason == "truncated tail"
        intact = [m for g in whole for m in g.members.values() if m.offset + m.size <= cut]
        # Between two members nothing shows that there were more; a cut inside one also drops its sample's others.
        assert damaged == (cut > max((m.end for m in intact), default=0))
        complete = [g.key for g in whole if g.members["txt"] in intact]
        assert found[: len(complete) - 1] == complete[:-1]
        assert set(found) <= {m.name.split(".")[0] for m in intact}


def test_a_wrong_checksum_is_damage(tmp_path):
    content = bytearray(write_tar(tmp_path / "a.tar", {f"{i}": dict(jpg=b"j") for i in range(3)}).read_bytes())
    content[2 * 1024 + 3] ^= 1  # in the name of the third member
    found = []
    with pytest.raises(TarDamage, match="corrupt header at byte 1,024"):
        for group in groups(reader(bytes(content)), 0, len(content)):
            found.append(group.key)
    assert found == ["0"]  # the sample before the damage may lack members: it counts as damaged


@pytest.mark.parametrize("field", [b"-0000000001\0", b"99999999999\0", b"\xff" * 12])
def test_impossible_sizes_are_damage(field):
    content = header("a.jpg", field) + bytes(4 * BLOCK)
    with pytest.raises(TarDamage):
        list(members(reader(content), 0, len(content)))
