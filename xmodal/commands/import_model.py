"""Bring a Hugging Face or open_clip model in: a folder that recipes start from and that `xmodal.load` opens.

python -m xmodal import hf:clip-vit-base-patch32 --out models/clip_b32
python -m xmodal import open_clip:CLIP-ViT-B-16 --out models/openclip_b16

Folders are local and their weights are safetensors; nothing is downloaded and no pickled file is opened.
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("source", help="hf:DIR, open_clip:DIR or open_clip:FILE")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder to make")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    import jax

    from xmodal.reporting.formatting import compact
    from xmodal.reporting.summary import print_summary
    from xmodal.stored.opening import open_stored
    from xmodal.stored.project import write_stored

    stored = open_stored(args.source)
    write_stored(stored, args.out)
    towers = {
        name: f"{compact(sum(a.size for a in jax.tree.leaves(stored.params[name])))} parameters, width {tower.width}, "
        f"{tower.trunk.depth} layers, pool {tower.pool}"
        for name, tower in stored.spec.towers.items()
    }
    print_summary(
        f"xmodal import · {args.out}",
        {
            **towers,
            **{name: modality.summary() for name, modality in stored.inputs.items()},
            "next": ("python -m xmodal export --workdir DIR --to ...", "xmodal.load(DIR)", "init_from in a recipe"),
        },
    )
