"""HTML by construction: text is escaped unless it was built here, so a caption can never become code.

A `Message` becomes its English and its Chinese, of which the style sheet shows one; in an attribute the Chinese stands
beside it as `data-zh-<attribute>`, and `assets/language.js` puts it in its place.
"""

import html

from xmodal.reporting.messages import Message

VOID = frozenset({"input", "img", "meta", "br", "line", "path", "rect"})


class Markup(str):
    """Text that is HTML already; every other string is escaped on its way into an element."""

    __slots__ = ()


def el(tag: str, /, *children: object, **attributes: object) -> Markup:
    """Builds `<name attribute="...">children</name>`.

    Args:
      tag: name of the element.
      *children: `Markup` goes in as it is, None is left out, lists are unpacked, anything else is escaped text.
      **attributes: `class_` becomes `class` and `data_x` becomes `data-x`; True stands alone, None and False vanish.
    """
    opening = tag + "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in VOID:
        return Markup(f"<{opening}>" if tag in ("input", "img", "meta", "br") else f"<{opening}/>")
    return Markup(f"<{opening}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """Puts children one after another, by the rules of `el`."""
    return Markup("".join(_child(child) for child in children))


def _child(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(*child)
    if isinstance(child, Message) and child.zh != child:
        return f'<t-en>{_escaped(child)}</t-en><t-zh lang="zh-Hans">{_escaped(child.zh)}</t-zh>'
    return _escaped(child)


def _escaped(child: object) -> str:
    return html.escape(str(child), quote=False)


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
    if value is True:
        return f" {key}"
    chinese = f' data-zh-{key}="{html.escape(value.zh)}"' if isinstance(value, Message) else ""
    return f' {key}="{html.escape(str(value))}"{chinese}'
