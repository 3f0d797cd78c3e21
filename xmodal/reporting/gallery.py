"""Held-out examples with images: what evaluators store in `gallery.json` and how the report shows them.

    {"retrieval/unseen_vendor": {
       "image_to_text": [{"image": uri, "truth": ["grinning face"], "rank": 1,
                          "candidates": [{"text": "grinning face", "score": 0.71, "correct": true}, ...]}],
       "text_to_image": [{"text": "grinning face", "rank": 3,
                          "candidates": [{"image": uri, "title": "smile", "score": 0.7, "correct": false}, ...]}]},
     "captioning/unseen_vendor": {
       "captions": [{"image": uri, "truth": "red heart", "generated": "red heart", "correct": true}]},
     "pointing/pairs": {
       "pointing": [{"image": uri, "text": "dog and flag", "correct": false,
                     "maps": [{"text": "dog", "image": uri, "correct": true}, ...]}]}}

An image is a `data:` URI of a small PNG, WebP, JPEG or GIF; `rank` is the place of the first correct candidate, 1 for
a hit.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal.reporting.files import read_json
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import dotted, say, term

FILE = "gallery.json"
BUDGET = 4_000_000  # bytes of examples in the report, over all sets; images are most of it
OPEN = 9  # examples of a list shown before "more" is opened...
_WAYS = ("image_to_text", "text_to_image")  # kinds of which a set has both
FEW = 12  # ... unless the list is hardly longer
DATA_URI = re.compile(r"data:image/(png|webp|jpeg|gif);base64,[A-Za-z0-9+/]+={0,2}")


def read_gallery(workdir: str | os.PathLike) -> dict[str, Any]:
    """The stored examples of a run, empty if there are none."""
    return read_json(Path(workdir) / FILE, default={})


def render_gallery(gallery: Mapping[str, Any], kind: str, budget: int = BUDGET) -> Markup | None:
    """Renders the sets of one evaluator.

    Args:
      gallery: the content of `gallery.json`.
      kind: a key of `KINDS`.
      budget: bytes that all sets and kinds together may take; above it every list is cut by the same share, and
        a note tells how many examples were left out.

    Returns:
      None when there is nothing of that kind.
    """
    total = sum(_size(item) for parts in gallery.values() for items in parts.values() for item in items)
    share = min(1.0, budget / max(1, total))
    lists = [_list(name, kind, parts[kind], share) for name, parts in gallery.items() if parts.get(kind)]
    return Markup("".join(lists)) if lists else None


def _size(item: Mapping[str, Any]) -> int:
    return len(json.dumps(item))


def _list(name: str, kind: str, items: Sequence[Mapping[str, Any]], share: float) -> Markup:
    render, class_, correct = KINDS[kind]
    kept = _within(items, share * sum(map(_size, items)))
    right = sum(map(correct, kept))
    shown = [render(item, "right" if correct(item) else "wrong") for item in kept]
    label = name.partition("/")[2] or name
    left_out = len(items) - len(kept)
    group = f"{name}/{kind}"
    count = say("{right} of {count} right", right=right, count=len(kept))
    rest = say("; {count} more in {file}", count=left_out, file=FILE) if left_out else None
    heading = el(
        "div",
        el("h3", dotted([*label.split("/"), *([kind] if kind in _WAYS else [])])),
        el("span", count, rest, class_="soft"),
        el("div", [_filter(group, choice) for choice in ("all", "right", "wrong")], class_="filter"),
        class_="bar",
    )
    shown, more = (shown, []) if len(shown) <= FEW else (shown[:OPEN], shown[OPEN:])
    rest = (
        el("details", el("summary", say("{count} more", count=len(more))), el("div", more, class_=class_))
        if more
        else None
    )
    return el("div", heading, el("div", shown, class_=class_), rest, class_="gallery")


def _filter(group: str, choice: str) -> Markup:
    box = el("input", type="radio", name=group, class_=f"show-{choice}", checked=choice == "all")
    return el("label", box, term(choice))


def _within(items: Sequence[Mapping[str, Any]], budget: float) -> list[Mapping[str, Any]]:
    kept, used = [], 0
    for item in items:
        used += _size(item)
        if used > budget + 1:  # + 1: rounding of the share
            break
        kept.append(item)
    return kept


def _image(uri: object, title: str = "") -> Markup:
    """An embedded image; anything but a data URI of an image (a link, a script) is not shown."""
    if isinstance(uri, str) and DATA_URI.fullmatch(uri):
        return el("img", src=uri, alt=title, title=title or None, class_="picture", loading="lazy")
    return el("span", say("no image"), class_="picture blank")


def _rank(item: Mapping[str, Any]) -> Markup | None:
    rank = item.get("rank")
    return None if rank is None else el("span", say("rank {rank:,}", rank=int(rank)), class_="rank")


def _score(candidate: Mapping[str, Any]) -> str:
    score = candidate.get("score")
    return "" if score is None else f"{score:.2f}"


def _image_to_text(item: Mapping[str, Any], verdict: str) -> Markup:
    candidates = [
        el(
            "li",
            el("span", candidate["text"], dir="auto", title=candidate["text"]),
            el("em", _score(candidate)),
            class_="hit" if candidate.get("correct") else None,
        )
        for candidate in item["candidates"]
    ]
    truth = el("div", el("span", " / ".join(item["truth"]), dir="auto"), _rank(item), class_="truth")
    body = el("div", truth, el("ol", candidates, class_="candidates"))
    return el("div", _image(item["image"], " / ".join(item["truth"])), body, class_=f"item {verdict}")


def _text_to_image(item: Mapping[str, Any], verdict: str) -> Markup:
    found = [
        el(
            "figure",
            _image(candidate["image"], candidate.get("title", "")),
            el("figcaption", _score(candidate)),
            class_="hit" if candidate.get("correct") else None,
        )
        for candidate in item["candidates"]
    ]
    query = el("div", el("span", item["text"], class_="truth", dir="auto"), _rank(item))
    return el("div", query, el("div", found, class_="found"), class_=f"query {verdict}")


def _caption(item: Mapping[str, Any], verdict: str) -> Markup:
    truth = el("div", el("span", item["truth"], dir="auto"), class_="truth")
    generated = el("div", item["generated"] or say("(nothing)"), class_="generated", dir="auto")
    return el("div", _image(item["image"], item["truth"]), el("div", truth, generated), class_=f"item {verdict}")


def _pointing(item: Mapping[str, Any], verdict: str) -> Markup:
    shown = [(item["image"], item["text"], None), *((m["image"], m["text"], m["correct"]) for m in item["maps"])]
    figures = [
        el("figure", _image(image, text), el("figcaption", text, dir="auto"), class_="hit" if correct else None)
        for image, text, correct in shown
    ]
    text = el("div", el("span", item["text"], class_="truth", dir="auto"))
    return el("div", text, el("div", figures, class_="found"), class_=f"query {verdict}")


def _hit(item: Mapping[str, Any]) -> bool:
    return item.get("rank") == 1


def _correct(item: Mapping[str, Any]) -> bool:
    return bool(item.get("correct"))


KINDS: dict[str, tuple[Callable, str, Callable]] = {
    "image_to_text": (_image_to_text, "items", _hit),
    "text_to_image": (_text_to_image, "rows", _hit),
    "captions": (_caption, "items", _correct),
    "pointing": (_pointing, "rows", _correct),
}
