"""The spoken stamps that ship with the repository: complete, without leaks, readable, and outside of wheels."""

import io
import json
import tarfile
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.io.paths import REPOSITORY
from data_pipelines.stamps import build
from data_pipelines.text.tokenizers import Tokenizer

STAMPS = Path(build.__file__).parent
COUNTS = dict(train=4983, unheard_clips=666, unseen_concepts=861, unseen_speakers=441)


@pytest.fixture(scope="module")
def samples():
    """Split -> key -> members; the json member parsed."""
    splits = {split: {} for split in build.SPLITS}
    for path in sorted((STAMPS / "shards").glob("*.tar.gz")):
        found = splits[path.name.split("-")[0]]
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                assert extension not in found.setdefault(key, {}), f"{member.name} comes twice"
                found[key][extension] = tar.extractfile(member).read()
    for split in splits.values():
        for sample in split.values():
            assert set(sample) == {"json", "opus", "txt", "webp"}
            sample["json"] = json.loads(sample["json"])
    return splits


def records(split):
    return [sample["json"] for sample in split.values()]


def test_size():
    files = [*(STAMPS / "shards").glob("*.tar.gz"), *(path for path in STAMPS.glob("*") if path.is_file())]
    assert sum(path.stat().st_size for path in files) < 22e6  # of what is in the repository


def test_counts(samples):
    assert {split: len(found) for split, found in samples.items()} == COUNTS
    voices = Counter(record["voice"] for record in records(samples["train"]))
    assert set(voices) == {*build.TRAINED, build.EFFECT}
    assert {record["voice"] for record in records(samples["unseen_speakers"])} == set(build.UNSEEN)


def test_splits_do_not_leak(samples):
    seen = {record["concept"] for record in records(samples["train"])}
    assert not seen & {record["concept"] for record in records(samples["unseen_concepts"])}
    cells = [{(r["concept"], r["voice"]) for r in records(samples[split])} for split in ("train", "unheard_clips")]
    assert not cells[0] & cells[1]
    lines = [line.split("\t") for line in (STAMPS / "sources.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    files = {key: recording for key, _, recording, _ in lines}
    assert len(files) == sum(COUNTS.values())
    trained = {files[key] for key in samples["train"]}
    for split in build.SPLITS[1:]:
        assert not trained & {files[key] for key in samples[split]}, split
    for found in samples.values():
        for record in records(found):
            assert record["seen_concept"] == (not build.unseen_concept(record["concept"]))


def test_members(samples):
    for found in samples.values():
        for key, sample in found.items():
            record = sample["json"]
            assert sample["txt"].decode().strip() and record["characters"] == len(sample["txt"].decode())
            assert sample["opus"][:4] == b"OggS" and 0 < record["seconds"] <= 6
            assert record["stamp"] not in build.OTHER_LICENCES and key.endswith(record["voice"])
    for sample in list(samples["train"].values())[::100]:
        image = Image.open(io.BytesIO(sample["webp"]))
        assert (image.format, image.size) == ("WEBP", (64, 64))


def test_recordings_are_as_long_as_stated(samples):
    soundfile = pytest.importorskip("soundfile", reason="the optional extra `audio`")
    for sample in list(samples["train"].values())[::40]:
        with soundfile.SoundFile(io.BytesIO(sample["opus"])) as file:
            assert (file.samplerate, file.channels) == (16000, 1)
            # The last packet of a recording below 0.2 s keeps some milliseconds of silence.
            assert -0.001 < file.frames / 16000 - sample["json"]["seconds"] < 0.01


def test_tokenizer(samples):
    tokenizer = Tokenizer.load(STAMPS / "tokenizer.json")
    assert tokenizer.vocab_size == build.VOCAB_SIZE
    texts = [" ".join(sample["txt"].decode().lower().split()) for sample in samples["train"].values()][::50]
    ids, valid = tokenizer.encode(texts, 128)
    assert [tokenizer.decode(row).strip() for row in ids] == texts and np.median(valid.sum(axis=1)) < 10


def test_no_wheel_contains_the_data():
    options = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert not options["include-package-data"] and not [name for name in options["package-data"] if "stamps" in name]


def test_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "An owl.\nfr.utf8=Un hibou.\nxx.utf8=other\nca@valencia.utf8=Un mussol\nfr.utf8 = no\n", encoding="utf-8"
    )
    assert build.read_texts(path) == dict(en="An owl.", fr="Un hibou.")


def stamp(path="animals/owl", **texts):
    return build.Stamp(path, Path("x.png"), dict(en="An owl.") | texts, {})


def test_clips():
    clip = build.Clip(stamp(ca="x" * 41, fr="Un hibou."), "ca")
    assert clip.fault == "speaks a shorter text"
    assert build.Clip(clip.stamp, "ru").fault == "no text in its language"
    good = build.Clip(clip.stamp, "fr")
    assert (good.fault, good.key, good.text) == ("", "animals-owl-fr", "Un hibou.")
    assert build.Clip(clip.stamp, "effect").text == "An owl."
    assert build.Clip(clip.stamp, "da").split == "unseen_speakers"


def test_parts_keep_the_clips_of_a_stamp_together():
    clips = [build.Clip(stamp(f"a/{i // 3}"), voice) for i, voice in enumerate(("fr", "ru", "es") * 5)]
    found = build.parts(clips, 2)
    assert [*found[0], *found[1]] == clips
    assert not {c.stamp.path for c in found[0]} & {c.stamp.path for c in found[1]}
