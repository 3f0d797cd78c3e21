"""Keep the pairs whose picture and caption fit together best, by their cosine in a model (DataComp's CLIP score; DFN).

python -m xmodal embed 'shards/*.tar' --model runs/clip --out index
python -m xmodal data filter index --top 30% --out keep.npy
python train.py --config configs/clip.py:B32 --config.data.sources.train.keep=keep.npy --workdir runs/filtered

The list holds a name SHARD/KEY for each pair that is kept, as text (.txt) or as hashes (.npy, 8 bytes each).
"""

import argparse
import pathlib
import re

import numpy as np

from xmodal.messages import UsageError

_SHARES = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("index", type=pathlib.Path, metavar="INDEX", help="made by `embed`, of images and captions")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=_share, metavar="SHARE", help="keep the best, such as 30%% or 0.3")
    which.add_argument("--above", type=float, metavar="COSINE", help="keep those of at least this cosine")
    parser.add_argument("--out", metavar="FILE", help="list of the pairs that are kept, .npy or .txt")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the figures to this file")


def run(args: argparse.Namespace) -> None:
    """Scores the pairs, prints how the scores lie, and writes the list."""
    from xmodal.reporting.files import write_json
    from xmodal.reporting.formatting import percent
    from xmodal.reporting.summary import print_table
    from xmodal.search.choosing import best_share, pair_scores, write_chosen
    from xmodal.search.index import Index

    if bool(args.out) != (args.top is not None or args.above is not None):
        raise UsageError("--out FILE goes with --top SHARE or --above COSINE; without them only the scores are shown")
    index = Index(args.index)
    scores = pair_scores(index)
    quantiles = dict(zip(_SHARES, np.quantile(scores, 1 - np.array(_SHARES)).tolist())) if len(scores) else {}
    rows = [[f"best {percent(share)}", f"{least:.4f}"] for share, least in quantiles.items()]
    print_table(f"cosines of {len(scores):,} pictures and their captions in {args.index}", ["", "at least"], rows)
    figures = dict(pairs=len(scores), at_least={f"{share:g}": least for share, least in quantiles.items()})
    if args.out:
        kept = scores >= args.above if args.top is None else best_share(scores, args.top)
        write_chosen(index, kept, args.out)
        figures |= dict(kept=int(kept.sum()), least=float(scores[kept].min()) if kept.any() else None)
        print(f"{kept.sum():,} pairs ({percent(kept.mean())}) are in {args.out}")
    if args.json:
        write_json(args.json, figures)


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 30% or 0.3")
    return value
