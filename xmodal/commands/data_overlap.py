"""Look for test pictures among the training pictures: each one's nearest, and the training samples to leave out.

python -m xmodal embed --config configs/clip.py --model hf:dinov2 --what images --out index
python -m xmodal embed test.csv --model hf:dinov2 --what images --out test_index
python -m xmodal data overlap index --with test_index --above 0.95 --out drop.npy --json overlap.json --html pairs.html

Both must be made by the same model. The list names the training samples that are close to any test sample.
"""

import argparse
import pathlib
from typing import Any

import numpy as np

from xmodal.commands.data_duplicates import add_match_arguments, write_pairs
from xmodal.commands.search import AMONG
from xmodal.config import ConfigError

_SHOWN, _LISTED = 10, 10_000  # pairs on the screen and in the file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("index", type=pathlib.Path, metavar="INDEX", help="of the training data, made by `embed`")
    parser.add_argument(
        "--with", dest="test", required=True, type=pathlib.Path, metavar="INDEX", help="of the test data"
    )
    add_match_arguments(parser)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write figures and pairs to this file")


def run(args: argparse.Namespace) -> None:
    """Finds the overlap, prints it and writes the lists."""
    from xmodal.reporting.files import write_json
    from xmodal.reporting.formatting import percent
    from xmodal.reporting.summary import print_table
    from xmodal.search.choosing import overlap, write_chosen
    from xmodal.search.index import Index

    train, test = Index(args.index), Index(args.test)
    prints = [index.manifest["model"]["fingerprint"] for index in (train, test)]
    if prints[0] != prints[1]:
        origins = " and ".join(index.manifest["model"]["origin"] for index in (train, test))
        raise ConfigError(f"the two indexes were made by different models ({origins}); embed both with the same one")
    nearest, scores, close = overlap(train, test, AMONG[args.among], args.above)
    found = np.flatnonzero(nearest >= 0)
    found = found[np.argsort(-scores[found], kind="stable")]
    pairs = [_pair(train, test, int(nearest[row]), int(row), float(scores[row])) for row in found[:_LISTED]]
    rows = [[f"{p['score']:.4f}", p["test"]["key"], p["train"]["key"], p["test"]["caption"]] for p in pairs[:_SHOWN]]
    if rows:
        print_table("closest pairs", ["cosine", "test", "training", "caption"], rows)
    share = len(found) / max(len(test), 1)
    print(
        f"{len(found):,} of {len(test):,} test samples ({percent(share)}) have one with a cosine of at least "
        f"{args.above:g} among {len(train):,} training samples; {close.sum():,} of those are close to one"
    )
    if args.out:
        write_chosen(train, close, args.out)
    if args.html:
        write_pairs(args, (train, test), nearest[found], found, ("training", "test"))
    if args.json:
        figures = dict(train=len(train), test=len(test), test_found=len(found), train_close=int(close.sum()))
        write_json(args.json, figures | dict(above=args.above, among=args.among, pairs=pairs))


def _pair(train: Any, test: Any, left: int, right: int, score: float) -> dict[str, Any]:
    return dict(
        score=min(score, 1.0), train=dict(row=left, **train.record(left)), test=dict(row=right, **test.record(right))
    )
