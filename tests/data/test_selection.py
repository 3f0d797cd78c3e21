"""Samples chosen at index time: duplicates left out, batches of captions of equal length."""

import hashlib
import io
import json
import os
import time
from collections import Counter

import numpy as np
import pytest
from faults import one_bit_png
from PIL import Image
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.modalities import inputs_of
from data_pipelines.order import buckets
from data_pipelines.sources import index, open_source
from data_pipelines.sources.measures import difference_hash
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.__main__ import main


def captions_of(config, batches) -> list[str]:
    tokenizer = Tokenizer.load(config.inputs.text.tokenizer)
    return [tokenizer.decode(row) for batch in batches for row in batch["text"]]


def with_repeats(folder, times: int = 3):
    """Two shards with 40 samples, of which each is there `times` times under other keys in other files."""
    for shard in range(2):
        made = {}
        for i in range(20 * shard, 20 * shard + 20):
            for turn in range(times):
                extension = ("png", "webp", "png")[turn]
                text = f"thing {i}" if turn else f"THING  {i}"  # `lower` and the spaces make them one caption
                made[f"{turn}-{i:03d}"] = {
                    extension: encode(i, extension, (96, 80), lossless=True),
                    "txt": text.encode(),
                    "json": b"{}",
                }
        made[f"0-{20 * shard:03d}x"] = sample(500 + shard)
        write_tar(folder / f"r-{shard}.tar", made)
    return str(folder / "r-{0..1}.tar")


@pytest.mark.parametrize("unique", ["caption", "image"])
def test_duplicates_are_left_out_and_counted(config, tmp_path, unique):
    config.sources.main = dict(urls=with_repeats(tmp_path), unique=unique)
    config.lanes = 2
    with open_stream(config, batch_size=2, seed=0, workdir=tmp_path / "run") as stream:
        assert stream.summary()["samples"] == 42
        assert stream.summary()["skipped"] == {"duplicate": 80}
        assert stream.counters()["data/skipped/duplicate"] == 80
        seen = Counter(captions_of(config, [next(stream) for _ in range(21)]))
    assert set(seen.values()) == {1} and len(seen) == 42
    lines = list(map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()))
    named = {(os.path.basename(line["shard"]), line["key"]) for line in lines}
    wanted = {
        (f"r-{shard}.tar", f"{turn}-{20 * shard + i:03d}") for shard in range(2) for turn in (1, 2) for i in range(20)
    }
    assert named == wanted and len(lines) == 80 and {line["reason"] for line in lines} == {"duplicate"}


def test_the_first_of_equal_keys_stays(config, tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"k-{shard}.tar", {f"{i:03d}": sample(100 * shard + i) for i in range(30)})
    config.sources.main = dict(urls=str(tmp_path / "k-{0..1}.tar"), unique="key")
    with Files() as files:
        source = open_source("main", config.sources.main, config, files)
        table = source.blocks(3000)
        read = [sample for i in range(len(table)) for sample in source.read(table, i)]
    assert [s.record.text for s in read] == [f"thing {i}" for i in range(30)]
    assert all(s.shard.endswith("k-0.tar") for s in read)


def test_measures_come_from_the_sidecar_the_second_time(config, tmp_path, monkeypatch):
    config.sources.main = dict(urls=with_repeats(tmp_path), unique="image")
    openings = []
    for _ in range(2):
        with Files() as files:
            source = open_source("main", config.sources.main, config, files)
            openings.append((source.samples, source.identity()))
        monkeypatch.setattr(index, "scan", lambda *_: pytest.fail("scanned again"))
    assert openings[0] == openings[1]


def test_unique_works_for_every_kind_of_source(config, tmp_path):
    listing = tmp_path / "list.jsonl"
    (tmp_path / "a.png").write_bytes(encode(1, size=(96, 80)))
    (tmp_path / "b.jpg").write_bytes(encode(1, "jpg", (96, 80), quality=90))
    (tmp_path / "c.png").write_bytes(encode(2, size=(96, 80)))
    rows = [dict(image=name, caption=f"caption {name}") for name in ("a.png", "b.jpg", "c.png")]
    listing.write_text("\n".join(map(json.dumps, rows)))
    with Files() as files:
        source = open_source("main", dict(type="files", urls=str(listing), unique="image"), config, files)
        table = source.blocks(10**6)
        assert [s.record.text for s in source.read(table, 0)] == ["caption a.png", "caption c.png"]


def test_rows_have_no_keys(config):
    config.sources.main = dict(type="synthetic", samples=50, unique="key")
    with pytest.raises(DataError, match=r"main: unique is 'key', and synthetic samples have none; expected 'caption'"):
        open_stream(config, batch_size=8, seed=0)


def test_unknown_likeness(config):
    config.sources.main.unique = "captions"
    with pytest.raises(DataError, match=r"data\.sources.main: unique is 'captions'.*did you mean 'caption'"):
        open_stream(config, batch_size=16, seed=0)


def test_difference_hash_knows_a_picture_again():
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(encode(7, size=(320, 240))))
    picture.resize((200, 150)).save(buffer, "JPEG", quality=60)
    same, other = difference_hash(buffer.getvalue()), difference_hash(encode(8, size=(320, 240)))
    whole = difference_hash(encode(7, size=(320, 240)))
    assert (whole ^ same).bit_count() <= 2 and (whole ^ other).bit_count() > 12
    assert difference_hash(b"no image") != difference_hash(b"no picture")


def transparent(i: int, colour: int = 0) -> bytes:
    """A logo: all is in the alpha channel, and the colours are the same everywhere."""
    alpha = np.asarray(Image.open(io.BytesIO(encode(i, size=(48, 48)))).convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([np.full((48, 48, 3), colour, np.uint8), alpha])).save(buffer, "PNG")
    return buffer.getvalue()


def left_of(config, tmp_path, images: list[bytes], background: str = "white") -> list[str]:
    """The keys of the images that `unique` keeps."""
    config.inputs.image.background = background
    write_tar(tmp_path / "u.tar", {f"{i}": dict(png=data, txt=b"text") for i, data in enumerate(images)})
    with Files() as files:
        source = open_source("main", dict(urls=str(tmp_path / "u.tar"), unique="image"), config, files)
        assert len(list(source.faults())) == len(images) - source.samples
        return [sample.key for sample in source.read(source.blocks(2**20), 0)]


def test_images_are_alike_as_the_model_sees_them(config, tmp_path):
    """Images that differ in their transparency alone are different, however that is shown."""
    logos = [transparent(i) for i in range(12)]
    for background in ("white", "black", "drop"):
        assert len(left_of(config, tmp_path, logos, background)) == 12, background
    smaller = io.BytesIO()
    on_white = Image.new("RGBA", (48, 48), "white")
    on_white.alpha_composite(Image.open(io.BytesIO(logos[0])))
    on_white.convert("RGB").save(smaller, "WEBP", lossless=True)
    assert left_of(config, tmp_path, [logos[0], smaller.getvalue(), logos[1]]) == ["0", "2"]
    assert left_of(config, tmp_path, [logos[0], smaller.getvalue(), logos[1]], "black") == ["0", "1", "2"]


def test_images_without_contrast_are_alike_only_byte_by_byte(config, tmp_path):
    def plain(colour: str, kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(buffer, kind)
        return buffer.getvalue()

    images = [plain("red", "PNG"), plain("red", "PNG"), plain("blue", "PNG"), plain("red", "WEBP"), plain("red", "PNG")]
    assert left_of(config, tmp_path, images) == ["0", "2", "3"]


def test_a_bomb_is_not_decoded_for_its_hash():
    bomb, began = one_bit_png(16_000, 16_000, bytes(16_000 * 2001)), time.process_time()
    assert len(bomb) < 2**16
    as_no_image = int.from_bytes(hashlib.blake2b(bomb, digest_size=8).digest(), "little")
    assert difference_hash(bomb) == as_no_image
    assert time.process_time() - began < 1, "4 s and 256 MB to decode"


WORDS = ("thing", "thing 1", "thing 1 2 3 4 5 6 7 8", "thing " + " ".join(map(str, range(40))))


@pytest.fixture
def mixed_lengths(config, tmp_path):
    """240 samples with captions of four lengths; the last one is longer than `text.length`."""
    made = {}
    for i in range(240):
        made[f"{i:05d}"] = dict(png=encode(i), txt=f"{WORDS[i % 4]} {i}".encode())
    write_tar(tmp_path / "l.tar", made)
    config.sources.main = dict(urls=str(tmp_path / "l.tar"))
    config.inputs.text.length, config.lanes = 32, 4
    return config


def test_batches_of_one_length_cut_nothing(mixed_lengths):
    config = mixed_lengths
    with open_stream(config, batch_size=8, seed=0) as stream:
        plain = Counter(captions_of(config, [next(stream) for _ in range(30)]))
    config.inputs.text.buckets = (6, 16)
    with open_stream(config, batch_size=8, seed=0) as stream:
        summary, epoch = stream.summary(), stream.epoch_size // 8
        batches = [next(stream) for _ in range(epoch)]
        counters = stream.counters()
        shares = {part["name"]: part["share"] for part in stream.sources(0)}
    lengths = Counter(batch["text"].shape[1] for batch in batches)
    assert set(lengths) == {6, 16, 32}
    assert summary["samples"] == 240 and summary["epoch_size"] > 240 - 3 * 4
    found = Counter(captions_of(config, batches))
    assert set(found) <= set(plain)  # as long as without buckets
    assert (found - plain).total() <= 2 * 8  # a bucket whose epoch has ended starts its next one
    for length, number in lengths.items():
        share = shares[f"main/{length}"]
        assert abs(number - share * epoch) < 1
        assert abs(counters[f"data/epochs/main/{length}"] - 1) < 0.2
    for batch in batches:
        assert batch["text"].shape == batch["text_valid"].shape
        used = batch["text_valid"].sum(axis=1)
        longer = [length for length in (6, 16) if length < batch["text"].shape[1]]
        assert (used > max(longer, default=0)).all()


def test_every_process_sees_the_same_lengths(mixed_lengths):
    config = mixed_lengths
    config.inputs.text.buckets = (6, 16)
    parts = []
    for process in range(2):
        with open_stream(config, batch_size=8, seed=0, shard=(process, 2)) as stream:
            parts.append([next(stream)["text"] for _ in range(12)])
    with open_stream(config, batch_size=8, seed=0, position=16) as stream:
        whole = [next(stream)["text"] for _ in range(10)]
    for left, right, both in zip(parts[0][2:], parts[1][2:], whole):
        np.testing.assert_array_equal(np.concatenate([left, right]), both)


def test_small_buckets_join_their_neighbours(config, tmp_path):
    made = {f"{i:03d}": dict(png=encode(i), txt=f"{WORDS[2] if i > 1 else WORDS[0]} {i}".encode()) for i in range(20)}
    made["020"] = dict(png=encode(20), txt=WORDS[3].encode())
    write_tar(tmp_path / "s.tar", made)
    config.sources.main = dict(urls=str(tmp_path / "s.tar"))
    config.inputs.text.length, config.inputs.text.buckets = 40, (6, 16)
    text = inputs_of(config)["text"]
    with Files() as files:
        source = open_source("main", config.sources.main, config, files, lengths=True)
        split = buckets.split(source, text, 4)
        assert [(part.length, part.source.samples) for part in split] == [(40, 21)]
        whole = buckets.split(source, text, 1)
        assert [(part.length, part.source.samples) for part in whole] == [(6, 2), (16, 18), (40, 1)]


@pytest.mark.parametrize("wrong", [(16, 6), (2, 8), (8, 16), (6.0, 8), (6, 6)])
def test_wrong_buckets(config, wrong):
    config.inputs.text.buckets = wrong
    with pytest.raises(DataError, match=r"data\.inputs\.text\.buckets is .* rising lengths"):
        open_stream(config, batch_size=16, seed=0)


def test_buckets_and_several_sources(config, shards):
    config.sources.other = dict(urls=str(shards / "s-00.tar"))
    config.inputs.text.buckets = (5,)
    with pytest.raises(DataError, match=r"data\.batches='by_source'"):
        open_stream(config, batch_size=16, seed=0)
    config.batches = "by_source"
    with open_stream(config, batch_size=16, seed=0) as stream:
        assert {batch["text"].shape for batch in (next(stream) for _ in range(12))} <= {(16, 5), (16, 16)}


def test_statistics_count_transparent_images(tmp_path, capsys):
    images = [transparent(0), encode(1), encode(2, "jpg"), transparent(3)]
    write_tar(tmp_path / "t.tar", {f"{i}": dict(image=data, txt=b"text") for i, data in enumerate(images)})
    command = ["data", "stats", str(tmp_path / "t.tar"), "--image", "image", "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "out"), "--config.data.inputs.image.background=drop"]) == 0
    assert "2 images (50.00%) are transparent and lose their alpha channel" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["together"]["images_transparent"] == 2
    assert "transparent" in (tmp_path / "out" / "stats.html").read_text()
