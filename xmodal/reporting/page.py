"""What all our pages share: one self-contained HTML file, with its style sheet, its script and its security policy."""

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence

from xmodal.reporting.markup import Markup, el


def document(
    title: str,
    header: Markup,
    sections: Sequence[tuple[str, Markup]],
    footer: str,
    styles: Sequence[str] = ("report.css",),
) -> str:
    """Builds a page that loads nothing: pictures are `data:` URIs, and no script runs but the one built in.

    Args:
      title: of the browser's window.
      header: the top of the page, a `header` element.
      sections: (title, content) in order; the titles become the navigation.
      footer: the last line.
      styles: style sheets of `assets`.
    """
    style, script = Markup("".join(map(asset, styles))), asset("report.js")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hash_of(script)}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{title} · xmodal"),
        el("style", style),
    )
    anchors = [(name, name.lower().replace(" ", "-")) for name, _ in sections]
    body = el(
        "body",
        header,
        el("nav", el("div", [el("a", name, href=f"#{anchor}") for name, anchor in anchors])),
        el(
            "main",
            [
                el("section", el("h2", name), content, id=anchor)
                for (name, anchor), (_, content) in zip(anchors, sections)
            ],
        ),
        el("footer", footer),
        el("script", script),
    )
    return "<!doctype html>\n" + el("html", head, body, lang="en")


def card(label: str, value: str, *notes: str) -> Markup:
    """One figure of a header: what it is, the figure, and what belongs to it."""
    return el(
        "div",
        el("div", label, class_="label"),
        el("div", value, class_="value"),
        [el("div", note, class_="note") for note in notes],
        class_="card",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], class_: str | None = None) -> Markup:
    """A table that scrolls where it is too wide; cells are text or `Markup`."""
    head = el("tr", [el("th", column) for column in columns])
    body = [el("tr", [el("td", cell) for cell in row]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", body), class_=class_), class_="scroll")


def asset(name: str, package: str = __package__) -> Markup:
    """Returns a style sheet or script of the `assets` of a package."""
    return Markup(importlib.resources.files(package).joinpath("assets", name).read_text(encoding="utf-8"))


def hash_of(content: str) -> str:
    """Returns what allows an inline script or style sheet, and no other, in a security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
