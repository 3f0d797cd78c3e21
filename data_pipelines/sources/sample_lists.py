"""Lists of samples, for `keep` and `drop` of a source: what a filter, a search for duplicates or a person has chosen.

A sample is named SHARD/KEY: the file name of its shard or list, and its key there; or FOLDER/SHARD/KEY, which says of
which data set it is one, as lists do that the commands write. A list is a text file with a name on each line, or a .npy
file of hashes of such names (uint64, sorted): 8 bytes a sample, for lists of very many.
"""

import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.io import paths
from data_pipelines.io.storage import Files, printable
from data_pipelines.names import label_at, parts_of, shard_labels
from data_pipelines.sources.base import Source
from data_pipelines.sources.measures import KeyHash, hash_key
from data_pipelines.sources.selected import Selected

NAMED = 2  # parts of a shard's path in the lists that are written: its folder names the data set
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: names with shard and key exchanged are other names
_HASHED = ".npy"

_log = logging.getLogger(__name__)


def listed(source: Source, keep: str | tuple, drop: str | tuple, files: Files) -> Source:
    """Returns those samples of a source that one of the lists `keep` names, if there are any, and none of `drop`.

    Raises:
        DataError: a list is missing or malformed, a name can mean samples of several shards, or nothing is left.
    """
    for lists, named, reason in ((keep, True, "not in the keep list"), (drop, False, "in the drop list")):
        if not lists:
            continue
        names, count = read_names(lists, files, _ends(source))
        found = _found(source, names, f"{'keep' if named else 'drop'} list {lists}")
        if (found == named).sum() == 0:
            which = f"none of the {count:,} names of {lists} is one" if named else f"{lists} names all"
            raise DataError(
                f"{which} of the {source.samples:,} samples of {source.name}; names are SHARD/KEY or FOLDER/SHARD/KEY, "
                f"such as {_example(source)}"
            )
        if not named and not found.any():
            _log.warning(
                f"data.sources.{source.name}.drop leaves nothing out: none of the {count:,} names of {lists} is one of "
                f"its {source.samples:,} samples, such as {_example(source)}"
            )
        source = Selected(source, found == named, reason=reason)
    return source


def located(source: Source, names: np.ndarray, where: str) -> np.ndarray:
    """Returns the number in the source of the sample that each name means, -1 where there is none; int64.

    Args:
        source: the whole.
        names: hashes, uint64 of any shape.
        where: what they are called in messages.

    Raises:
        DataError: a name can mean samples of several shards.
    """
    numbers = np.full(names.shape, -1, np.int64)
    for own, shard, ends in _namings(source):
        order = np.argsort(own, kind="stable")
        place = np.minimum(np.searchsorted(own[order], names), len(own) - 1)
        found = own[order[place]] == names
        _check_certain(ends, shard[order[place][found]], where)
        numbers[found] = order[place][found]
    return numbers


def read_names(lists: str | Iterable[str], files: Files, ends: set[str]) -> tuple[np.ndarray, int]:
    """Returns the hashes of the names in lists, sorted, uint64 [names], and how many names there are in them.

    Args:
        lists: patterns of files, as `urls` of shards.
        files: reads them.
        ends: of the paths of the shards that the names are looked for in; names of other shards are only counted.

    Raises:
        DataError: there is no such file, or it is no list.
    """
    parts = [_read(path, files.read_all(path), ends) for path in paths.expand(lists, files)]
    return np.unique(np.concatenate([hashes for hashes, _ in parts])), sum(count for _, count in parts)


def write_names(path: str, names: Iterable[tuple[str, str]], files: Files, shards: Iterable[str] = ()) -> int:
    """Writes a list, as text or as hashes by the extension of its path; returns how many samples it names.

    Args:
        path: of the list.
        names: (shard, key) of the samples, the shard with its path.
        files: writes it.
        shards: all shards of the data that the samples were chosen from, which names have to tell apart.
    """
    rows = list(names)
    labels = shard_labels({*shards, *(shard for shard, _ in rows)}, NAMED)
    rows = [(labels[shard], key) for shard, key in rows]
    if path.endswith(_HASHED):
        buffer = io.BytesIO()
        np.save(buffer, np.unique(name_hashes(rows)), allow_pickle=False)
        content = buffer.getvalue()
    else:
        content = "".join(f"{shard}/{key}\n" for shard, key in rows).encode("utf-8", "surrogatepass")
    files.write_atomic(path, content)
    return len(rows)


def name_hashes(rows: list[tuple[str, str]]) -> np.ndarray:
    """Returns the hashes of names (label of a shard, key), in their order; uint64 [names]."""
    column = lambda place: np.array([hash_key(row[place]) for row in rows], np.uint64)
    return _joined(column(0), column(1))


def _ends(source: Source) -> set[str]:
    """All ends of the paths of a source's shards, by which names may call them."""
    parts = map(parts_of, source.shard_names())
    return {label_at(own, depth) for own in parts for depth in range(1, len(own) + 1)}


def _namings(source: Source) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Yields the names of all usable samples, in the order of the blocks, with ever more parts of their shards' paths.

    Yields:
        Hashes of the names, uint64 [samples]; the shard of each, int64 [samples]; the label of each shard.
    """
    blocks, keys, parts = source.blocks(1), source.column(KeyHash()), [*map(parts_of, source.shard_names())]
    shard = np.repeat(blocks.shard, blocks.count)
    for depth in range(1, max(map(len, parts), default=0) + 1):
        ends = [label_at(own, depth) for own in parts]
        yield _joined(np.array([hash_key(end) for end in ends], np.uint64)[shard], keys), shard, ends


def _found(source: Source, names: np.ndarray, where: str) -> np.ndarray:
    """Returns which samples of a source the names mean, bool [samples]."""
    found = np.zeros(source.samples, bool)
    for own, shard, ends in _namings(source):
        here = np.isin(own, names)
        _check_certain(ends, shard[here], where)
        found |= here
    return found


def _check_certain(ends: list[str], shards: np.ndarray, where: str) -> None:
    """Raises DataError where other shards end in the same parts as those that names were found in."""
    count = Counter(ends)
    for shard in np.unique(shards).tolist():
        if count[ends[shard]] > 1:
            raise DataError(
                f"the {where} names samples of {ends[shard]}, and {count[ends[shard]]} shards of the source are called "
                "so; write the folder, too: FOLDER/SHARD/KEY"
            )


def _read(path: str, content: bytes, ends: set[str]) -> tuple[np.ndarray, int]:
    if printable(path).endswith(_HASHED):
        try:
            names = np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{printable(path)} is no list of samples: {error}") from None
        if names.dtype != np.uint64 or names.ndim != 1:
            raise DataError(
                f"{printable(path)} holds {names.dtype} {names.shape}; expected hashes of names, uint64 [n]"
            )
        return names, len(names)
    rows, count = [], 0
    for number, line in enumerate(content.decode("utf-8", "surrogateescape").split("\n"), 1):
        name = line.rstrip("\r")
        if name and "/" not in name:
            raise DataError(f"line {number} of {printable(path)} is {line[:80]!r}; expected SHARD/KEY")
        count += bool(name)
        rows += [row for row in _readings(name) if row[0] in ends]
    return name_hashes(rows), count


def _readings(name: str) -> Iterator[tuple[str, str]]:
    """Yields all (label of a shard, key) that a name can mean: keys may hold slashes, too."""
    slash = name.find("/", 1)
    while slash > 0:
        yield name[:slash], name[slash + 1 :]
        slash = name.find("/", slash + 1)


def _joined(shards: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return keys + _ODD * shards  # modulo 2**64


def _example(source: Source) -> str:
    ((shard, key), *_) = source.names(source.blocks(1), 0)
    return f"{shard_labels(source.shard_names(), NAMED)[shard]}/{key}"
