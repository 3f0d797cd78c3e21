"""Train a tokenizer on captions in any script, and say how it writes them.

python -m xmodal data tokenizer 'shards/*.tar' --out tokenizer.json
python -m xmodal data tokenizer photos.csv --caption title --kind unigram --size 16000 --out tokenizer.json
python -m xmodal data tokenizer corpus.txt --kind wordpiece --no-lower --out tokenizer.json      # a caption a line
python -m xmodal data tokenizer --config configs/my_recipe.py --size 8000 --out tokenizer.json

Captions are chosen as in a run, and no image is looked at; of a list field every entry counts. The file goes into
`tokenizer` of a text input. Kinds: `bpe` (bytes: any text can be written and read back), `unigram` (pieces, and bytes
for what they lack), `wordpiece` (BERT's; what it lacks is [UNK]). Chinese, Japanese and Thai need no spaces between
words. The same captions give the same file.
"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

from xmodal.commands.data_inputs import add_data_arguments, load_data, sources_of
from xmodal.config import ConfigError
from xmodal.messages import UsageError

_BLOCK_BYTES = 2**20  # read at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser, workers=False, tokenizer=False)
    out = parser.add_argument_group("tokenizer")
    out.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="the tokenizer.json to write")
    out.add_argument("--kind", default="bpe", metavar="KIND", help="bpe (default), wordpiece or unigram")
    out.add_argument("--size", type=int, default=8000, metavar="N", help="tokens at most; 8000 by default")
    out.add_argument(
        "--lower", action=argparse.BooleanOptionalAction, help="it lower-cases texts; as the input by default"
    )
    out.add_argument("--no-begin", action="store_true", help="no begin token, only an end token (as SigLIP)")
    out.add_argument("--mask", action="store_true", help="a mask token, for masked modelling (wordpiece has one)")
    out.add_argument("--special", default="", metavar="A,B,...", help="more special tokens")
    out.add_argument("--sample", type=int, default=200_000, metavar="N", help="samples to read; 0 reads all")


def run(args: argparse.Namespace) -> None:
    """Trains the tokenizer, writes it and prints how it writes the captions."""
    from data_pipelines.examine.coverage import Coverage
    from data_pipelines.modalities import inputs_of
    from data_pipelines.text.vocabularies import Rules, train
    from xmodal.reporting.files import write_text

    if args.sample < 0:
        raise UsageError(f"--sample is {args.sample}; expected a number of samples, or 0 for all")
    config = load_data(args)
    inputs = inputs_of(config.data)
    if inputs.caption is None:
        raise ConfigError("data.inputs has no text to train a tokenizer on")
    name = inputs.caption.name
    inputs = inputs.changed(name, lower=inputs.caption.lower if args.lower is None else args.lower, buckets=())
    if not args.config:
        inputs = inputs.changed(name, max_list=1)  # every entry of a list is a caption
    if not any(entry.get("unique", "") == "image" for entry in config.data.sources.values()):
        inputs = inputs.only(inputs.texts)
    lower = inputs.caption.lower
    special = tuple(name for name in args.special.split(",") if name)
    rules = Rules(args.kind, args.size, lower, not args.no_begin, args.mask, special)
    texts = list(_lines(args, config, inputs) if _plain(args) else _captions(args, config, inputs))
    tokenizer = train(texts, rules)
    if args.out.exists() and args.out.read_text(encoding="utf-8", errors="replace") != tokenizer.json:
        raise ConfigError(f"{args.out} exists and holds another tokenizer, which runs may use; name another file")
    coverage = Coverage(tokenizer)
    coverage.add(texts)
    print(write_text(args.out, tokenizer.json))
    _report(tokenizer, coverage, inputs.caption, len(texts), args.out)


def _plain(args: argparse.Namespace) -> bool:
    """Whether the inputs are texts without columns."""
    described = args.config or args.type or args.caption or args.template or args.columns
    return not described and all(name.lower().endswith(".txt") for name in args.inputs)


def _captions(args: argparse.Namespace, config: Any, inputs: Any) -> Iterator[str]:
    """Yields the captions of samples all over the data."""
    from concurrent.futures import ThreadPoolExecutor

    from data_pipelines.examine.sampling import choose, read_part
    from data_pipelines.host import cores
    from data_pipelines.io.storage import Files
    from data_pipelines.progress import progress
    from data_pipelines.workers import results_of

    with Files(**config.data.remote) as files:
        sources = sources_of(config, files, inputs=inputs)
        tables = [source.blocks(_BLOCK_BYTES) for source in sources]
        choice = choose(tables, args.sample, config.seed)

        def read(part: Any) -> list[str]:
            rules = sources[part.source].rules
            records = [sample.record for sample in read_part(part, sources, tables) if not sample.fault]
            return [text for record in records for text in rules.captions(record)]

        pool, calls = ThreadPoolExecutor(cores(), "read-captions"), ((part,) for part in choice)
        with progress(len(choice), "reading captions") as advance:
            for texts in results_of(pool, read, calls, cores(), files.close):
                yield from texts
                advance(1)


def _lines(args: argparse.Namespace, config: Any, inputs: Any) -> Iterator[str]:
    """Yields the captions of text files, one a line; of more than `--sample` lines so many, spread evenly."""
    from data_pipelines.io import paths
    from data_pipelines.io.storage import Files

    text = inputs.caption
    with Files(**config.data.remote) as files:
        names = paths.expand(args.inputs, files)
        count = 0
        for name in names:
            with files.open(name) as file:
                count += sum(bool(line.strip()) for line in file)
        wanted, number = min(args.sample or count, count), 0
        for name in names:
            with files.open(name) as file:
                for line in filter(bytes.strip, file):
                    number += 1
                    if number * wanted // count > (number - 1) * wanted // count:
                        yield text.text(line.decode("utf-8-sig", "replace"))


def _report(tokenizer: Any, coverage: Any, text: Any, count: int, out: pathlib.Path) -> None:
    from xmodal.reporting.summary import print_table

    columns = ["script", "captions", "tokens", "median", "95 %", "99 %", "most", "characters/token", "unknown", "bytes"]
    rows = [
        [row.script, row.captions, round(row.mean, 1), *row.percentiles, round(row.characters, 2),
         f"{row.unknown:.2%}", f"{row.partial:.2%}"]
        for row in coverage.rows()
    ]  # fmt: skip
    print_table("tokens of a caption, begin and end included", columns, rows)
    print("unknown: tokens for what the vocabulary lacks; bytes: tokens that are a part of a character")
    special = dict(pad=tokenizer.pad_id, begin=tokenizer.bos_id, end=tokenizer.eos_id, mask=tokenizer.mask_id)
    named = ", ".join(f"{name} {number}" for name, number in special.items() if number is not None)
    print(f"{tokenizer.vocab_size:,} tokens learnt from {count:,} captions; ids: {named}")
    length, cut = coverage.suggested()
    entry = f"c.data.inputs.{text.name}.update(tokenizer={str(out)!r}, length={length}, lower={text.lower})"
    print(f"in the recipe: {entry}")
    print(f"that length cuts {cut:.2%} of the captions; a model made for another vocabulary cannot go on with this one")
