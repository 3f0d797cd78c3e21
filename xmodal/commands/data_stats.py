"""What a data set is like: lengths of captions, sizes and shapes of images, duplicates, fields; printed and plotted.

python -m xmodal data stats 'shards/*.tar' --caption title --out stats
python -m xmodal data stats --config configs/clip.py --sample 100000

Some samples are read, all over the data (`--sample 0` reads all). Images are not decoded, but for a small version whose
perceptual hash tells duplicates. With `--out` the folder gets stats.html and stats.json.
"""

import argparse
import pathlib

from xmodal.commands.data_inputs import add_data_arguments, load_data, open_sources, processes, title_of, weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser)
    parser.add_argument("--sample", type=int, default=20_000, metavar="N", help="samples to read; 0 reads all")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="also write stats.html and stats.json there")


def run(args: argparse.Namespace) -> None:
    """Measures the data, prints the tables and writes the page."""
    from data_pipelines.examine.survey import Rules, survey, together
    from data_pipelines.images.decode import Options
    from data_pipelines.modalities import Image, inputs_of
    from xmodal.messages import UsageError
    from xmodal.reporting import data_stats
    from xmodal.reporting.files import write_json, write_text
    from xmodal.reporting.summary import print_table

    if args.sample < 0:
        raise UsageError(f"--sample is {args.sample}; expected a number of samples, or 0 for all")
    config = load_data(args)
    inputs = inputs_of(config.data)
    text, image = inputs.caption, next(iter(inputs.of_type(Image.type).values()), None)
    tokenizer = text.vocabulary if text is not None and text.tokenizer else None
    length, pixels = text.length if text is not None else 0, image.size if image is not None else 0
    rules = Rules(image.options if image is not None else Options(), tokenizer, length, pixels)
    with open_sources(config, every_field=True) as sources:
        surveys = survey(sources, rules, wanted=args.sample, seed=config.seed, workers=processes(args))
        shares = weights(config, sum(source.samples for source in sources))
        facts = {
            source.name: data_stats.SourceFacts(
                source.samples, source.bytes, source.shards, source.skipped, shares[source.name]
            )
            for source in sources
        }
    stats = data_stats.Stats(title_of(args), facts, surveys, together(surveys), length, pixels)
    for table in data_stats.tables(stats):
        print_table(*table)
    if tokenizer:
        cut = stats.whole.cut / max(1, stats.whole.tokens.count)
        print(f"{cut:.2%} of the captions are longer than {text.where}.length={length} tokens and are cut")
    else:
        print("tokens were not counted: name a tokenizer with --tokenizer FILE")
    if transparent := stats.whole.transparent:
        shown = dict(drop="lose their alpha channel").get(image.background, f"are put on {image.background}")
        share = transparent / max(1, stats.whole.shorter.count)
        print(f"{transparent:,} images ({share:.2%}) are transparent and {shown}: see {image.where}.background")
    if nulls := stats.whole.nulls:
        print(f"{nulls:,} captions are words for no value, such as 'nan' or 'None'; of lists `nulls` leaves them out")
    if args.out:
        write_json(args.out / "stats.json", stats.as_json())
        print(write_text(args.out / "stats.html", data_stats.render(stats)))
