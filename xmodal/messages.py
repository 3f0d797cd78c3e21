"""Errors that a person can mend, and the hints in them."""

import difflib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence

MOVED = {  # sections that held what are options of inputs
    "image": 'data.inputs.image (type="image")', "text": 'data.inputs.text (type="text")',
    "label": 'data.inputs.label (type="label")', "modalities": "the entries of data.inputs",
}  # fmt: skip


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key, what was given and what was expected."""


class UsageError(ConfigError):
    """Arguments of a command that make no sense, alone or together; the exit code is 2, as argparse has it."""


def program() -> str:
    """Returns what a user types to start a command of xmodal, as this process was started."""
    typed = sys.argv[0]
    if os.path.basename(typed) == "xmodal":
        return _as_typed(typed)
    return f"{_as_typed(sys.executable or 'python')} -m xmodal"


def _as_typed(path: str) -> str:
    """Returns a program's name where the shell finds it by that, else its path, relative below the current folder."""
    name = os.path.basename(path)
    for known in (name, "python"):
        if path == name or ((found := shutil.which(known)) and os.path.abspath(found) == os.path.abspath(path)):
            return known
    below = os.path.relpath(path)
    return shlex.quote(path if below.startswith(os.pardir) else below)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" with the choices most like `name`, or "" when none is close."""
    return _question(difflib.get_close_matches(name, list(choices), n=3, cutoff=0.6))


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Says that there is no `key`, with the closest ones; the last part counts most: `lr` finds `optimizer.lr`.

    Args:
      key: dotted path.
      known: dotted paths of all sections and options.
    """
    likeness = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()
    section, _, name = key.rpartition(".")
    scores, siblings = {}, []
    for candidate in known:
        home, _, last = candidate.rpartition(".")
        if likeness(name, last) >= 0.7:
            scores[candidate] = likeness(name, last) + likeness(key, candidate)
        if home == section:
            siblings.append(last)
    close = [k for k in scores if scores[k] >= max(scores.values()) - 0.3]
    valid = f" Keys of {section or 'a config'}: {', '.join(siblings)}." if siblings else ""
    return f"unknown key {key!r}.{_question(sorted(close, key=scores.get, reverse=True)[:3]) or valid}"


def _question(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def moved(key: str) -> str:
    """Says where an option of samples is now; "" for others."""
    data, _, rest = key.partition(".")
    section, _, option = rest.partition(".")
    if data != "data" or section not in MOVED:
        return ""
    place = MOVED[section] + (f".{option}" if option else "")
    return f"{key!r} is now {place}: data.inputs names the parts of a sample, each of a modality with its options"
