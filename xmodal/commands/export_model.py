"""Take a model out: a Hugging Face, open_clip or xmodal folder, or programs that need JAX alone.

python -m xmodal export --workdir runs/clip --to hf --out exported/clip
python -m xmodal export --workdir runs/clip --to open_clip --average last:3 --dtype bf16 --out exported/clip_oc
python -m xmodal export --workdir runs/clip --to jax --no-ema --step 5000 --out exported/clip_jax
python -m xmodal export --workdir runs/tuned --to hf --interpolate 0.5 --out exported/wise
python -m xmodal export --workdir runs/any --to xmodal --out exported/any     # for xmodal.load, eval, embed, init_from

What was written is read back and compared with the live model before the folder gets its name.
"""

import argparse
import pathlib

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
    from xmodal.reporting.summary import print_summary

    stored, weights = chosen(args.workdir, args)
    done = export(stored, args.out, to=args.to, dtype=args.dtype, card=Card(weights, _figures(args, stored)))
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
