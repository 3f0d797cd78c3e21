"""Find pictures that are nearly the same: all pairs above a cosine, and the groups that they form; nothing approximate.

python -m xmodal embed 'shards/*.tar' --model hf:dinov2 --what images --out index
python -m xmodal data duplicates index --above 0.95 --out drop.npy --groups groups.jsonl --html pairs.html

Of each group the first sample stays; the others go to the list, for `drop` of a source. Every picture is compared with
every other one: a million take hours on 2 cores, less on an accelerator. `--among captions` compares captions.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from xmodal.commands.search import AMONG

_BLOCK = 65_536  # pairs scored at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("index", type=pathlib.Path, metavar="INDEX", help="made by `embed`")
    add_match_arguments(parser)
    parser.add_argument("--groups", type=pathlib.Path, metavar="FILE", help="write each group as a line of JSON")


def add_match_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what says when two samples are the same."""
    parser.add_argument("--above", type=float, default=0.95, metavar="COSINE", help="at least; 0.95 by default")
    parser.add_argument("--among", choices=AMONG, default="images", help="what is compared; images by default")
    parser.add_argument("--out", metavar="FILE", help="list of the samples to leave out, .npy or .txt")
    parser.add_argument("--html", type=pathlib.Path, metavar="FILE", help="also write a page of the pairs, to look at")


def run(args: argparse.Namespace) -> None:
    """Finds the groups, prints how many there are, and writes the lists."""
    from xmodal.reporting.files import write_text
    from xmodal.reporting.formatting import percent
    from xmodal.reporting.summary import print_table
    from xmodal.search.choosing import write_chosen
    from xmodal.search.index import Index
    from xmodal.search.matches import groups

    index = Index(args.index)
    first = groups(index.vectors(AMONG[args.among]), args.above)
    extra = first != np.arange(len(first))
    sizes = np.unique(first[extra], return_counts=True)[1] + 1
    buckets = [("2", 2, 2), ("3 to 5", 3, 5), ("6 to 20", 6, 20), ("more", 21, len(first))]
    rows = [[name, int(((sizes >= low) & (sizes <= high)).sum())] for name, low, high in buckets]
    print_table(f"groups of {args.among} with a cosine of at least {args.above:g}", ["samples", "groups"], rows)
    print(f"{extra.sum():,} of {len(first):,} samples ({percent(extra.mean())}) have an earlier one like them")
    if args.out:
        write_chosen(index, extra, args.out)
    if args.html:
        copies = np.flatnonzero(extra)
        write_pairs(args, (index, index), first[copies], copies, ("kept", "left out"))
    if args.groups:
        write_text(args.groups, "".join(map(_line, _members(index, first, extra))))


def write_pairs(
    args: argparse.Namespace, indexes: tuple[Any, Any], left: np.ndarray, right: np.ndarray, columns: tuple[str, str]
) -> None:
    """Writes the page of pairs that `--html` names.

    Args:
        args: of `add_match_arguments`.
        indexes: of the left and the right samples.
        left: numbers of the samples, int64 [pairs].
        right: of those beside them.
        columns: what they are called.
    """
    from xmodal.reporting.files import write_text
    from xmodal.reporting.messages import say, term
    from xmodal.reporting.pairs_page import Pair, render_pairs, spread

    vectors = [index.vectors(AMONG[args.among]) for index in indexes]
    scores = np.zeros(len(left), np.float32)
    for start in range(0, len(left), _BLOCK):
        here = slice(start, start + _BLOCK)
        scores[here] = np.einsum("nd,nd->n", vectors[0].take(left[here]), vectors[1].take(right[here]))
    order = np.argsort(-scores, kind="stable")
    order = order[spread(len(order))]
    pairs = [
        Pair(float(scores[i]), _side(indexes[0], int(left[i])), _side(indexes[1], int(right[i])))
        for i in order.tolist()
    ]
    found = say(
        "{count:,} pairs in {names}: {kind} are taken for the same from a cosine of {limit:g} on",
        count=len(left), names=", ".join(_names(indexes)), kind=term(args.among), limit=args.above,
    )  # fmt: skip
    title = say("Pairs that are nearly the same")
    print(write_text(args.html, render_pairs(title, columns, found, len(left), pairs)))


def _names(indexes: tuple[Any, Any]) -> list[str]:
    return list(dict.fromkeys(str(index.manifest["data"]["title"]) for index in indexes))


def _side(index: Any, row: int) -> Any:
    from data_pipelines.names import label_at, parts_of
    from xmodal.reporting.pairs_page import Side

    record = index.record(row)
    name = record.get("file") or f"{label_at(parts_of(record['shard']), 2)}/{record['key']}"
    return Side(name, record["caption"], index.thumbnail(row))


def _members(index, first: np.ndarray, extra: np.ndarray) -> list[list[dict]]:
    """Returns the records of each group, in the order of the data."""
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(extra).tolist():
        members.setdefault(int(first[row]), [int(first[row])]).append(row)
    return [[dict(row=row, **index.record(row)) for row in rows] for _, rows in sorted(members.items())]


def _line(group: list[dict]) -> str:
    return json.dumps(group, ensure_ascii=False) + "\n"
