"""How fast the data arrive on this machine, what limits that, and how many accelerators it feeds.

python -m xmodal data bench 'shards/*.tar'
python -m xmodal data bench --config configs/clip.py --accelerator 1500 --accelerator mine=4200

The loader runs alone, as training would run it: order, reading, decoding, crops, tokens. Then the data are read without
being decoded, which tells the two apart. Try the options that it names with --config.data.threads=... and the like.
"""

import argparse
import pathlib
from typing import Any

from xmodal.commands.data_inputs import (
    DEMO_TOKENIZER,
    add_data_arguments,
    load_data,
    name_tokenizers,
    sources_of,
    title_of,
)

_BUSY = 0.7  # share of the processors below which something else must have used them
_READING = 3.0  # seconds of reading without decoding
# Operations of one training sample of CLIP ViT-B/16 at 224 pixels: three times 35.1 (image) and 6.0 GFLOP (77 tokens).
_SAMPLE_FLOPS, _UTILISATION = 123e9, 0.4
_ACCELERATORS = ("A100", "H100", "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser, workers=False)
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="to measure, after the warm-up")
    parser.add_argument(
        "--accelerator", action="append", metavar="[NAME=]SPEED",
        help="samples/s that one accelerator trains on; by default those of some that train ViT-B/16",
    )  # fmt: skip
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the figures to this file")


def run(args: argparse.Namespace) -> None:
    """Measures, prints the tables and writes them where --json says."""
    from data_pipelines.examine.throughput import measure
    from data_pipelines.stream.stream import open_stream
    from xmodal.messages import UsageError
    from xmodal.reporting.files import write_json
    from xmodal.training.durations import samples_of

    if args.seconds <= 0:
        raise UsageError(f"--seconds is {args.seconds:g}; expected a number above 0")
    accelerators, config = _accelerators(args.accelerator), load_data(args)
    data = config.data
    name_tokenizers(config, DEMO_TOKENIZER)
    opened = lambda: open_stream(
        data, batch_size=config.batch_size, seed=config.seed,
        samples=lambda start, epoch_size: samples_of(start, config, epoch_size),
    )  # fmt: skip
    speed = measure(opened, data, args.seconds)
    reading = _reading(config)
    limit, advice = judge(speed, reading)
    feeds = [
        dict(accelerator=name, speed=need, feeds=speed.rate / need, cores=need * speed.cpu)
        for name, need in accelerators.items()
    ]
    _print(title_of(args), speed, reading, limit, advice, feeds)
    if not args.accelerator:
        print(
            "speeds of accelerators: CLIP ViT-B/16 at 224 pixels, 123 GFLOP a sample, at 40 % of the peak in bfloat16"
        )
    if args.json:
        facts = vars(speed) | dict(samples_per_s=speed.rate, reading_per_s=reading, decoding_per_s=speed.decoding)
        write_json(args.json, facts | dict(limit=limit, advice=advice, accelerators=feeds))


def judge(speed: Any, reading: float) -> tuple[str, str]:
    """Returns what limits a stream, "decoding" or "reading", and what to change."""
    from data_pipelines.host import cores

    if reading < speed.decoding:
        return "reading", (
            f"read more blocks at a time: data.readers={2 * speed.readers} (now {speed.readers}; buckets some 16), or "
            "put the data on a faster disk"
        )
    if speed.busy < _BUSY:
        return "decoding", (
            f"the stream got only {speed.busy:.0%} of its processors: measure again when nothing else runs here"
        )
    if speed.threads < cores():
        return "decoding", f"decode in more threads: data.threads={cores()} (now {speed.threads})"
    return "decoding", (
        f"all {cores()} cores decode: use a machine with more, or smaller images (data build --max-side)"
    )


def _accelerators(given: list[str] | None) -> dict[str, float]:
    from xmodal.messages import UsageError
    from xmodal.reporting.flops import device_peak_flops

    if not given:
        return {name: _UTILISATION * device_peak_flops(name) / _SAMPLE_FLOPS for name in _ACCELERATORS}
    speeds = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            speeds[name or f"of {number} samples/s"] = speed = float(number)
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            raise UsageError(f"--accelerator is {text!r}; expected samples per second, such as 1500 or NAME=1500")
    return speeds


def _reading(config: Any) -> float:
    from data_pipelines.examine.throughput import reading_rate
    from data_pipelines.io.storage import Files

    with Files(**config.data.remote) as files:
        return reading_rate(sources_of(config, files), config.data, _READING, files.close)


def _print(title: str, speed: Any, reading: float, limit: str, advice: str, feeds: list[dict]) -> None:
    from data_pipelines.host import cores
    from xmodal.reporting.formatting import percent, size
    from xmodal.reporting.summary import print_table

    rate = lambda value: f"{value:,.0f} samples/s, {value * speed.bytes / 1e6:,.1f} MB/s"
    rows = [
        ["stream", rate(speed.rate)],
        ["cost", f"{1000 * speed.cpu:.2f} CPU ms/sample"],
        [
            "decoding alone could",
            f"{speed.decoding:,.0f} samples/s on {min(speed.threads, cores())} of {cores()} cores",
        ],
        ["reading alone could", f"{rate(reading)}, {speed.readers} blocks at a time"],
        ["processors busy", percent(min(1.0, speed.busy))],
        ["first batch after", f"{speed.first_batch:.2f} s"],
        ["memory at most", size(speed.memory)],
        ["limited by", limit],
        ["to go faster", advice],
    ]
    print_table(f"the loader on {title}: {speed.samples:,} samples in {speed.seconds:.1f} s", ["", ""], rows)
    if speed.epochs > 1:
        print(
            f"the data were read {speed.epochs:.1f} times: a disk that is slower than memory shows only in larger data"
        )
    rows = [[f["accelerator"], f"{f['speed']:,.0f}", f"{f['feeds']:.2f}", f"{f['cores']:.1f}"] for f in feeds]
    print_table("accelerators", ["accelerator", "samples/s each", "this machine feeds", "cores that feed one"], rows)
