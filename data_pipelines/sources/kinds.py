"""The type of a source, from what its entry names: tars, or folders and lists, or a tfds data set."""

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.io import paths
from data_pipelines.io.lists import EXTENSIONS
from data_pipelines.io.packed import ENDINGS
from data_pipelines.io.urls import is_remote, printable

_TARS = (".tar", *ENDINGS)


def kind_of(entry: Mapping[str, Any], where: str) -> str:
    """Returns the type of an entry of `data.sources`: what it says, or else what its names say.

    Tars end in .tar, .tar.gz, .tgz ...; folders of this machine and lists (.csv, .tsv, .txt, .jsonl, .json, .parquet)
    are `files`; an entry with `dataset` is `tfds`. Names that tell nothing are tars.

    Args:
        entry: the entry.
        where: its path in the config, for messages.

    Returns:
        A key of `data_pipelines.sources.SOURCES`, where the entry's own type is one.

    Raises:
        DataError: the names are plainly those of another type than the entry says, or of two types.
    """
    given, urls = entry.get("type"), entry.get("urls", ())
    if not given and "dataset" in entry:
        return "tfds"
    names = [urls] if isinstance(urls, str) else [name for name in urls if isinstance(name, str)]
    kinds = {kind: name for name in reversed(names) if (kind := _told(name))}
    if given not in (None, "", *_TYPES):  # one that names no urls, or none that exists
        return given
    if len(kinds) > 1:
        named = " and ".join(repr(printable(name)) for name in reversed(kinds.values()))
        raise DataError(f"{where}.urls names tars as well as folders or lists ({named}); give each an entry of its own")
    found = next(iter(kinds), None)
    if given and found and given != found:
        raise DataError(
            f"{where}.type is {given!r}, and {printable(kinds[found])!r} is {_TYPES[found]}: leave the type out, or "
            f"set --config.{where}.type={found}"
        )
    return given or found or "tar"


_TYPES = dict(tar="a tar", files="a folder or a list")


def guess(names: Iterable[str]) -> str:
    """Returns the type of data that are only named; see `kind_of`."""
    return kind_of(dict(urls=tuple(names)), "data")


def _told(name: str) -> str:
    """Returns the type that one name tells, "" for none."""
    plain = printable(name).lower().rstrip("}")  # "{a,b}.tar" and "{a.tar,b.tar}"
    if plain.endswith(_TARS):
        return "tar"
    if plain.endswith(EXTENSIONS):
        return "files"
    return "files" if not is_remote(name) and paths.find_folder(name) else ""
