"""The page of the search server: one document that loads images and results from its own server, and nothing else."""

import functools
from collections.abc import Sequence

from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import say
from xmodal.reporting.page import asset, hash_of, head, language_switch, messages_of

TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp")
_AMONG = dict(image=say("Images"), text=say("Captions"))
# Material of the icons: outlines on a grid of 24.
_PICTURE = "M4 5h16v14H4zM4 16l5-5 4 4 2-2 5 4M15.5 9.5h.01"
_CROSS = "M7 7l10 10M17 7L7 17"
_EYE = "M2.5 12c2-4 5.4-6.5 9.5-6.5s7.5 2.5 9.5 6.5c-2 4-5.4 6.5-9.5 6.5s-7.5-2.5-9.5-6.5zM12 9.3a2.7 2.7 0 1 0 .01 0z"
_PREVIOUS, _NEXT = "M15 5l-7 7 7 7", "M9 5l7 7-7 7"
_DOUBT = say(
    "This model was only taught which image and text belong together, not where in an image a word is: what it points "
    "to is a hint at best."
)
_KEYS = (
    ("/", say("write")),
    ("Enter", say("search, or more like the chosen one")),
    (say("arrows"), say("choose")),
    ("m", say("where the words point to in the chosen one")),
    ("Esc", say("start afresh")),
)


@functools.cache
def document(title: str, about: str, among: Sequence[str], reads: Sequence[str], no_maps: str) -> tuple[str, str]:
    """Builds the page.

    Args:
      title: name of the index.
      about: what it holds, in a line.
      among: "image", "text": what can be compared with.
      reads: "image", "text": what the model reads, and so may be asked.
      no_maps: why there are no word maps; "" where there are.

    Returns:
      (the page, the security policy that it is to be sent with).
    """
    style = Markup(asset("report.css") + asset("search.css", __package__))
    script = Markup(asset("language.js") + asset("search.js", __package__) + asset("maps.js", __package__))
    policy = (
        f"default-src 'none'; script-src {hash_of(script)}; style-src {hash_of(style)}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
    line = say("{about} · no word maps: {reason}", about=about, reason=no_maps) if no_maps else about
    body = el(
        "body",
        language_switch(),
        el("header", el("h1", title), el("p", line, class_="soft"), _form(among, reads)),
        el(
            "main",
            el("p", id="status", role="status"),
            el("p", id="warning", role="alert", hidden=True),
            el("ol", id="results", aria_label=say("Results")),
            el("p", el("button", say("More results"), type="button"), id="more", hidden=True),
        ),
        _map(),
        el("template", _icon(_EYE), id="eye"),
        el("footer", [el("span", el("kbd", key), " ", use) for key, use in _KEYS]),
        el("div", el("p", say("Drop the image to look for it")), id="drop", hidden=True),
        el("script", script),
        data_messages=messages_of(script),
    )
    program = say("xmodal search")
    return "<!doctype html>\n" + el("html", head(title, program, style, _ICON), body, lang="en"), policy


_ICON = Markup('<link rel="icon" href="data:,">')


def _form(among: Sequence[str], reads: Sequence[str]) -> Markup:
    placeholder = say("Describe an image, in a language that the model knows")
    if "text" not in reads:
        placeholder = say("This model reads images alone")
    shown = el("img", alt=say("The image looked for")), _button(say("Remove the image"), _CROSS)
    field = el(
        "div",
        el("span", *shown, id="chip", hidden=True),
        el(
            "input", type="search", id="text", name="text", maxlength=2000, placeholder=placeholder, autocomplete="off",
            aria_label=say("Text to look for"), enterkeyhint="search", autofocus=True, disabled="text" not in reads,
        ),
        el(
            "label",
            el("input", type="file", id="file", accept=",".join(TYPES)),
            _icon(_PICTURE),
            title=say("Choose an image, drop one anywhere, or paste one"),
            hidden="image" not in reads,
        ),
        el("button", say("Search"), type="submit"),
        class_="field",
    )  # fmt: skip
    choices = [
        el("label", el("input", type="radio", name="among", value=kind, checked=kind == among[0]), _AMONG[kind])
        for kind in among
    ]
    limits = dict(min="0", max="1", step="0.05", value="0.5")
    weight = el("input", type="range", id="weight", **limits, aria_label=say("Weight of the image"))
    balance = el("label", say("text"), weight, say("image"), id="balance", hidden=True)
    where = el("div", say("Look among"), choices, class_="among", role="group", hidden=len(among) < 2)
    return el("form", field, el("div", where, balance, class_="options"), role="search")


def _map() -> Markup:
    """The window with one result, large, and the words of the question to choose from."""
    turn = _button(say("Image before"), _PREVIOUS, id="before"), _button(say("Next image"), _NEXT, id="after")
    inner = el(
        "div",
        el("p", id="words", role="group", tabindex="-1", aria_label=say("Words: choose one to see where it points to")),
        el("figure", el("span", el("img", id="shown", alt=""), el("span", id="best"), id="drawn", hidden=True)),
        el("p", id="caption"),
        el("p", id="told", role="status", class_="soft"),
        el("p", _DOUBT, id="doubt", hidden=True),
        el("div", *turn, _button(say("Close"), _CROSS, id="close"), class_="turn"),
    )
    return el("dialog", inner, id="map", aria_label=say("Where a word points to"))


def _button(label: str, path: str, id: str | None = None) -> Markup:
    return el("button", _icon(path), type="button", aria_label=label, title=label, id=id)


def _icon(path: str) -> Markup:
    return el("svg", el("path", d=path), viewBox="0 0 24 24", aria_hidden="true")
