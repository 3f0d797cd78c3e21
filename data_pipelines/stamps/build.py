"""Builds the shards of spoken stamps and their tokenizer from Debian's package `tuxpaint-stamps-default`.

Needs, besides the requirements of this repository, four libraries and the package (161 MB):

    pip install av==18.1.0 soundfile==0.14.0 soxr==1.1.0 resvg-py==0.5.0
    apt-get download tuxpaint-stamps-default=2022.06.04-1
    dpkg-deb -x tuxpaint-stamps-default_2022.06.04-1_all.deb package

Then (some five minutes on one core):

    python -m data_pipelines.stamps.build --stamps package/usr/share/tuxpaint/stamps --out data_pipelines/stamps

writes `shards/*.tar.gz`, `tokenizer.json` and `sources.tsv` below `--out`. What goes where follows from hashes of the
names. The bytes of the recordings depend on the version of libopus; `sources.tsv` has the hashes of the files that they
were made of.
"""

import argparse
import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple

from data_pipelines.emoji.build import write_shard
from data_pipelines.stamps.media import (
    LONGEST,
    RATE,
    BuildError,
    image_member,
    opus_member,
    read_recording,
    require_tools,
)
from data_pipelines.text.tokenizers import train_bpe

EFFECT = "effect"  # the sound of the thing itself; other voices are languages, each spoken by one person
TRAINED = ("fr", "ca", "ru", "ro", "bg", "es", "be", "el")
UNSEEN = ("da", "nl", "en")  # languages, and so speakers, that are never trained on
VOICES = (*TRAINED, *UNSEEN, EFFECT)
LONG_TEXT = 40  # characters
SHORTER_SPEECH = ("ca", "be")  # speak an older and shorter text where the description is longer than `LONG_TEXT`
UNSEEN_CONCEPTS = 10  # one concept in so many is never trained on
UNHEARD_CLIPS = 8  # one (concept, voice) in so many is never trained on
SPLITS = ("train", "unheard_clips", "unseen_concepts", "unseen_speakers")
TRAIN_SHARDS = 4
VOCAB_SIZE = 4096

_GFDL = "GFDL"
# What the package's changelog puts under another licence than the package, or names without one.
OTHER_LICENCES = {
    "animals/birds/helmeted_guineafowl": _GFDL,
    "animals/birds/heron_greatblue": "CC BY-SA 2.5",
    "animals/birds/heron_greatblue_flying": "CC BY-SA 2.5",
    "animals/birds/pelican": "CC BY-SA 2.5",
    "animals/insects/Brown_slug": "GFDL or CC BY-SA 2.5",
    "animals/insects/Woodlouse": _GFDL,
    "food/fruit/Apricot_whole": _GFDL,
    "food/fruit/Cherry_Stella": _GFDL,
    "food/fruit/Strawberry2": _GFDL,
    "food/fruit/grapes": "a stock photograph, licence not named",
    "food/fruit/pineapple": "a stock photograph, licence not named",
    "food/fruit/sliced_lime": "a stock photograph, licence not named",
    "food/fruit/sliced_orange": "a stock photograph, licence not named",
    "household/Lightbulb": _GFDL,
    "plants/flowers/adeenia": "CC BY-SA 3.0",
    "plants/flowers/anthoorium": "CC BY-SA 3.0",
    "plants/flowers/appooppanthady": "CC BY-SA 3.0",
    "plants/flowers/bolsom": "CC BY-SA 3.0",
    "plants/flowers/chemparathi": "CC BY-SA 3.0",
    "plants/flowers/plastic/chuvanna_plastic_poo": "CC BY-SA 3.0",
    "seasonal/christmas/Christmas_pudding": _GFDL,
    "seasonal/christmas/German_Christmas_toy": "CC BY-SA",
    "seasonal/christmas/Mince_Pie": "CC BY 2.5",
    "seasonal/christmas/Roast_turkey": "CC BY 2.0",
    "town/monuments/inukshuk-photo": "CC BY-SA 2.5",
    "vehicles/emergency/firetruck": "CC BY 2.5, its effect CC Sampling Plus 1.0",
}
OTHER_LICENCE_EFFECTS = {"vehicles/ship/cartoon/bathyscape": "GFDL 1.2 (sonar pings)"}


@dataclass(frozen=True)
class Stamp:
    """One stamp of the package.

    Attributes:
        path: below the stamps' folder, without ending, such as "animals/mammals/cats/lion".
        image: its image file.
        texts: language -> description.
        recordings: voice -> file.
    """

    path: str
    image: Path
    texts: dict[str, str]
    recordings: dict[str, Path]

    @property
    def concept(self) -> str:
        """What tells concepts apart: the words of the English description."""
        return re.sub(r"[^\w]+", " ", self.texts["en"].lower()).strip()

    @property
    def key(self) -> str:
        """Name of its members; keys of tars end at the first dot."""
        return self.path.replace("/", "-").replace(".", "_")


class Recording(NamedTuple):
    """An encoded recording and its length in seconds."""

    opus: bytes
    seconds: float


@dataclass(frozen=True)
class Clip:
    """A recording of a stamp: one sample.

    Attributes:
        stamp: what it names or sounds like.
        voice: one of `VOICES`.
    """

    stamp: Stamp
    voice: str

    @property
    def language(self) -> str:
        """Language of the text; effects have the English one."""
        return "en" if self.voice == EFFECT else self.voice

    @property
    def text(self) -> str:
        """The description in its language; "" where it is not translated."""
        return self.stamp.texts.get(self.language, "")

    @property
    def key(self) -> str:
        """Name of its members."""
        return f"{self.stamp.key}-{self.voice}"

    @property
    def split(self) -> str:
        """The split of `SPLITS` that it belongs to by hashes of its names."""
        concept = self.stamp.concept
        if self.voice in UNSEEN:
            return "unseen_speakers"
        if unseen_concept(concept):
            return "unseen_concepts"
        return "train" if _number(f"{concept}/{self.voice}") % UNHEARD_CLIPS else "unheard_clips"

    @property
    def fault(self) -> str:
        """Why it is left out without being listened to; "" where nothing speaks against it."""
        if not self.text:
            return "no text in its language"
        if self.voice in SHORTER_SPEECH and len(self.text) > LONG_TEXT:
            return "speaks a shorter text"
        return ""

    @cached_property
    def source(self) -> str:
        """Hash of its file: equal recordings serve several stamps."""
        return _digest(self.stamp.recordings[self.voice])

    def record(self, seconds: float, usual: float) -> dict:
        """Returns the json member; `usual` is the median length of the speech of its stamp."""
        return {
            "concept": self.stamp.concept,
            "category": self.stamp.path.split("/")[0],
            "stamp": self.stamp.path,
            "kind": EFFECT if self.voice == EFFECT else "speech",
            "voice": self.voice,
            "language": self.language,
            "seen_concept": not unseen_concept(self.stamp.concept),
            "characters": len(self.text),
            "seconds": seconds,
            "usual_seconds": usual,
            "english": self.stamp.texts["en"],
        }


def unseen_concept(concept: str) -> bool:
    """Whether a concept is never trained on."""
    return _number(concept) % UNSEEN_CONCEPTS == 0


def _number(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_texts(path: Path) -> dict[str, str]:
    """Reads the descriptions of a stamp: the first line is English, then lines such as `fr.utf8=Un guépard.`."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = {"en": lines[0].strip()} if lines else {}
    for line in lines[1:]:
        found = re.match(r"([\w@]+)\.utf8=(.+)", line)
        if found and found[1] in VOICES:
            texts[found[1]] = unicodedata.normalize("NFC", found[2].strip())
    return texts


def read_stamps(root: Path) -> list[Stamp]:
    """Reads all stamps that have a description, ordered by a hash of their paths; mirrored ones are left out.

    Raises:
        BuildError: there are none.
    """
    images = {}
    for path in sorted(root.rglob("*")):
        if path.suffix in (".svg", ".png") and not re.search(r"_(mirror|flip)$", path.stem):
            images.setdefault(path.with_suffix(""), path)  # .png sorts first: an artist's rendering beats ours
    stamps = []
    for stem, image in images.items():
        described = stem.with_suffix(".txt")
        texts = read_texts(described) if described.is_file() else {}
        if texts.get("en"):
            name = stem.relative_to(root).as_posix()
            stamps.append(Stamp(name, image, texts, dict(_recordings(stem, name))))
    if not stamps:
        raise BuildError(f"{root} has no stamps; unpack the package and name its folder usr/share/tuxpaint/stamps")
    return sorted(stamps, key=lambda stamp: _number(stamp.path))


def _recordings(stem: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yields the recordings of a stamp: (voice, file)."""
    for voice in VOICES:
        ending = {EFFECT: "", "en": "_desc"}.get(voice, f"_desc_{voice}")
        path = stem.parent / f"{stem.name}{ending}.ogg"
        spoken = voice == EFFECT and name.startswith("symbols/")  # digits and letters: an English voice, not an effect
        if path.is_file() and not spoken and not (voice == EFFECT and name in OTHER_LICENCE_EFFECTS):
            yield voice, path


def choose(stamps: Iterable[Stamp], dropped: Counter) -> tuple[dict[str, list[Clip]], dict[str, bytes]]:
    """Decides which clips are used, and where.

    Args:
        stamps: in the order of the shards.
        dropped: counts what is left out, by reason.

    Returns:
        Split -> its clips; and path of a stamp -> its encoded image.
    """
    chosen, images, seen = {split: [] for split in SPLITS}, {}, set()
    for stamp in stamps:
        if stamp.path in OTHER_LICENCES:
            dropped["stamps under another licence"] += 1
            continue
        image = image_member(stamp.image)
        if image is None or image in seen:
            dropped["stamps with an image that others have" if image else "stamps that cannot be rendered"] += 1
            continue
        seen.add(image)
        images[stamp.path] = image
        for clip in (Clip(stamp, voice) for voice in stamp.recordings):
            if clip.fault:
                dropped[f"clips: {clip.fault}"] += 1
            else:
                chosen[clip.split].append(clip)
    trained = {clip.source for clip in chosen["train"]}
    for split in SPLITS[1:]:
        kept = [clip for clip in chosen[split] if clip.source not in trained]
        dropped["clips: held out, but the same recording is trained on"] += len(chosen[split]) - len(kept)
        chosen[split] = kept
    return chosen, images


def encode(clips: Iterable[Clip], dropped: Counter) -> dict[str, Recording]:
    """Returns the usable recordings, by the keys of their clips; counts the others in `dropped`."""
    found = {}
    for clip in clips:
        wave = read_recording(clip.stamp.recordings[clip.voice])
        if wave is not None and clip.voice == EFFECT:
            wave = wave[: int(LONGEST * RATE)]
        if wave is None or len(wave) > LONGEST * RATE:
            dropped["clips: silent" if wave is None else "clips: longer than 6 s"] += 1
            continue
        found[clip.key] = Recording(opus_member(wave), round(len(wave) / RATE, 3))
    return found


def usual_seconds(clips: Iterable[Clip], recordings: dict[str, Recording]) -> dict[str, float]:
    """Returns the median length of the speech of each stamp, by its path, over all voices and splits."""
    lengths = defaultdict(list)
    for clip in clips:
        if clip.voice != EFFECT and clip.key in recordings:
            lengths[clip.stamp.path].append(recordings[clip.key].seconds)
    return {path: round(median(seconds), 3) for path, seconds in lengths.items()}


def members(clip: Clip, recording: Recording, usual: float, image: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields the members of a sample: (file name, contents)."""
    record = clip.record(recording.seconds, usual)
    yield f"{clip.key}.json", json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    yield f"{clip.key}.opus", recording.opus
    yield f"{clip.key}.txt", clip.text.encode()
    yield f"{clip.key}.webp", image


def parts(clips: list[Clip], count: int) -> list[list[Clip]]:
    """Divides clips into `count` shards of about equal size; the clips of a stamp stay together.

    So gzip, which looks 32 KB back, stores the image that they share once.
    """
    names = list(dict.fromkeys(clip.stamp.path for clip in clips))
    place = {name: i * count // len(names) for i, name in enumerate(names)}
    return [[clip for clip in clips if place[clip.stamp.path] == i] for i in range(count)]


def write_sources(path: Path, clips: Iterable[Clip], recordings: dict[str, Recording]) -> None:
    """Writes what the samples were made of, and says how that differs from what the file said before."""
    before = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
    lines = [
        "\t".join((clip.key, str(recordings[clip.key].seconds), clip.source, _digest(clip.stamp.image)))
        for clip in clips
    ]
    lines = ["key\tseconds\trecording (sha256)\timage (sha256)", *sorted(lines)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if before:
        print(f"{path}: {len(before - {*lines})} lines of before are gone, {len({*lines} - before)} are new")


def build(root: Path, out: Path) -> list[Path]:
    """Builds everything.

    Args:
        root: the package's folder of stamps.
        out: directory that receives `shards/`, `tokenizer.json` and `sources.tsv`.

    Returns:
        The files written.

    Raises:
        BuildError: the stamps or a library are missing.
    """
    require_tools()
    dropped = Counter()
    chosen, images = choose(read_stamps(root), dropped)
    clips = [clip for split in SPLITS for clip in chosen[split]]
    recordings = encode(clips, dropped)
    usual = usual_seconds(clips, recordings)
    (out / "shards").mkdir(parents=True, exist_ok=True)
    written = []
    for split in SPLITS:
        usable = [clip for clip in chosen[split] if clip.key in recordings]
        for i, part in enumerate(parts(usable, TRAIN_SHARDS if split == "train" else 1)):
            path = out / "shards" / f"{split}-{i:04d}.tar.gz"
            contents = (
                member
                for clip in part
                for member in members(
                    clip, recordings[clip.key], usual.get(clip.stamp.path, 0.0), images[clip.stamp.path]
                )
            )
            write_shard(path, contents)
            voices = dict(Counter(clip.voice for clip in part))
            print(f"{path}: {len(part):,} samples, {path.stat().st_size:,} bytes, {voices}", flush=True)
            written.append(path)
    texts = sorted({text.lower() for clip in chosen["train"] for text in (clip.text, clip.stamp.texts["en"])})
    tokenizer = out / "tokenizer.json"
    tokenizer.write_text(train_bpe(texts, VOCAB_SIZE).json, encoding="utf-8")
    sources = out / "sources.tsv"
    write_sources(sources, [clip for clip in clips if clip.key in recordings], recordings)
    for reason, count in sorted(dropped.items()):
        print(f"left out: {count:,} {reason}")
    return [*written, tokenizer, sources]


def main() -> None:
    """Builds the data from the command line."""
    parser = argparse.ArgumentParser(description="Builds the shards of spoken stamps and their tokenizer.")
    parser.add_argument("--stamps", type=Path, required=True, help="the package's folder usr/share/tuxpaint/stamps")
    parser.add_argument("--out", type=Path, required=True, help="directory for shards/, tokenizer.json and sources.tsv")
    args = parser.parse_args()
    try:
        build(args.stamps, args.out)
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
