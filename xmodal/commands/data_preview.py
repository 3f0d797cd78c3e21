"""A page of samples as the model sees them: crops, changes of colour, captions, tokens; beside the original images.

python -m xmodal data preview --config configs/demo.py --out preview.html
python -m xmodal data preview 'shards/*.tar' --config.data.image.policy=trivial --tokenizer tokenizer.json

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
    from data_pipelines.text.tokenizers import Tokenizer
    from xmodal.messages import UsageError
    from xmodal.reporting.data_preview import render
    from xmodal.reporting.files import write_text

    if args.samples < 1 or args.views < 1:
        raise UsageError(f"--samples is {args.samples} and --views {args.views}; expected numbers from 1")
    config = load_data(args)
    named = config.data.text.tokenizer
    tokenizer = Tokenizer.load(named) if named else None
    with open_sources(config, every_field=True) as sources:
        chosen = _choose(config, sources, args.samples)
        shown = _show(config, chosen, tokenizer, args.views)
    notes = [] if named else ["No tokenizer is named, so tokens are not shown: --tokenizer FILE."]
    print(write_text(args.out, render(title_of(args), shown, _settings(config.data), notes)))


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


def _show(config: Any, chosen: list[tuple[Any, Any]], tokenizer: Any, views: int) -> list:
    """Makes the views of all samples in one batch, view by view, so that the neighbours of a row are other samples."""
    from data_pipelines import rng
    from data_pipelines.images import augment
    from data_pipelines.stream.hooks import Hooks
    from data_pipelines.stream.rows import Row
    from xmodal.reporting.data_preview import Shown, View

    data, found = config.data, [_look(source, sample, config) for source, sample in chosen]
    usable = [i for i, shown in enumerate(found) if not shown.fault]
    if not usable:
        return found
    number = len(usable) * views
    draw = lambda words, use: rng.row_words(0, number, words, config.seed, use)
    crops, words = rng.uniform(draw(augment.WORDS, "crop")), draw(4, "caption")[:, 0].tolist()
    places = usable * views
    rows = [Row(_window(*chosen[i]), 0, crop, word) for i, crop, word in zip(places, crops, words)]
    pixels = _pixels(config, rows, tokenizer)
    hooks, own = Hooks("", data.text.transform, (1, 1)), {i: [] for i in usable}
    for i, row, image in zip(places, rows, pixels):
        source, sample = chosen[i]
        caption = hooks.text(source.captions.choose(sample.record, row.word), row.word, sample.key)
        own[i].append(View(image, caption, *(_read(caption, tokenizer, data.text.length) if tokenizer else ())))
    return [Shown(**vars(shown) | dict(views=own.get(i, ()))) for i, shown in enumerate(found)]


def _look(source: Any, sample: Any, config: Any) -> Any:
    """Returns a sample without its views."""
    from data_pipelines.errors import BadSample
    from data_pipelines.images.decode import Options, full_image, image_header
    from xmodal.reporting.data_preview import Shown

    options = Options.of(config.data.image)
    facts = dict(source=source.name, shard=sample.shard, key=sample.key, bytes=len(sample.image))
    facts |= dict(group=source.captions.identity(sample.record) or "", path=sample.path)
    try:
        if sample.fault:
            raise BadSample(sample.fault)
        if not source.captions.images:
            return Shown(**facts)
        kind = image_header(sample.image, options).kind
        return Shown(**facts, kind=kind, original=full_image(sample.image, options))
    except BadSample as bad:
        return Shown(**facts, fault=bad.reason)


def _window(source: Any, sample: Any) -> Any:
    """Returns a shuffle window of one sample."""
    from concurrent.futures import Future

    from data_pipelines.order.order import WindowPlan
    from data_pipelines.stream.windows import Window

    block, zero = Future(), np.zeros(1, np.int32)
    block.set_result([sample])
    return Window(source, WindowPlan(zero, zero, zero), (block,))


def _pixels(config: Any, rows: list, tokenizer: Any) -> list[np.ndarray | None]:
    """Returns what enters the model, normalisation undone: for each row uint8 [height, width, 3], None of a text."""
    import jax

    from data_pipelines.images.naflex import unpack
    from data_pipelines.samples import has_images
    from data_pipelines.stream.rows import RowFiller, empty_batch
    from data_pipelines.text.tokenizers import Tokenizer
    from xmodal import keys
    from xmodal.building import preprocessor
    from xmodal.commands.data_inputs import DEMO_TOKENIZER

    image, text = config.data.image, config.data.text
    if not has_images(config.data.modalities):
        return [None] * len(rows)
    rows = rows + rows[-1:] * (len(rows) % 2)  # mixing takes pairs
    filler = RowFiller(image, tokenizer or Tokenizer.load(DEMO_TOKENIZER), text.transform)
    batch = empty_batch(len(rows), text.length, filler.images.empty(len(rows)))
    filler.fill(batch, 0, rows)
    row_keys = keys.fold(keys.sample_keys(config.seed, 0, len(rows)), "preprocess")
    images = {name: array for name, array in batch.items() if name.startswith("image")}
    normal = np.asarray(jax.jit(preprocessor(image))(images, row_keys)["image"])
    if packing := filler.images.naflex:
        normal = [unpack(*row, packing.patch_size) for row in zip(normal, batch["image_grid"])]
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


def _settings(data: Any) -> list[str]:
    from data_pipelines.samples import has_images

    image = data.image
    if not has_images(data.modalities):
        return [*([f"transform {data.text.transform}"] if data.text.transform else []), f"{data.text.length} tokens"]
    crop = image.crop + (f" {image.scale[0]:g} to {image.scale[1]:g} of the area" * (image.crop == "random_resized"))
    packing = image.naflex.lengths
    size = f"at most {image.naflex.length or packing[-1]} patches" if packing else f"{image.size} pixels"
    parts = [size, crop, *(["flip"] if image.flip else []), *([image.policy] if image.policy else [])]
    parts += [f"{name} {image[name]:g}" for name in _SHADES if image[name]]
    parts += [f"transform {hook}" for hook in (image.transform, data.text.transform) if hook]
    return [*parts, f"{data.text.length} tokens"]
