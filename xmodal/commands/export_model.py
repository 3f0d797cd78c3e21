"""Take a model out: a Hugging Face, open_clip or xmodal folder, or programs that need JAX alone.

python -m xmodal export --workdir runs/clip --to hf --out exported/clip
python -m xmodal export --workdir runs/clip --to open_clip --average last:3 --dtype bf16 --out exported/clip_oc
python -m xmodal export --workdir runs/clip --to jax --no-ema --step 5000 --out exported/clip_jax
python -m xmodal export --workdir runs/tuned --to hf --interpolate 0.5 --out exported/wise
python -m xmodal export --workdir runs/any --to xmodal --out exported/any     # for xmodal.load, eval, embed, init_from

What was written is read back and compared with the live model before the folder gets its name.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from xmodal.commands.weights import add_weight_arguments, chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--workdir", required=True, help="run folder, or an imported model")
    parser.add_argument("--to", required=True, choices=("hf", "open_clip", "xmodal", "jax"), help="format")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder to make")
    parser.add_argument("--dtype", default="f32", choices=("f32", "bf16"), help="of the weights")
    add_weight_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from xmodal.interop.export import export
    from xmodal.interop.model_card import Card
    from xmodal.reporting.gallery import read_gallery
    from xmodal.reporting.summary import print_summary

    stored, weights = chosen(args.workdir, args)
    card = Card(weights, _figures(args, stored))
    if _mostly_chinese(read_gallery(args.workdir)):
        card = dataclasses.replace(card, labels=("猫", "狗"))
    done = export(stored, args.out, to=args.to, dtype=args.dtype, card=card)
    print_summary(
        f"xmodal export · {done.folder}",
        {
            "format": done.kind,
            "weights": f"{weights or 'as they were'}, {args.dtype}",
            "read back": {kind: f"differs by {value:.1e}" for kind, value in done.differences.items()},
            "note": done.notes,
        },
    )


def _figures(args: argparse.Namespace, stored) -> dict:
    """The run's final figures, if these are the weights that they were measured with."""
    from xmodal.reporting.results import read_results

    results = {} if stored.step is None or args.ema is not None else read_results(args.workdir)
    return results if results.get("step") == stored.step else {}


def _mostly_chinese(gallery: Any) -> bool:
    """Whether the texts of a run's held-out examples are Chinese: more ideographs than other letters, and no kana."""
    written = "".join(_texts(gallery))
    ideographs = sum("\u4e00" <= letter <= "\u9fff" for letter in written)
    kana = any("\u3040" <= letter <= "\u30ff" for letter in written)
    return 2 * ideographs > sum(map(str.isalpha, written)) and not kana


def _texts(node: Any) -> Iterator[str]:
    """Yields the captions of a gallery, wherever they stand in it."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in ("text", "truth", "generated") and not isinstance(value, Mapping):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
