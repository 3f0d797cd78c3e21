"""Embed whole data sets: parts with embeddings, keys, captions and small pictures, for search and for choosing data.

python -m xmodal embed 'shards/*.tar' --model runs/clip --out index
python -m xmodal embed photos --model hf:models/clip --what images --out index              # a folder, without captions
python -m xmodal embed --config configs/clip.py --model runs/clip --process 3/16 --out index  # one of 16 processes

DIR holds `manifest.json` and parts: `00000.safetensors` (`image`, `text`: unit vectors [samples, dim]), `00000.jsonl`
(shard, key and caption of each row), `00000.thumbnails`. The same command goes on where it was interrupted; another
model, other data or other options are refused. Of several processes, on one machine or many with a common disk, each
makes the parts I, I + N, ... on its own devices, and none waits for another. Images that cannot be read are left out,
counted by reason, and listed in `skipped.jsonl`.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

from xmodal.commands.data_inputs import add_data_arguments, load_data, open_sources, title_of
from xmodal.messages import UsageError
from xmodal.search.parts import IMAGE, KINDS, TEXT

_WHAT = dict(both=KINDS, images=(IMAGE,), captions=(TEXT,))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_data_arguments(parser, workers=False, tokenizer=False)
    parser.add_argument("--model", required=True, metavar="MODEL", help="run, imported folder, hf:DIR or open_clip:DIR")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the index")
    model = parser.add_argument_group("embeddings")
    model.add_argument("--what", choices=_WHAT, help="both where the model has both; images need no captions then")
    model.add_argument("--step", type=int, metavar="N", help="checkpoint of a run; the newest good one by default")
    model.add_argument("--compute", choices=("float32", "bfloat16"), help="as the model was trained by default")
    model.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="on disk")
    model.add_argument("--thumbnails", type=int, default=160, metavar="PIXELS", help="longer side; 0 keeps none")
    work = parser.add_argument_group("work")
    work.add_argument("--process", default="0/1", metavar="I/N", help="this process is number I of N, from 0")
    work.add_argument("--batch-size", type=int, default=256, metavar="N", help="embedded at once, on all devices")
    work.add_argument("--part-samples", type=int, default=16_384, metavar="N", help="samples of a part, about")


def run(args: argparse.Namespace) -> None:
    """Embeds, and says what was left out."""
    try:
        _embed(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _embed(args: argparse.Namespace) -> None:
    from data_pipelines.io.urls import is_remote
    from xmodal.distributed.runtime import set_compile_cache
    from xmodal.reporting.formatting import counted
    from xmodal.search.making import Options, make, plan
    from xmodal.search.models import open_model

    share = _share(args.process)
    if is_remote(args.out):
        raise UsageError(f"--out {args.out}: an index lies on a disk, local or common; copy it to a bucket afterwards")
    set_compile_cache("~/.cache/xmodal/jax")
    config = load_data(args)
    known = open_model(args.model, step=args.step, compute=args.compute, batch_size=args.batch_size)
    what = _WHAT[args.what] if args.what else tuple(kind for kind in KINDS if kind in known.model.inputs)
    options = Options(what, args.dtype, args.thumbnails, args.part_samples)
    with open_sources(config, every_field=True, inputs=_inputs(config, what)) as sources:
        job = plan(pathlib.Path(args.out), sources, options, title_of(args))
        began = time.perf_counter()
        samples = sum(source.samples for source in sources)
        print(f"{counted(samples, 'sample')} in {counted(len(job.spans), 'part')}", flush=True)
        done = make(job, known, share, threads=config.data.threads, readers=config.data.readers)
    _report(pathlib.Path(args.out), done, time.perf_counter() - began)


def _inputs(config: Any, what: tuple[str, ...]) -> Any:
    """Returns the inputs of samples: captions as people read them, since the model prepares them; needed or not."""
    from data_pipelines.modalities import inputs_of

    inputs = inputs_of(config.data)
    for name, text in inputs.texts.items():
        changes = dict(lower=False, clean="none", buckets=(), required=text.required and TEXT in what)
        inputs = inputs.changed(name, **changes)
    return inputs


def _share(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not index.isdigit() or not count.isdigit() or int(index) >= int(count):
        raise UsageError(f"--process is {text!r}; expected I/N with I from 0 to N - 1, such as 0/4")
    return int(index), int(count)


def _report(out: pathlib.Path, done: Any, seconds: float) -> None:
    if done.made:
        print(f"{done.made:,} samples embedded in {seconds:.1f} s ({done.made / seconds:,.0f} samples/s)")
    if done.missing:
        print(f"{done.missing} of {done.manifest['parts']} parts are the work of other processes, and not there yet")
        return
    manifest = done.manifest
    print(f"{manifest['samples']:,} samples in {out}, width {manifest['model']['dim']}")
    if manifest["skipped"]:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in manifest["skipped"].items())
        print(f"left out: {reasons}; see {out / 'skipped.jsonl'}", file=sys.stderr)
