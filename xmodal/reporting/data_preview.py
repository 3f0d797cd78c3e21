"""The page of `data preview`: samples beside what becomes of them on their way into the model."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xmodal.reporting.formatting import TIMES
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import reason, say, term
from xmodal.reporting.page import document

_ORIGINAL = 416  # pixels of the longer side, twice what the page shows
_LOSSLESS = 96  # pixels; larger views are stored as JPEG
_SMALL = 160  # pixels; smaller views are shown with their pixels as squares


@dataclass(frozen=True)
class View:
    """A sample as one visit of it shows it.

    Attributes:
      pixels: as they enter the model, normalisation undone, uint8 [size, size, 3]; None of a text alone.
      caption: the one that was chosen.
      tokens: their texts, those that are cut off included; empty where there is no tokenizer.
      kept: number of tokens that the model reads, begin and end not counted.
      back: what the tokens that it reads say.
    """

    pixels: np.ndarray | None
    caption: str
    tokens: Sequence[str] = ()
    kept: int = 0
    back: str = ""


@dataclass(frozen=True)
class Shown:
    """A sample and its views; one that cannot be used has a fault instead of them.

    Attributes:
      source: key in `data.sources`.
      shard: path.
      key: name in the shard.
      bytes: of the encoded image; 0 of a text alone.
      kind: format of the image.
      original: as it is; None where it cannot be decoded.
      group: content of the group key; "" where none is configured.
      path: where the sample came from before it was in its shard; "" where that is not known.
      views: several visits.
      fault: why it cannot be used.
    """

    source: str
    shard: str
    key: str
    bytes: int
    kind: str = ""
    original: Image.Image | None = None
    group: str = ""
    path: str = ""
    views: Sequence[View] = ()
    fault: str = ""


def render(title: str, samples: Sequence[Shown], settings: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Returns the page.

    Args:
      title: what the data are called.
      samples: in the order of their sources.
      settings: how the samples are changed, a few words each.
      notes: remarks for the reader.
    """
    names = list(dict.fromkeys(sample.source for sample in samples))
    header = el(
        "header",
        el("p", say("xmodal data"), class_="eyebrow"),
        el("h1", title),
        el(
            "p",
            say("{count} samples as the model sees them:", count=len(samples)),
            " ",
            " · ".join(settings),
            class_="soft",
        ),
        [el("p", note, class_="soft") for note in notes],
    )
    sections = [
        (name, el("div", [_card(sample) for sample in samples if sample.source == name], class_="sheet"))
        for name in names
    ]
    stored = any(sample.bytes for sample in samples)
    footer = (
        say("Left the image as it is stored; right what training shows of it at several visits, and what it reads.")
        if stored
        else say(
            "Left what the sample is called; right what training shows of it at several visits, and what it reads."
        )
    )
    return document(say("{title} preview", title=title), header, sections, footer, ("report.css", "data.css"))


def _card(sample: Shown) -> Markup:
    if sample.fault:
        right = el("p", say("not used: {reason}", reason=reason(sample.fault)), class_="why")
    else:
        right = el("div", [_view(view) for view in sample.views], class_="views")
    return el("article", _original(sample), right, class_="shown broken" if sample.fault else "shown")


def _original(sample: Shown) -> Markup:
    size = f"{sample.bytes / 1000:,.1f} kB" if sample.bytes else ""
    picture, image = None, sample.original
    if image is not None:
        size = f"{image.width:,} {TIMES} {image.height:,}, {sample.kind}, {size}"
        small = image.copy()
        small.thumbnail((_ORIGINAL, _ORIGINAL), Image.Resampling.LANCZOS)
        kind = "picture pixelated" if max(small.size) < _SMALL else "picture"
        picture = el("img", src=_uri(small, lossless=max(small.size) <= _LOSSLESS), alt="", class_=kind)
    facts = {
        "key": sample.key,
        "shard": sample.shard.rpartition("/")[2],
        "image": size,
        "group": sample.group,
        "file": sample.path,
    }
    rows = [[el("dt", term(name)), el("dd", value, title=sample.shard if name == "shard" else None)]
            for name, value in facts.items() if value]  # fmt: skip
    return el("div", picture, el("dl", rows), class_="original")


def _view(view: View) -> Markup:
    picture = None
    if view.pixels is not None:
        size = len(view.pixels)
        kind = "picture pixelated" if size < _SMALL else "picture"
        picture = el("img", src=_uri(Image.fromarray(view.pixels), size <= _LOSSLESS), alt=view.caption, class_=kind)
    back = (
        el("div", say("read as: {text}", text=view.back), class_="back", dir="auto")
        if view.back != view.caption
        else None
    )
    tokens = [_tokens(view), back] if view.tokens else None
    return el("figure", picture, el("figcaption", view.caption, dir="auto"), tokens, class_="view")


def _tokens(view: View) -> Markup:
    kept = [el("span", token) for token in view.tokens[: view.kept]]
    cut = [el("span", token, class_="cut") for token in view.tokens[view.kept :]]
    mark = el("em", say("✂ {count} cut", count=len(cut)), title=say("longer than the input's length")) if cut else None
    return el("div", kept, mark, cut, class_="tokens", dir="auto")


def _uri(image: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    image.save(buffer, kind, **(dict(optimize=True) if lossless else dict(quality=88)))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
