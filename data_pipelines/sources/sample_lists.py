"""Lists of samples, for `keep` and `drop` of a source: what a filter, a search for duplicates or a person has chosen.

A sample is named SHARD/KEY: the file name of its shard or list, and its key there. A list is a text file with a name on
each line, or a .npy file of hashes of such names (uint64, sorted): 8 bytes a sample, for lists of very many.
"""

import io
import os
from collections.abc import Iterable

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.io import paths
from data_pipelines.io.storage import Files, printable
from data_pipelines.measures import KeyHash, hash_key
from data_pipelines.sources.base import Source
from data_pipelines.sources.selected import Selected

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: names with shard and key exchanged are other names
_HASHED = ".npy"


def listed(source: Source, keep: str | tuple, drop: str | tuple, files: Files) -> Source:
    """Returns those samples of a source that one of the lists `keep` names, if there are any, and none of `drop`.

    Raises:
        DataError: a list is missing or malformed, or nothing is left.
    """
    if not keep and not drop:
        return source
    for lists, named, reason in ((keep, True, "not in the keep list"), (drop, False, "in the drop list")):
        if not lists:
            continue
        names = read_names(lists, files)
        chosen = np.isin(names_of(source), names) == named
        if not chosen.any():
            which = f"none of the {len(names):,} names of {lists} is one" if named else f"{lists} names all"
            raise DataError(
                f"{which} of the {source.samples:,} samples of {source.name}; names are SHARD/KEY, such as "
                f"{_example(source)}"
            )
        source = Selected(source, chosen, reason=reason)
    return source


def names_of(source: Source) -> np.ndarray:
    """Returns the hash of the name of every usable sample, in the order of the blocks; uint64 [samples]."""
    blocks, shards = source.blocks(1), np.array([hash_key(name) for name in source.shard_names()], np.uint64)
    return _joined(shards[np.repeat(blocks.shard, blocks.count)], source.column(KeyHash()))


def read_names(lists: str | Iterable[str], files: Files) -> np.ndarray:
    """Returns the hashes of the names in lists, sorted; uint64 [names].

    Args:
        lists: patterns of files, as `urls` of shards.
        files: reads them.

    Raises:
        DataError: there is no such file, or it is no list.
    """
    parts = [_read(path, files.read_all(path)) for path in paths.expand(lists, files)]
    return np.unique(np.concatenate(parts))


def write_names(path: str, names: Iterable[tuple[str, str]], files: Files) -> int:
    """Writes a list of (shard, key), as text or as hashes by the extension of its path; returns how many there are."""
    rows = [(os.path.basename(shard), key) for shard, key in names]
    if path.endswith(_HASHED):
        buffer = io.BytesIO()
        np.save(buffer, np.unique(name_hashes(rows)), allow_pickle=False)
        content = buffer.getvalue()
    else:
        content = "".join(f"{shard}/{key}\n" for shard, key in rows).encode("utf-8", "surrogatepass")
    files.write_atomic(path, content)
    return len(rows)


def _read(path: str, content: bytes) -> np.ndarray:
    if printable(path).endswith(_HASHED):
        try:
            names = np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{printable(path)} is no list of samples: {error}") from None
        if names.dtype != np.uint64 or names.ndim != 1:
            raise DataError(
                f"{printable(path)} holds {names.dtype} {names.shape}; expected hashes of names, uint64 [n]"
            )
        return names
    rows = []
    for number, line in enumerate(content.decode("utf-8", "surrogateescape").split("\n"), 1):
        shard, slash, key = line.rstrip("\r").partition("/")
        if not slash and shard:
            raise DataError(f"line {number} of {printable(path)} is {line[:80]!r}; expected SHARD/KEY")
        if slash:
            rows.append((shard, key))
    return name_hashes(rows)


def name_hashes(rows: list[tuple[str, str]]) -> np.ndarray:
    """Returns the hashes of names (shard, key), in their order; uint64 [names]."""
    column = lambda place: np.array([hash_key(row[place]) for row in rows], np.uint64)
    return _joined(column(0), column(1))


def _joined(shards: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return keys + _ODD * shards  # modulo 2**64


def _example(source: Source) -> str:
    (first, *_) = source.read(source.blocks(1), 0)
    return f"{os.path.basename(first.shard)}/{first.key}"
