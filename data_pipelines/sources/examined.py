"""What one look at all rows of a list found, kept beside the list so that the next start need not look again.

What the list itself says holds as long as the list does not change. It says nothing of images on this disk, and to ask
for each of them would be most of the work again: so those that were missing are looked for at every start, and of the
others a few. One that is gone all the same is a fault when it is read, as one far away is.
"""

import itertools
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.errors import BadSample, DataError
from data_pipelines.io.listing import Listing, Row
from data_pipelines.io.storage import Files, Stat, basename, is_remote, parent, printable
from data_pipelines.io.urls import protocol
from data_pipelines.modalities.base import NoPart
from data_pipelines.rules import Rules
from data_pipelines.samples import Record
from data_pipelines.sources.rows import UNUSED
from data_pipelines.sources.sidecar import Kept, from_array, to_array
from data_pipelines.text.fields import field_names

LARGEST = 64 * 2**20  # bytes of an image
_VERSION = 3  # of the format; files of another one are not looked at
_CHUNK = 4096  # rows whose files are looked at together
_FIELDS_OF = 100  # rows whose fields are the available ones
_LISTED = 1000  # names kept per reason; the counts are exact
_DISTANT = 128 * 1024  # bytes, about, of an image that has not been fetched yet
_TEXT = 64  # bytes, about, of a text that is made of other columns
_SPOTS, _RUN = 16, 16  # places of a list, and rows there, whose files are looked for again

_log = logging.getLogger(__name__)

# Where the parts of a row lie, or embedded parts themselves, by input.
Place = Callable[[Row], Mapping[str, str | bytes | None]]


@dataclass
class Examined:
    """The rows of a list.

    Attributes:
        bytes: size of the list, and with `version` the check that all this still describes it.
        version: changes whenever the list does.
        sizes: of each row's image in bytes, about; UNUSED for rows left out; int32 [rows].
        marks: what the listing noted, see `Listing.marks`.
        local: there are rows that name images on this disk.
        skipped: reason -> rows left out.
        names: reason -> the first of them.
        filled: configured field -> rows in which it has a content.
        available: field names of the first rows.
        absent: images on this disk that cannot be used -> their size, -1 where there is none.
    """

    bytes: int
    version: str
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    marks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    local: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    available: list[str] = field(default_factory=list)
    absent: dict[str, int] = field(default_factory=dict)

    def skip(self, name: str, reason: str) -> None:
        """Counts a row that cannot be used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        listed = self.names.setdefault(reason, [])
        if len(listed) < _LISTED:
            listed.append(name)


def examined(
    listing: Listing, rules: Rules, place: Place, rule: str, files: Files, advance: Callable[[float], None]
) -> Examined:
    """Returns what is known of a list and prepares the list for reading; examines it if that is not known any more.

    Args:
        listing: with its columns chosen.
        rules: decide which rows are usable.
        place: says where parts lie.
        rule: tells other options from these.
        files: looks for them.
        advance: notes which further share of the list is done.
    """
    if not listing.version:  # a folder: only its files say what is in them
        return _examine(listing, rules, place, files, advance)
    kept = Kept(parent(listing.path), f"list {_VERSION} {basename(listing.path)} {rule} {rules.signature}", files)
    found = kept.read(_parse)
    if found is not None:
        listing.restore(found.marks)
        problem = _problem(found, listing, place, files)
        if not problem:
            advance(1.0)
            return found
        _log.warning("stale index: of %s, %s; looking at all its rows again", printable(listing.path), problem)
    found = _examine(listing, rules, place, files, advance)
    facts = {name: value for name, value in vars(found).items() if name not in ("sizes", "marks")}
    kept.write(dict(facts=to_array(facts), sizes=found.sizes, marks=found.marks))
    return found


def record_of(row: Row, rules: Rules) -> Record:
    """Returns texts and fields of a row, unchecked. Raises BadSample where it cannot be used."""
    if row.problem:
        raise BadSample(row.problem)
    try:
        return rules.from_fields(row.fields, row.texts)
    except BadSample:
        if row.textless:
            raise BadSample(row.textless) from None
        raise


def _parse(arrays: Mapping[str, np.ndarray]) -> Examined:
    return Examined(sizes=arrays["sizes"], marks=arrays["marks"], **from_array(arrays["facts"]))


def _problem(found: Examined, listing: Listing, place: Place, files: Files) -> str:
    """Returns what does not hold any more; "" if nothing was noticed."""
    if (found.bytes, found.version) != (listing.bytes, listing.version):
        return "the list changed"
    stats = files.stat_many(found.absent)
    if any((stats[path].size if path in stats else -1) != size for path, size in found.absent.items()):
        return "images that could not be used changed"
    if found.local:
        images: list[str] = []
        for start in np.unique(np.linspace(0, max(0, len(found.sizes) - _RUN), _SPOTS).astype(int)).tolist():
            used = found.sizes[start : start + _RUN] != UNUSED
            rows = listing.read(start, start + len(used))
            images += [
                path for row, wanted in zip(rows, used) if wanted for path in place(row).values() if _is_local(path)
            ]
        if len(files.stat_many(images)) < len(set(images)):
            return "images are missing that were there"
    return ""


def _examine(listing: Listing, rules: Rules, place: Place, files: Files, advance: Callable[[float], None]) -> Examined:
    found, sizes, rows = Examined(listing.bytes, listing.version), array("i"), listing.scan()
    filled, done = Counter(), 0.0
    while chunk := list(itertools.islice(rows, _CHUNK)):
        places = [place(row) for row in chunk]
        local = [path for parts in places for path in parts.values() if _is_local(path)]
        found.local = found.local or bool(local)
        stats = files.stat_many(local)
        for row, parts in zip(chunk, places):
            filled.update(rules.filled(row.fields))
            if row.number < _FIELDS_OF:
                found.available = list(dict.fromkeys([*found.available, *field_names(row.fields)]))
            try:
                rules.check(record_of(row, rules))
                sizes.append(_sizes(row, parts, stats, found, rules) if rules.inputs.stored else _of_text(row))
            except BadSample as bad:
                sizes.append(UNUSED)
                found.skip(listing.name(row), bad.reason)
        share = listing.share
        advance(share - done)
        done = share
    advance(1.0 - done)
    found.sizes = np.frombuffer(sizes, np.int32) if sizes else np.zeros(0, np.int32)
    found.marks, found.filled = listing.marks, dict(filled)
    return found


def _of_text(row: Row) -> int:
    """Returns the bytes of a row that is a text alone, about."""
    return len(next(iter(row.texts.values()), None) or "") or _TEXT


def _sizes(
    row: Row, parts: Mapping[str, str | bytes | None], stats: Mapping[str, Stat], found: Examined, rules: Rules
) -> int:
    """Returns the bytes of the parts of a row, about; raises BadSample."""
    total = 0
    for name, modality in rules.inputs.stored.items():
        try:
            total += _size(row, name, parts.get(name), stats, found, modality.noun)
        except NoPart:
            if modality.required:
                raise
    return total or _TEXT


def _size(row: Row, name: str, place: str | bytes | None, stats: Mapping[str, Stat], found: Examined, noun: str) -> int:
    """Returns the bytes of a part, about; raises BadSample."""
    held = row.sizes.get(name, -1)
    if not place and held < 0:
        raise NoPart(f"no {noun}")
    if not isinstance(place, str):
        return _checked(held, noun)
    if is_remote(place):
        try:
            protocol(place)
        except DataError:
            raise BadSample("unsupported url") from None
        return _DISTANT
    size = stats[place].size if place in stats else -1
    try:
        return _checked(size, noun)
    except BadSample:
        found.absent[place] = size
        raise


def _checked(size: int, noun: str) -> int:
    if size < 0:
        raise NoPart(f"no {noun}")
    if not size:
        raise BadSample(f"empty {noun}")
    if size > LARGEST:
        raise BadSample(f"{noun} too large")
    return size


def _is_local(place: str | bytes | None) -> bool:
    return isinstance(place, str) and bool(place) and not is_remote(place)
