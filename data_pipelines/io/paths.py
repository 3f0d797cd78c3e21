"""From the patterns of a config to files."""

import glob
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.io.packed import is_packed, unpacked
from data_pipelines.io.storage import Files
from data_pipelines.io.urls import has_wildcard, is_remote, printable, protocol, without_secrets

# Recipes name the data that ships with the repository by relative paths, and must run from anywhere.
REPOSITORY = Path(__file__).resolve().parents[2]
_DRAWINGS = "data_pipelines/emoji/shards"  # what an installed package does not have

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_file(path: str | os.PathLike) -> Path:
    """Returns the file that `path` names, relative to the current directory or else to the repository root.

    Raises:
        DataError: there is no such file.
    """
    for candidate in _candidates(str(path)):
        if os.path.isfile(candidate):
            return Path(candidate)
    raise DataError(f"no file {str(path)!r} (looked at {', '.join(_looked_at(str(path)))})")


def find_folder(path: str) -> str | None:
    """Returns the folder that `path` names, relative to the current directory or else to the repository root."""
    return next(filter(os.path.isdir, _candidates(path)), None)


def expand(urls: str | Iterable[str], files: Files) -> list[str]:
    """Returns the shards that the patterns name, in the order of the patterns; of compressed ones their plain twins.

    Args:
        urls: one pattern or several. `{0000..0009}` counts, `{a,b}` lists, and `*`, `?` and `[...]` match files. A
            relative pattern is tried against the current directory, then against the repository root. Urls are
            matched in their bucket; a url without a wildcard is taken as it is, without asking for it.
        files: lists buckets.

    Raises:
        DataError: a file that a pattern names is missing, a pattern matches nothing, or two name the same file.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    shards = [shard for pattern in patterns for shard in _expand_one(pattern, files)]
    if not shards:
        raise DataError("no shards: `urls` is empty; give a path or a pattern such as 'shards-{0000..0009}.tar'")
    seen = set()
    for shard in map(printable, shards):  # by its query alone no web address is another shard
        if shard in seen:
            named = without_secrets(str(patterns))
            raise DataError(f"shard {shard} is named twice by {named}; its samples would count twice")
        seen.add(shard)
    return [str(unpacked(shard, files)) if is_packed(shard) else shard for shard in shards]


def expand_braces(pattern: str) -> list[str]:
    """Expands `{a,b}` and `{00..12}` (zero-padded as written), innermost first.

    Files and folders on this disk whose names hold braces are taken by their names.
    """
    there, rest = _literal(pattern)
    return [there + name for name in _expanded(rest, pattern)]


def _expanded(rest: str, pattern: str) -> list[str]:
    match = _BRACES.search(rest)
    if not match:
        return [rest]
    span = _RANGE.fullmatch(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if first > last:
            raise DataError(f"the range {match[0]} of {pattern!r} runs backwards")
        choices = [str(i).zfill(len(span[1])) for i in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise DataError(f"{match[0]} in {pattern!r} is neither a range {{0..9}} nor a list {{a,b}}")
    parts = (_expanded(rest[: match.start()] + choice + rest[match.end() :], pattern) for choice in choices)
    return list(dict.fromkeys(itertools.chain.from_iterable(parts)))


def _expand_one(pattern: str, files: Files) -> list[str]:
    names = expand_braces(pattern)
    if is_remote(pattern):
        return [path for name in names for path in _remote(name, files)]
    found, missing = [], names
    # One base holds the whole pattern: half of it here and half of it there would be another data set.
    for bases in zip(*(_candidates(name) for name in names)):
        matches = [_match(path) for path in bases]
        if any(matches):
            found = [path for group in matches for path in group]
            missing = [path for path, group in zip(bases, matches) if not group]
            break
    if not found:
        tried = " and ".join(_looked_at(pattern))
        hint = (
            "; the emoji drawings are in xmodal's repository and not in the installed package: run in a checkout, or "
            f"copy its folder {_DRAWINGS} to here"
        )
        hint = hint if pattern.startswith(_DRAWINGS) else ""
        raise DataError(f"no {_kind(pattern)} matches {pattern!r}: looked for {tried}{hint}")
    if missing:
        more = f" and {len(missing) - 1} more of {pattern!r} do" if len(missing) > 1 else f" of {pattern!r} does"
        raise DataError(f"shard {missing[0]}{more} not exist; {len(found)} of its shards do")
    return found


def _remote(name: str, files: Files) -> list[str]:
    protocol(name)  # must be one that can be read
    if not has_wildcard(name):
        return [name]  # whether it exists, and its size, one listing tells for all of them later
    found = files.glob(name)
    if not found:
        raise DataError(f"no {_kind(name)} matches {printable(name)!r}")
    return found


def _match(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    there, rest = _literal(path)
    return sorted(filter(os.path.isfile, glob.glob(glob.escape(there) + rest)))


def _literal(path: str) -> tuple[str, str]:
    """Returns the longest part of a path that is there as it is written, whatever marks its names hold, and the rest.

    Of a relative path one of its two places is enough.
    """
    if is_remote(path) or not any(mark in path for mark in "{["):
        return "", path
    if any(map(os.path.exists, _candidates(path))):
        return path, ""
    cut = len(path)
    while (cut := path.rfind("/", 0, cut)) > 0:
        if any(map(os.path.isdir, _candidates(path[:cut]))):
            return path[: cut + 1], path[cut + 1 :]
    return "", path


def _candidates(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return [path]
    return list(dict.fromkeys([os.path.abspath(path), str(REPOSITORY / path)]))


def _looked_at(path: str) -> list[str]:
    """Returns the candidates that a person may have meant: those in the repository only for a folder that it has."""
    here, *shipped = _candidates(path)
    top = Path(path).parts[0]
    return [here, *(shipped if os.path.dirname(path) and (REPOSITORY / top).is_dir() else ())]


def _kind(pattern: str) -> str:
    """Returns what messages call that which a pattern names."""
    name = printable(pattern).rstrip("}")
    if name.endswith(".tar") or is_packed(name):
        return "shard"
    return "file" if os.path.splitext(name)[1] else "file or folder"
