"""Show which patches of a picture the words of a text point to: one panel a word.

python -m xmodal map --model runs/demo picture.png "dog and flag" --out map.png
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("picture", type=pathlib.Path, help="picture file")
    parser.add_argument("text", help="words to point with")
    parser.add_argument("--model", required=True, help="run, imported or exported folder, or hf:DIR")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE", help="PNG to write")
    parser.add_argument("--size", type=int, default=256, help="pixels of a panel")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    import xmodal
    from xmodal.evaluation.word_maps import panels
    from xmodal.reporting.summary import print_table

    found = xmodal.load(args.model).word_map(args.picture, args.text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(panels(found, args.size))
    rows = []
    for word, scores in zip(found.words, found.scores):
        row, column = divmod(int(scores.argmax()), scores.shape[1])
        rows.append([word, f"{scores.max():.3f}", f"row {row + 1}, column {column + 1}", f"{scores.min():.3f}"])
    print_table(f"{args.picture} · {args.out}", ["word", "highest cosine", "at", "lowest cosine"], rows)
