"""The writer: shards that any reader reads, whole or not at all, with images as they are or as they were asked for."""

import io
import json
import tarfile

import pytest
import webdataset
from PIL import Image
from tiny_shards import encode

from data_pipelines.errors import BadSample, DataError
from data_pipelines.io.storage import Files
from data_pipelines.io.tar import groups
from data_pipelines.prepare.writer import ImageRule, ShardWriter, is_draft, prepare_image, sample_members


@pytest.fixture
def files():
    with Files() as files:
        yield files


def write(path, files, names=("a", "b")):
    with ShardWriter(str(path), files) as writer:
        for i, name in enumerate(names):
            writer.add(name, sample_members(encode(i), f"thing {i}", dict(number=i, name="größe"), ImageRule()))
    return writer


def test_every_reader_reads_the_same(tmp_path, files):
    path = tmp_path / "s.tar"
    long = "folder/" * 20 + "x" * 90
    writer = write(path, files, ("a", "é-ü", long))
    content = path.read_bytes()
    assert (writer.samples, writer.bytes) == (3, len(content))
    assert len(content) % 10240 == 0
    found = list(groups(lambda offset, size: content[offset : offset + size], 0, len(content)))
    assert [group.key for group in found] == ["a", "é-ü", long]
    with tarfile.open(path) as tar:
        assert tar.extractfile("a.png").read() == encode(0)
        assert all((info.mtime, info.uid, info.gid) == (0, 0, 0) for info in tar)
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert [sample["txt"] for sample in theirs] == [b"thing 0", b"thing 1", b"thing 2"]
    assert json.loads(theirs[1]["json"]) == dict(number=1, name="größe")


def test_equal_samples_give_equal_bytes(tmp_path, files):
    write(tmp_path / "a.tar", files)
    write(tmp_path / "b.tar", files)
    write("memory://bucket/a.tar", files)
    assert (
        (tmp_path / "a.tar").read_bytes()
        == (tmp_path / "b.tar").read_bytes()
        == files.read_all("memory://bucket/a.tar")
    )


def test_a_shard_is_there_whole_or_not_at_all(tmp_path, files):
    path = tmp_path / "s.tar"
    with pytest.raises(RuntimeError), ShardWriter(str(path), files) as writer:
        writer.add("a", dict(txt=b"text"))
        (draft,) = tmp_path.iterdir()
        assert is_draft(draft.name)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_key_with_a_dot_is_refused(tmp_path, files):
    with pytest.raises(DataError, match=r"'a\.b' holds a dot"), ShardWriter(str(tmp_path / "s.tar"), files) as writer:
        writer.add("a.b", dict(txt=b"text"))


def test_json_holds_what_json_can_hold():
    fields = dict(score=float("nan"), nested=[dict(x=float("inf"))], text="half \ud800 pair")
    record = json.loads(sample_members(encode(1), "a", fields, ImageRule())["json"])
    assert record == dict(score=None, nested=[dict(x=None)], text="half ? pair")
    assert "json" not in sample_members(encode(1), "a", {}, ImageRule())


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_images_are_copied_byte_for_byte(extension):
    image = encode(3, extension)
    for rule in (ImageRule(), ImageRule(max_side=24), ImageRule(max_side=24, quality=80)):
        assert prepare_image(image, rule) == (extension, image)


def test_large_images_are_made_smaller():
    extension, content = prepare_image(encode(3, size=(60, 40)), ImageRule(max_side=30))
    assert extension == "jpg"
    with Image.open(io.BytesIO(content)) as small:
        assert (small.format, small.size) == ("JPEG", (30, 20))
    assert prepare_image(encode(3, size=(600, 1)), ImageRule(max_side=30))[1]  # a side does not vanish


def test_quality_alone_makes_every_image_anew():
    image = encode(3, "jpg", quality=95)
    low, high = (prepare_image(image, ImageRule(quality=quality))[1] for quality in (20, 90))
    assert len(low) < len(high) < 2 * len(image)


def test_the_note_that_an_image_is_to_be_turned_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    _, content = prepare_image(encode(3, "jpg", size=(60, 40), exif=exif), ImageRule(max_side=30))
    with Image.open(io.BytesIO(content)) as small:
        assert (small.size, small.getexif()[0x0112]) == ((30, 20), 6)


@pytest.mark.parametrize(("content", "reason"), [(b"<html>", "not an image"), (encode(1, "jpg")[:-30], "corrupt jpeg")])
def test_what_is_no_image_is_not_written(content, reason):
    with pytest.raises(BadSample, match=reason):
        prepare_image(content, ImageRule())
