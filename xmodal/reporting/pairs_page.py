"""A page of pairs of samples to look at: what a search for copies, or for test images in training data, has found."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import say
from xmodal.reporting.page import document

SHOWN = 200  # pairs on a page


@dataclass(frozen=True)
class Side:
    """A sample of a pair.

    Attributes:
      name: what a person finds it by.
      caption: "" where there is none.
      thumbnail: JPEG; None where none is kept.
    """

    name: str
    caption: str
    thumbnail: bytes | None


@dataclass(frozen=True)
class Pair:
    """Two samples and the cosine of their embeddings."""

    score: float
    left: Side
    right: Side


def spread(count: int) -> list[int]:
    """Returns which of `count` pairs in their order go to a page: all, or as many as fit from the first to the last."""
    if count <= SHOWN:
        return list(range(count))
    return [place * (count - 1) // (SHOWN - 1) for place in range(SHOWN)]


def render_pairs(title: str, columns: tuple[str, str], found: str, total: int, pairs: Sequence[Pair]) -> str:
    """Builds the page.

    Args:
      title: the headline.
      columns: what the left and the right sample of a pair are.
      found: a sentence with the figures.
      total: pairs that were found.
      pairs: those that are shown, in the order in which they are.
    """
    less = say("{shown:,} of {total:,} pairs, evenly from the most to the least alike", shown=len(pairs), total=total)
    header = el(
        "header", el("p", "xmodal data", class_="eyebrow"), el("h1", title), el("p", found, class_="soft"),
        el("p", less, class_="soft") if len(pairs) < total else None,
    )  # fmt: skip
    shown = [_pair(pair, columns) for pair in pairs] or [el("p", say("There are none."), class_="soft")]
    footer = say("The most alike come first: look from the end on where the limit should be.")
    return document(title, header, [(say("Pairs"), el("div", shown, class_="rows"))], footer)


def _pair(pair: Pair, columns: tuple[str, str]) -> Markup:
    sides = [_side(side, column) for side, column in zip((pair.left, pair.right), columns)]
    score = el("div", el("span", f"{min(pair.score, 1.0):.4f}", class_="truth"))
    return el("div", score, el("div", sides, class_="found pair"), class_="query")


def _side(side: Side, column: str) -> Markup:
    image = el("span", say("no image"), class_="picture blank")
    if side.thumbnail:
        uri = f"data:image/jpeg;base64,{base64.b64encode(side.thumbnail).decode()}"
        image = el("img", src=uri, alt=side.caption, class_="picture", loading="lazy")
    note = el("figcaption", el("b", column), " ", side.name, dir="auto", title=side.name)
    return el("figure", image, note, el("figcaption", side.caption, dir="auto") if side.caption else None)
