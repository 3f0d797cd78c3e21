"""Builds the emoji shards and their tokenizer from npm packages.

Needs, besides the requirements of this repository, a renderer for the SVG drawings and the packages themselves:

    pip install resvg-py==0.5.0
    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0 \
        @lobehub/fluent-emoji-3d@1.1.0 @lobehub/fluent-emoji-flat@1.1.0 emojibase-data@17.0.0

`npm pack` writes one .tgz a package into the current directory. Then:

    python -m data_pipelines.emoji.build --packages DIR --out data_pipelines/emoji

writes `shards/*.tar.gz`, `tokenizer.json` and `wordpiece.json` below `--out`. The same packages and library versions
give the same bytes: every choice (split, order) follows from hashes of the names, and the archives carry no times or
owners.
"""

import argparse
import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.emoji.drawings import (
    VENDORS,
    BuildError,
    encode,
    plain_hexcode,
    read_drawings,
    read_package,
    render,
)
from data_pipelines.text.tokenizers import train_bpe, train_wordpiece

LABELS = "emojibase-data@17.0.0"
LANGUAGES = ("en", "zh", "de", "es", "ja", "fr")
UNSEEN_VENDOR = "twemoji"
TRAIN_VENDORS = tuple(name for name in VENDORS if name != UNSEEN_VENDOR)
CONCEPTS = 1811  # that all five vendors draw
UNSEEN_CONCEPTS = 181
TRAIN_SHARDS = 4
VOCAB_SIZE = 4096
WORDPIECE_SIZE = 8192  # of which ideographs and kana take a third


@dataclass(frozen=True)
class Concept:
    """One emoji, whoever draws it.

    Attributes:
        hexcode: its code points as emojibase writes them, such as "1F1E9-1F1EA".
        emoji: its characters.
        group: Unicode group, such as "flags".
        subgroup: Unicode subgroup, such as "country-flag".
        labels: language -> name.
        tags: language -> keywords.
    """

    hexcode: str
    emoji: str
    group: str
    subgroup: str
    labels: dict[str, str]
    tags: dict[str, list[str]]

    def record(self, vendor: str, split: str) -> dict:
        """Returns the json member of this concept as `vendor` draws it."""
        return {
            "hexcode": self.hexcode,
            "emoji": self.emoji,
            "vendor": vendor,
            "group": self.group,
            "subgroup": self.subgroup,
            "split": split,
            "label": self.labels["en"],
            "tags": self.tags["en"],
            "labels": self.labels,
            "tags_by_language": self.tags,
        }


def read_concepts(packages: Path) -> list[Concept]:
    """Reads every emoji of emojibase that has a group, in Unicode order; skin tones are no emoji of their own."""
    files = read_package(packages, LABELS, "")
    names = json.loads(files["meta/groups.json"])
    by_language = {
        language: {entry["hexcode"]: entry for entry in json.loads(files[f"{language}/data.json"])}
        for language in LANGUAGES
    }
    concepts = []
    for hexcode, entry in by_language["en"].items():
        if "group" in entry:
            translations = {language: by_language[language][hexcode] for language in LANGUAGES}
            concepts.append(
                Concept(
                    hexcode=hexcode,
                    emoji=entry["emoji"],
                    group=names["groups"][str(entry["group"])],
                    subgroup=names["subgroups"][str(entry["subgroup"])],
                    labels={language: found["label"] for language, found in translations.items()},
                    tags={language: found.get("tags", []) for language, found in translations.items()},
                )
            )
    return concepts


def in_all(concepts: Iterable[Concept], drawings: dict[str, dict[str, bytes]]) -> list[Concept]:
    """Returns the concepts that every vendor draws.

    Raises:
        BuildError: there are not exactly `CONCEPTS` of them, so a drawing or a label is missing.
    """
    concepts = list(concepts)
    found = [c for c in concepts if all(plain_hexcode(c.hexcode) in files for files in drawings.values())]
    if len(found) != CONCEPTS:
        drawn = {
            vendor: sum(plain_hexcode(concept.hexcode) in files for concept in concepts)
            for vendor, files in drawings.items()
        }
        raise BuildError(
            f"{len(found)} concepts are drawn by all vendors, expected {CONCEPTS}; of {len(concepts)} labelled "
            f"concepts the vendors draw {drawn}: run `npm pack` again for the one that is short"
        )
    return found


def _rank(purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{purpose}:{name}".encode()).digest()


def unseen_hexcodes(hexcodes: Iterable[str]) -> frozenset[str]:
    """Chooses the concepts that are never trained on: those whose names hash lowest, in whatever order they come."""
    return frozenset(sorted(hexcodes, key=lambda hexcode: _rank("unseen concept", hexcode))[:UNSEEN_CONCEPTS])


def shard_plan(hexcodes: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Decides what goes where.

    Args:
        hexcodes: of all concepts, in any order.

    Returns:
        Shard name -> its samples (hexcode, vendor) in order. Shards are shuffled by hash, so that readers with a small
        buffer mix vendors and groups.
    """
    unseen = unseen_hexcodes(hexcodes)
    seen = [hexcode for hexcode in hexcodes if hexcode not in unseen]

    def shuffled(some: Iterable[str], vendors: Sequence[str]) -> list[tuple[str, str]]:
        pairs = [(hexcode, vendor) for hexcode in some for vendor in vendors]
        return sorted(pairs, key=lambda pair: _rank("order", "/".join(pair)))

    train = shuffled(seen, TRAIN_VENDORS)
    size = -(-len(train) // TRAIN_SHARDS)
    plan = {f"train-{i:04d}": train[i * size : (i + 1) * size] for i in range(TRAIN_SHARDS)}
    plan["unseen_vendor-0000"] = shuffled(hexcodes, [UNSEEN_VENDOR])
    plan["unseen_concepts-0000"] = shuffled(unseen, TRAIN_VENDORS)
    return plan


def sample_members(concept: Concept, vendor: str, split: str, drawing: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields the members of one sample: (file name, contents)."""
    key = f"{concept.hexcode}-{vendor}".lower()
    record = json.dumps(concept.record(vendor, split), ensure_ascii=False, separators=(",", ":"))
    yield f"{key}.json", record.encode()
    yield f"{key}.txt", concept.labels["en"].encode()
    yield f"{key}.webp", encode(render(drawing))


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a gzipped ustar archive without times and owners, so that equal contents are equal bytes."""
    with (
        open(path, "wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))


def caption_texts(concepts: Iterable[Concept]) -> Iterator[str]:
    """Yields the lower-cased English names, and the keywords as a caption lists them."""
    for concept in concepts:
        yield concept.labels["en"].lower()
        yield ", ".join(concept.tags["en"]).lower()


def all_texts(records: Iterable[dict]) -> Iterator[str]:
    """Yields the lower-cased names and keywords in every language of the json members of some concepts."""
    for record in records:
        for language in LANGUAGES:
            yield record["labels"][language].lower()
            yield ", ".join(record["tags_by_language"][language]).lower()


def build(packages: Path, out: Path) -> list[Path]:
    """Builds everything.

    Args:
        packages: directory of the .tgz archives.
        out: directory that receives `shards/` and the tokenizers.

    Returns:
        The files written.

    Raises:
        BuildError: a package or a drawing is missing.
    """
    drawings = {vendor: read_drawings(packages, vendor) for vendor in VENDORS}
    concepts = {concept.hexcode: concept for concept in in_all(read_concepts(packages), drawings)}
    unseen = unseen_hexcodes(concepts)
    written = []
    (out / "shards").mkdir(parents=True, exist_ok=True)
    for name, pairs in shard_plan(list(concepts)).items():
        path = out / "shards" / f"{name}.tar.gz"
        write_shard(
            path,
            (
                member
                for hexcode, vendor in pairs
                for member in sample_members(
                    concepts[hexcode],
                    vendor,
                    "unseen_concept" if hexcode in unseen else "train",
                    drawings[vendor][plain_hexcode(hexcode)],
                )
            ),
        )
        print(f"{path}: {len(pairs):,} samples, {path.stat().st_size:,} bytes", flush=True)
        written.append(path)
    seen = [concept for hexcode, concept in concepts.items() if hexcode not in unseen]
    records = (concept.record("", "") for concept in seen)
    for name, tokenizer in (
        ("tokenizer.json", train_bpe(caption_texts(seen), VOCAB_SIZE)),
        ("wordpiece.json", train_wordpiece(all_texts(records), WORDPIECE_SIZE)),
    ):
        (out / name).write_text(tokenizer.json, encoding="utf-8")
        print(f"{out / name}: {tokenizer.vocab_size:,} tokens")
        written.append(out / name)
    return written


def main() -> None:
    """Builds the data from the command line."""
    parser = argparse.ArgumentParser(description="Builds the emoji shards and their tokenizer.")
    parser.add_argument("--packages", type=Path, required=True, help="directory of the .tgz files of `npm pack`")
    parser.add_argument("--out", type=Path, required=True, help="directory for shards/ and tokenizer.json")
    args = parser.parse_args()
    try:
        build(args.packages, args.out)
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
