"""A page of samples as the model sees them: crops, changes of colour, captions, tokens; beside the original images.

python -m xmodal data preview --config configs/demo.py --out preview.html
python -m xmodal data preview 'shards/*.tar' --config.data.inputs.image.policy=trivial --tokenizer tokenizer.json

Nothing is drawn in another way than in training: the decoder, the crops, the choice of captions and the changes on the
device are those of the stream. Other samples are chosen with `--config.seed=1`.
"""

import argparse
import pathlib
from typing import Any

import numpy as np

from xmodal.commands.data_inputs import add_data_arguments, load_data, open_sources, title_of, weights

_SHADES = ("jitter", "grey", "blur", "solarize", "erase", "mixup", "cutmix")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser, workers=False)
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="shown, of all sources by their weights")
    parser.add_argument("--views", type=int, default=4, metavar="N", help="of each sample")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("preview.html"), metavar="FILE", help="page")


def run(args: argparse.Namespace) -> None:
    """Writes the page."""
    from data_pipelines.modalities import inputs_of
    from xmodal.messages import UsageError
    from xmodal.reporting.data_preview import render
    from xmodal.reporting.files import write_text

    if args.samples < 1 or args.views < 1:
        raise UsageError(f"--samples is {args.samples} and --views {args.views}; expected numbers from 1")
    config = load_data(args)
    inputs = inputs_of(config.data)
    inputs.check(device=True)
    named = [text for text in inputs.texts.values() if text.tokenizer]
    with open_sources(config, inputs=inputs, every_field=True) as sources:
        chosen = _choose(config, sources, args.samples)
        shown = _show(inputs, chosen, config.seed, args.views)
    notes = [] if named or not inputs.texts else ["No tokenizer is named, so tokens are not shown: --tokenizer FILE."]
    print(write_text(args.out, render(title_of(args), shown, _settings(inputs), notes)))


def _choose(config: Any, sources: list, wanted: int) -> list[tuple[Any, Any]]:
    """Returns (source, sample), of each source by its share of the stream and at least one."""
    from data_pipelines.examine.sampling import choose, read_part

    shares = weights(config, sum(source.samples for source in sources))
    chosen = []
    for source in sources:
        tables, count = [source.blocks(2**20)], max(1, round(shares[source.name] * wanted))
        for part in choose(tables, count, config.seed):
            chosen += [(source, sample) for sample in read_part(part, [source], tables)]
    return chosen


def _show(inputs: Any, chosen: list[tuple[Any, Any]], seed: int, views: int) -> list:
    """Makes the views of all samples in one batch, view by view, so that the neighbours of a row are other samples."""
    from data_pipelines.stream.rows import random_of
    from xmodal.reporting.data_preview import Shown, View

    found = [_look(source, sample) for source, sample in chosen]
    usable = [i for i, shown in enumerate(found) if not shown.fault]
    if not usable:
        return found
    places = usable * views
    rows = [(*chosen[i], random) for i, random in zip(places, random_of(inputs, 0, len(places), seed))]
    own: dict[int, list] = {i: [] for i in usable}
    for i, row, image in zip(places, rows, _pixels(inputs, rows, seed)):
        own[i].append(View(image, *_caption(*row)))
    return [Shown(**vars(shown) | dict(views=own.get(i, ()))) for i, shown in enumerate(found)]


def _caption(source: Any, sample: Any, random: Any) -> tuple:
    """Returns the caption that a row shows and, where a tokenizer is named, its tokens; () without texts."""
    text = source.rules.inputs.caption
    if text is None:
        return ("",)
    (caption, *_) = text.drawn(text.find(sample), random)
    return (caption, *(_read(caption, text.vocabulary, text.length) if text.tokenizer else ()))


def _look(source: Any, sample: Any) -> Any:
    """Returns a sample without its views."""
    from data_pipelines.errors import BadSample
    from data_pipelines.images.decode import full_image, image_header
    from data_pipelines.modalities import Image
    from xmodal.reporting.data_preview import Shown

    facts = dict(source=source.name, shard=sample.shard, key=sample.key, bytes=sample.bytes)
    facts |= dict(group=source.rules.identity(sample.record) or "", path=sample.path)
    try:
        if sample.fault:
            raise BadSample(sample.fault)
        for name, image in source.rules.inputs.of_type(Image.type).items():
            if name in sample.parts:
                kind = image_header(sample.parts[name], image.options).kind
                return Shown(**facts, kind=kind, original=full_image(sample.parts[name], image.options))
        return Shown(**facts)
    except BadSample as bad:
        return Shown(**facts, fault=bad.reason)


def _pixels(inputs: Any, rows: list[tuple], seed: int) -> list[np.ndarray | None]:
    """Returns what enters the model, normalisation undone: for each row uint8 [height, width, 3], None of a text."""
    import jax

    from data_pipelines.images.naflex import unpack
    from data_pipelines.modalities import Image
    from xmodal import keys

    image = next(iter(inputs.of_type(Image.type).values()), None)
    if image is None:
        return [None] * len(rows)
    rows = rows + rows[-1:] * (len(rows) % 2)  # mixing takes pairs
    batch = image.empty(len(rows))
    for place, (source, sample, random) in enumerate(rows):
        source.rules.inputs[image.name].fill(sample, random, batch, place)
    row_keys = keys.fold(keys.sample_keys(seed, 0, len(rows)), "preprocess")
    normal = np.asarray(jax.jit(image.on_device)(batch, row_keys)[image.name])
    if image.packing:
        normal = [unpack(*row, image.packing.patch_size) for row in zip(normal, batch[image.grid])]
    undo = lambda a: np.round(255 * (a * np.array(image.std) + np.array(image.mean)))
    return [np.clip(undo(shown), 0, 255).astype(np.uint8) for shown in normal]


def _read(caption: str, tokenizer: Any, length: int) -> tuple[list[str], int, str]:
    """Returns the texts of the tokens, how many of them are kept, and what those say."""
    (ids,) = tokenizer.tokens([caption])
    return (
        [tokenizer.decode([i]) or "·" for i in ids],
        length - tokenizer.marks,
        tokenizer.decode(tokenizer.encode([caption], length)[0][0]),
    )


def _settings(inputs: Any) -> list[str]:
    from data_pipelines.modalities import Image

    parts = [part for image in inputs.of_type(Image.type).values() for part in _of_image(image)]
    for text in inputs.texts.values():
        parts += [*([f"transform {text.transform}"] if text.transform else []), f"{text.length} tokens"]
    return parts


def _of_image(image: Any) -> list[str]:
    crop = image.crop + (f" {image.scale[0]:g} to {image.scale[1]:g} of the area" * (image.crop == "random_resized"))
    size = f"at most {image.packing.length} patches" if image.packing else f"{image.size} pixels"
    parts = [size, crop, *(["flip"] if image.flip else []), *([image.policy] if image.policy else [])]
    parts += [f"{name} {getattr(image, name):g}" for name in _SHADES if getattr(image, name)]
    return parts + ([f"transform {image.transform}"] if image.transform else [])
