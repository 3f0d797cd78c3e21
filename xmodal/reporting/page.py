"""What all our pages share: one self-contained HTML file, with its style sheet, its script and its security policy."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence

from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import Message, in_chinese, say, used_by

LANGUAGES = {"en": "English", "zh-Hans": "中文"}


def document(
    title: str,
    header: Markup,
    sections: Sequence[tuple[str, Markup]],
    footer: object,
    styles: Sequence[str] = ("report.css",),
    clock: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Builds a page that loads nothing: images are `data:` URIs, and no script runs but the one built in.

    Args:
      title: of the browser's window.
      header: the top of the page, a `header` element.
      sections: (title, content) in order; the titles become the navigation.
      footer: the last line.
      styles: style sheets of `assets`.
      clock: knots of "step", "sample" and "time", by which charts over steps can be shown over the other two.
    """
    style, script = Markup("".join(map(asset, styles))), Markup(asset("language.js") + asset("report.js"))
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hash_of(script)}"
    anchors = [(name, name.lower().replace(" ", "-")) for name, _ in sections]
    body = el(
        "body",
        language_switch(),
        header,
        el(
            "nav",
            el("div", el("div", [el("a", name, href=f"#{id}") for name, id in anchors], class_="links"), _axes(clock)),
        ),
        el(
            "main",
            [
                el("section", el("h2", name), content, id=anchor)
                for (name, anchor), (_, content) in zip(anchors, sections)
            ],
        ),
        el("footer", footer),
        el("script", script),
        data_messages=messages_of(script),
    )
    policy_tag = el("meta", http_equiv="Content-Security-Policy", content=policy)
    return "<!doctype html>\n" + el("html", head(title, "xmodal", style, policy_tag), body, lang="en")


def _axes(clock: Mapping[str, Sequence[float]] | None) -> Markup | None:
    """The switch between training steps, samples and time, for readers with scripts."""
    if not clock:
        return None
    names = {"step": say("steps"), "sample": say("samples"), "time": say("time")}
    buttons = [
        el("button", name, type="button", data_axis=axis, aria_pressed="true" if axis == "step" else "false")
        for axis, name in names.items()
    ]
    data = json.dumps(clock, separators=(",", ":"))
    return el(
        "span", buttons, class_="axes", role="group", aria_label=say("Horizontal axis"), data_clock=data, hidden=True
    )


def head(title: str, program: str, style: Markup, *more: Markup) -> Markup:
    """The head of a page: its title, in both languages, and its style sheet."""
    known = isinstance(title, Message) or isinstance(program, Message)
    chinese = f"{in_chinese(title)} · {in_chinese(program)}" if known else None
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        more,
        el("title", f"{title} · {program}", data_zh=chinese),
        el("style", style),
    )


def language_switch() -> Markup:
    """The buttons that choose the language of a page; a browser without scripts shows English, and no buttons."""
    buttons = [
        el(
            "button",
            name,
            type="button",
            lang=code,
            data_language=code,
            aria_pressed="true" if code == "en" else "false",
        )
        for code, name in LANGUAGES.items()
    ]
    return el("div", el("div", buttons, role="group", aria_label="Language / 语言"), class_="languages", hidden=True)


def messages_of(script: str) -> str:
    """What a script says, as JSON for `data-messages`: English -> Chinese."""
    return json.dumps(used_by(script), ensure_ascii=False, separators=(",", ":"))


def card(label: object, value: object, *notes: object) -> Markup:
    """One figure of a header: what it is, the figure, and what belongs to it."""
    return el(
        "div",
        el("div", label, class_="label"),
        el("div", value, class_="value"),
        [el("div", note, class_="note") for note in notes],
        class_="card",
    )


def table(columns: Sequence[object], rows: Sequence[Markup | Sequence[object]], class_: str | None = None) -> Markup:
    """A table that scrolls where it is too wide; cells are text or `Markup`; a row may be a whole `tr`."""
    head = el("tr", [el("th", column) for column in columns])
    body = [row if isinstance(row, Markup) else el("tr", [el("td", cell) for cell in row]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", body), class_=class_), class_="scroll")


def asset(name: str, package: str = __package__) -> Markup:
    """Returns a style sheet or script of the `assets` of a package."""
    return Markup(importlib.resources.files(package).joinpath("assets", name).read_text(encoding="utf-8"))


def hash_of(content: str) -> str:
    """Returns what allows an inline script or style sheet, and no other, in a security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
