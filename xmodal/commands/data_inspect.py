"""What a batch holds: every array with its shape, its type and who makes it, and a sample as the model sees it.

python -m xmodal data inspect --config configs/demo.py
python -m xmodal data inspect 'shards/*.tar' --tokenizer tokenizer.json --html batch.html

Needs no model and no accelerator. The first rows of the first batch are shown as training reads them; with --html as a
page, images and all.
"""

import argparse
import pathlib
from typing import Any

from xmodal.commands.data_inputs import DEMO_TOKENIZER, add_data_arguments, load_data, name_tokenizers, title_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser, workers=False)
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="of the first batch to show; 0 reads no data")
    parser.add_argument("--html", type=pathlib.Path, metavar="FILE", help="also write the rows as a page")


def run(args: argparse.Namespace) -> None:
    """Prints the table of a batch and its first rows."""
    from data_pipelines.modalities import inputs_of
    from data_pipelines.stream.contents import contents
    from xmodal.messages import UsageError
    from xmodal.reporting.batches import batch_page, print_batch
    from xmodal.reporting.files import write_text
    from xmodal.reporting.summary import print_table

    if args.rows < 0:
        raise UsageError(f"--rows is {args.rows}; expected a number from 0")
    config = load_data(args)
    if not all(entry.get("tokenizer", True) for entry in config.data.inputs.values()):
        name_tokenizers(config, DEMO_TOKENIZER)
        print("no tokenizer is named, so texts are read with the demo's: --tokenizer FILE")
    inputs = inputs_of(config.data)
    inputs.check()
    print_batch(contents(config.data, inputs, config.batch_size))
    if not args.rows:
        return
    batch = _first_batch(config, inputs)
    rows = range(min(args.rows, config.batch_size))
    for row in rows:
        lines = [[name, modality.describe(batch, row)] for name, modality in inputs.items()]
        print_table(f"row {row} of the first batch", ["input", "holds"], lines)
    if args.html:
        print(write_text(args.html, batch_page(title_of(args), inputs, batch, rows)))


def _first_batch(config: Any, inputs: Any) -> dict:
    from data_pipelines.stream.stream import open_stream
    from xmodal.training.durations import samples_of

    with open_stream(
        config.data, batch_size=config.batch_size, seed=config.seed, inputs=inputs,
        samples=lambda start, epoch_size: samples_of(start, config, epoch_size),
    ) as stream:  # fmt: skip
        return next(stream)
