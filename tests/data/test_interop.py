"""Shards of others, unmodified: the webdataset library's, img2dataset's; and ours, read by the webdataset library."""

import hashlib
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from ml_collections import ConfigDict
from PIL import Image
from tiny_shards import encode, write_tar

from data_pipelines.errors import DataError
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import training_image
from data_pipelines.io.storage import Files
from data_pipelines.prepare.writer import ImageRule, ShardWriter, sample_members
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer

SAMPLES, PER_SHARD = 40, 16


def picture(i: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(i)))


def epoch(config) -> dict[str, np.ndarray]:
    """Returns an epoch of the stream, caption -> pixels; every sample must come exactly once."""
    tokenizer, found = Tokenizer.load(config.inputs.text.tokenizer), []
    with open_stream(config, batch_size=config.lanes, seed=0) as stream:
        assert stream.epoch_size == stream.summary()["samples"]
        for _ in range(stream.epoch_size // config.lanes):
            batch = next(stream)
            found += zip(map(tokenizer.decode, batch["text"]), batch["image"])
        assert not stream.counters()["data/replaced"]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.fixture
def whole(config):
    """A config whose images are not cropped, and small enough to hold every sample of an epoch."""
    config.inputs.image.crop, config.inputs.image.size = "squash", 16
    return config


def read(config, urls, **entry) -> dict[str, np.ndarray]:
    config.sources = ConfigDict(dict(main=dict(urls=str(urls), **entry)))
    return epoch(config)


def assert_shown(found: dict[str, np.ndarray], stored: dict[str, bytes]) -> None:
    """The stream gave exactly these pictures, each decoded from these bytes."""
    assert found.keys() == stored.keys()
    for text, image in stored.items():
        expected = training_image(image, 16, lambda height, width: Box(0, 0, height, width))
        np.testing.assert_array_equal(found[text], expected, err_msg=text)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_shards_of_the_webdataset_library(tmp_path, whole, extension):
    with webdataset.ShardWriter(str(tmp_path / "s-%04d.tar"), maxcount=PER_SHARD, verbose=0) as writer:
        for i in range(SAMPLES):
            # The library encodes itself: an image, a text and an object.
            writer.write({"__key__": f"folder/{i:04d}", extension: picture(i), "txt": f"thing {i}", "json": {"i": i}})
    with webdataset.TarWriter(str(tmp_path / "s-0003.tar")) as writer:
        for i in range(SAMPLES, SAMPLES + 8):
            writer.write({"__key__": f"{i:04d}", extension: encode(i, extension), "txt": f"thing {i}".encode()})

    stored = {}
    for sample in webdataset.WebDataset(str(tmp_path / "s-{0000..0003}.tar"), shardshuffle=False):
        stored[sample["txt"].decode()] = sample[extension]
    assert stored.keys() == {f"thing {i}" for i in range(SAMPLES + 8)}

    assert_shown(read(whole, tmp_path / "s-{0000..0003}.tar"), stored)


def test_members_by_other_names(tmp_path, whole):
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        for i in range(SAMPLES):
            left, right = encode(i, "jpg"), encode(1000 + i, "jpg")
            writer.write({"__key__": f"{i:04d}", "Left.jpg": left, "right.jpg": right, "alt.txt": f"thing {i}"})
    for side, first in (("Left.jpg", 0), ("right.jpg", 1000)):
        stored = {f"thing {i}": encode(first + i, "jpg") for i in range(SAMPLES)}
        assert_shown(read(whole, tmp_path / "s.tar", image=side, caption="alt.txt"), stored)
    with pytest.raises(
        DataError,
        match=r"dot in the name: 40\)\. a key .*\. The first sample has the members left\.jpg, alt\.txt, right",
    ):
        read(whole, tmp_path / "s.tar")


def img2dataset_fields(i: int, image: bytes) -> dict:
    width, height = Image.open(io.BytesIO(image)).size
    return dict(
        caption=f"thing {i}", url=f"https://example.org/{i}.jpg", key=f"{i:09d}", status="success", error_message=None,
        width=width, height=height, original_width=4 * width, original_height=4 * height,
        exif=json.dumps({"Image Orientation": "Horizontal (normal)", "Image XResolution": "72"}),
        md5=hashlib.md5(image).hexdigest(),
    )  # fmt: skip


@pytest.fixture
def crawled(tmp_path) -> dict[int, bytes]:
    """Two shards as img2dataset leaves them, with its statistics and its table beside them; number -> image."""
    images = {}
    for shard in range(2):
        samples, rows = {}, []
        for i in range(shard * 10_000, shard * 10_000 + 24):  # it numbers samples by shard, and failures leave gaps
            images[i] = encode(i, "jpg", size=(256, 192) if i % 3 else (160, 256), quality=95)
            fields = img2dataset_fields(i, images[i])
            rows.append(fields)
            samples[f"{i:09d}"] = {
                "jpg": images[i],
                "json": json.dumps(fields, indent=4).encode(),
                "txt": fields["caption"].encode(),
            }
        failed = dict(
            rows[0], key=f"{i + 1:09d}", status="failed_to_download", error_message="HTTP Error 404", md5=None
        )
        write_tar(tmp_path / f"{shard:05d}.tar", samples)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, failed]), tmp_path / f"{shard:05d}.parquet")
        stats = dict(count=25, successes=24, failed_to_download=1, failed_to_resize=0, status_dict=dict(success=24))
        (tmp_path / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))
    return images


@pytest.mark.parametrize("urls", ["{00000..00001}.tar", "*.tar"])
def test_layout_of_img2dataset(tmp_path, whole, crawled, urls):
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert_shown(read(whole, tmp_path / urls), {f"thing {i}": image for i, image in crawled.items()})
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}


def test_fields_of_img2dataset_filter_and_caption(tmp_path, whole, crawled):
    wide = read(whole, tmp_path / "*.tar", filter='width >= 200 and original_width > 900 and status == "success"')
    assert wide.keys() == {f"thing {i}" for i in crawled if i % 3}
    whole.inputs.text.templates = ((1.0, "{caption} {width}"),)
    narrow = read(whole, tmp_path / "*.tar", filter="width < 200")
    assert narrow.keys() == {f"thing {i} 160" for i in crawled if not i % 3}
    with pytest.raises(DataError, match=r"widht.*did you mean 'width'"):
        read(whole, tmp_path / "*.tar", filter="widht >= 200")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_our_shards_are_read_by_the_webdataset_library(tmp_path, extension):
    long = "x" * 120  # a key that needs a pax header
    keys = [f"{i:05d}" for i in range(SAMPLES)] + ["größe", f"folder/{long}"]
    images = [encode(i, extension) for i in range(len(keys))]
    with Files() as files, ShardWriter(str(tmp_path / "s.tar"), files) as writer:
        for i, (key, image) in enumerate(zip(keys, images)):
            writer.add(key, sample_members(image, f"thing {i}, größer", dict(number=i), ImageRule()))

    stored = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in stored] == keys
    assert [sample[extension] for sample in stored] == images
    decoded = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).decode("pil"))
    for i, (sample, image) in enumerate(zip(decoded, images, strict=True)):
        assert sample["txt"] == f"thing {i}, größer" and sample["json"] == dict(number=i)
        np.testing.assert_array_equal(sample[extension], Image.open(io.BytesIO(image)).convert("RGB"))
