"""Makes an index: embeds the samples of sources, part by part, in one process or several that do not know each other.

A plan says which blocks of the data make which part; it follows from data and options alone, and `manifest.json` holds
its digest. Process i of n makes the parts i, i + n, ...; whoever makes the last one that is missing completes the
manifest. A part is there whole or not at all, so that a work that was interrupted, however hard, goes on where it was.
"""

import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.host import cores
from data_pipelines.modalities import Image as ImageInput
from data_pipelines.names import label_at, parts_of
from data_pipelines.progress import progress
from data_pipelines.samples import Sample
from data_pipelines.sources import Source
from data_pipelines.sources.blocks import Blocks
from xmodal.config import ConfigError
from xmodal.finite import check_rows
from xmodal.inference import Model
from xmodal.reporting.files import write_json, write_text
from xmodal.search.index import FORMAT, MANIFEST, read_manifest
from xmodal.search.models import Known
from xmodal.search.parts import IMAGE, KINDS, TEXT, Part, part_path, write_part

DTYPES = ("float16", "float32")
_BLOCK_BYTES = 8 * 2**20  # read at a time, about
_CHUNK = 8  # images of one unit of work
_LISTED = 1000  # skipped samples named for each part; the counts are exact
_QUALITY = 85  # of thumbnails


@dataclasses.dataclass(frozen=True)
class Options:
    """What an index holds.

    Attributes:
      what: "image", "text" or both.
      dtype: of the embeddings on disk, "float16" or "float32".
      thumbnails: pixels of their longer side; 0 keeps none.
      part_samples: samples of a part, about.
    """

    what: tuple[str, ...] = KINDS
    dtype: str = "float16"
    thumbnails: int = 160
    part_samples: int = 16_384

    def __post_init__(self):
        if self.dtype not in DTYPES or not self.what or set(self.what) - set(KINDS):
            raise ConfigError(f"what is {self.what} and dtype {self.dtype}; expected some of {KINDS}, one of {DTYPES}")
        if self.part_samples < 1 or not 0 <= self.thumbnails <= 1024:
            raise ConfigError(
                f"part_samples is {self.part_samples} and thumbnails {self.thumbnails}; expected from 1, and 0 to 1024"
            )


class Span(NamedTuple):
    """Blocks [first, end) of a source, which make one part."""

    source: int
    first: int
    end: int


@dataclasses.dataclass(frozen=True)
class Job:
    """All that is to be done.

    Attributes:
      folder: of the index.
      sources: of the samples.
      tables: the blocks of each.
      spans: of each part.
      options: see there.
      title: of the data, for people.
    """

    folder: Path
    sources: Sequence[Source]
    tables: Sequence[Blocks]
    spans: Sequence[Span]
    options: Options
    title: str

    def samples(self, part: int) -> int:
        """Returns the samples of a part, bad ones included."""
        span = self.spans[part]
        return int(self.tables[span.source].count[span.first : span.end].sum())

    def read(self, block: Span) -> tuple[Source, list[Sample]]:
        """Returns the samples of a span of one block, with their source."""
        source = self.sources[block.source]
        return source, source.read(self.tables[block.source], block.first)

    def data(self) -> dict[str, str]:
        """Returns what tells these data from others."""
        digest = hashlib.blake2b(digest_size=16)
        for source, table in zip(self.sources, self.tables):
            digest.update(repr((source.name, source.identity())).encode("utf-8", "surrogatepass"))
            text = source.rules.inputs.caption
            rendering = text.captions.rendering if text is not None else ""
            digest.update(f"{source.rules.signature} {rendering}".encode())
            digest.update(table.digest())
        return dict(title=self.title, digest=digest.hexdigest())


def plan(folder: Path, sources: Sequence[Source], options: Options, title: str) -> Job:
    """Decides which blocks make which part; the arguments are the attributes of `Job`."""
    tables, spans = [], []
    for number, source in enumerate(sources):
        mean = source.bytes // max(source.samples, 1)
        table = source.blocks(max(1, min(_BLOCK_BYTES, mean * options.part_samples)))
        first = held = 0
        for block, count in enumerate(table.count.tolist()):
            if held and held + count > options.part_samples:
                spans.append(Span(number, first, block))
                first, held = block, 0
            held += count
        spans.append(Span(number, first, len(table)))
        tables.append(table)
    return Job(folder, sources, tables, [span for span in spans if span.end > span.first], options, title)


class Progress(NamedTuple):
    """What a process has done.

    Attributes:
      manifest: complete, or still begun while other processes work.
      made: samples that this process has embedded.
      missing: parts that are not there yet.
    """

    manifest: dict[str, Any]
    made: int
    missing: int


def make(job: Job, known: Known, share: tuple[int, int] = (0, 1), *, threads: int = 0, readers: int = 2) -> Progress:
    """Makes the parts of one process that are not there yet.

    Args:
      job: from `plan`.
      known: the model.
      share: (index, count) of this process.
      threads: that decode; 0 takes all cores.
      readers: blocks read at a time.

    Raises:
      ConfigError: the model cannot embed what is asked for.
      DataError: the folder holds another index, or the data cannot be read.
    """
    if lacking := [kind for kind in job.options.what if kind not in known.model.inputs]:
        raise ConfigError(f"{known.about['origin']} has no tower that embeds {lacking[0]}s alone; see --what")
    manifest = _begin(job, known)
    if manifest["complete"]:
        return Progress(manifest, 0, 0)
    mine = [part for part in range(share[0], len(job.spans), share[1]) if not _is_there(job, part)]
    rules, wanted = _Rules.of(known, job.options), sum(map(job.samples, mine))
    with (
        ThreadPoolExecutor(threads or cores(), "embed-decode") as pool,
        ThreadPoolExecutor(readers, "embed-read") as reading,
        progress(wanted, "embedding", "samples") as advance,
    ):
        samples = _ahead(reading, job.read, _blocks(job, mine), readers)
        seen = _looked_at(samples, rules, pool, depth=-(-2 * known.model.batch_size // _CHUNK))
        for part in mine:
            _make_part(job, part, known, seen, advance)
    missing = [part for part in range(len(job.spans)) if not _is_there(job, part)]
    return Progress(manifest if missing else _complete(job, manifest), wanted, len(missing))


class _Seen(NamedTuple):
    """A sample whose picture was looked at; `reason` says why it cannot be used."""

    record: dict[str, str]
    shown: dict[str, np.ndarray] | None = None  # what the model reads of it, a batch of one
    thumbnail: bytes = b""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class _Rules:
    """How pictures are shown to the model, and to people."""

    image: ImageInput | None
    thumbnails: int

    @classmethod
    def of(cls, known: Known, options: Options) -> "_Rules":
        image = known.model.live.modalities[IMAGE] if IMAGE in options.what else None
        return cls(image, options.thumbnails * (image is not None))

    def look(self, samples: Sequence[Sample], source: Source) -> list[_Seen]:
        """Looks at samples."""
        return [self._look(sample, source) for sample in samples]

    def _look(self, sample: Sample, source: Source) -> _Seen:
        captions = source.rules.captions(sample.record)
        record = dict(shard=sample.shard, key=sample.key, caption=captions[0] if captions else "")
        if sample.path:  # without the folders above, which are nobody's business
            record["file"] = label_at(parts_of(sample.path), 2)
        if self.image is None:
            return _Seen(record)
        try:
            if sample.fault:
                raise BadSample(sample.fault)
            image, shown = self.image.opened(sample.parts[IMAGE]), self.image.empty(1)
            self.image.evaluate(image, shown, 0)
            return _Seen(record, shown, _thumbnail(image, self.thumbnails) if self.thumbnails else b"")
        except BadSample as bad:
            return _Seen(record, reason=bad.reason)


def _blocks(job: Job, parts: Sequence[int]) -> Iterator[Span]:
    """Yields the blocks of parts, each as a span of one."""
    for part in parts:
        span = job.spans[part]
        yield from (Span(span.source, block, block + 1) for block in range(span.first, span.end))


def _looked_at(
    read: Iterable[tuple[Source, list[Sample]]], rules: _Rules, pool: Executor, depth: int
) -> Iterator[_Seen]:
    """Yields samples in order; goes on reading and decoding while one part ends and the next begins."""
    chunks = ((samples[i : i + _CHUNK], source) for source, samples in read for i in range(0, len(samples), _CHUNK))
    for found in _ahead(pool, lambda chunk: rules.look(*chunk), chunks, depth):
        yield from found


def _ahead(pool: Executor, work: Callable, items: Iterable, depth: int) -> Iterator:
    """Yields the results of work in order, of which `depth` are under way."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _make_part(job: Job, part: int, known: Known, seen: Iterator[_Seen], advance: Callable[[int], None]) -> None:
    options, (rows, images) = job.options, _take(job, part, known.model, seen, advance)
    good, bad = ([i for i, one in enumerate(rows) if bool(one.reason) == is_bad] for is_bad in (False, True))
    embeddings = {} if images is None else {IMAGE: images[good]}
    if TEXT in options.what:
        embeddings[TEXT] = known.model.embed_text([rows[i].record["caption"] for i in good])
    named = lambda i: f"{rows[good[i]].record['key']} of {rows[good[i]].record['shard']}"
    for kind, values in embeddings.items():
        check_rows(values, f"the {kind} embedding", named)
    listed = [Fault(rows[i].record["shard"], rows[i].record["key"], rows[i].reason) for i in bad[:_LISTED]]
    write_part(
        job.folder,
        part,
        {kind: values.astype(options.dtype) for kind, values in embeddings.items()},
        [rows[i].record for i in good],
        [rows[i].thumbnail for i in good] if options.thumbnails and images is not None else None,
        dict(skipped=Counter(rows[i].reason for i in bad), listed=listed),
    )


def _take(
    job: Job, part: int, model: Model, seen: Iterator[_Seen], advance: Callable[[int], None]
) -> tuple[list[_Seen], np.ndarray | None]:
    """Takes the samples of a part; returns them without their pixels, and what the model makes of those."""
    count, modality, rows = job.samples(part), model.live.modalities.get(IMAGE), []

    def pictures(start: int, stop: int) -> dict[str, np.ndarray]:
        batch = modality.empty(stop - start)
        for place, one in enumerate(itertools.islice(seen, stop - start)):
            if one.shown is None:  # a bad one: left out later
                modality.blank(batch, place)
            else:
                for name, array in one.shown.items():
                    batch[name][place] = array[0]
            rows.append(one._replace(shown=None))
        advance(stop - start)
        return batch

    if IMAGE in job.options.what:
        images = model.embed_rows(IMAGE, pictures, count)
        return rows, images
    rows.extend(itertools.islice(seen, count))
    advance(count)
    return rows, None


def _thumbnail(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side), Image.Resampling.BICUBIC)  # in place: the model's pixels are made
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _begin(job: Job, known: Known) -> dict[str, Any]:
    """Returns the manifest of this index, begun now or before."""
    manifest = dict(
        format=FORMAT, complete=False, model=known.about, data=job.data(),
        options=dataclasses.asdict(job.options), parts=len(job.spans),
    )  # fmt: skip
    manifest = json.loads(json.dumps(manifest))
    found = read_manifest(job.folder)
    if found is None:
        if strangers := _strangers(job.folder):
            raise DataError(f"{job.folder} holds other files, such as {strangers[0]}; name another folder with --out")
        write_json(job.folder / MANIFEST, manifest)
        return manifest
    for section, keys in _DECIDING.items():
        for key in keys:
            then, now = found[section].get(key), manifest[section][key]
            if then != now:
                raise DataError(
                    f"{job.folder} was begun with other {section} ({key}: {then!r} then, {now!r} now). Use the same "
                    "model, data and options, or delete the folder or name another with --out"
                )
    return found


def _strangers(folder: Path) -> list[str]:
    """Returns the names of files that are not those of an index that another process begins at this moment."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in names if name != MANIFEST and not name.startswith(".")]


_DECIDING = dict(
    model=("fingerprint", "compute"),
    data=("digest",),
    options=tuple(field.name for field in dataclasses.fields(Options)),
)


def _is_there(job: Job, part: int) -> bool:
    if not part_path(job.folder, part).exists():
        return False
    try:
        return _is_note(Part(job.folder, part).note)
    except DataError:  # damaged by a crash of the disk: made anew
        return False


def _is_note(note: dict[str, Any]) -> bool:
    """Whether the note of a part is as `_complete` reads it."""
    skipped, listed = note.get("skipped"), note.get("listed")
    counts = isinstance(skipped, dict) and all(type(count) is int for count in skipped.values())
    faults = isinstance(listed, list) and all(isinstance(fault, list) and len(fault) == 3 for fault in listed)
    return counts and faults


def _complete(job: Job, manifest: dict[str, Any]) -> dict[str, Any]:
    """Puts the notes of all parts together."""
    parts = [Part(job.folder, part) for part in range(len(job.spans))]
    skipped = sum((Counter(source.skipped) for source in job.sources), Counter())
    lines = [json.dumps(fault._asdict()) for source in job.sources for fault in source.faults()]
    for part in parts:
        skipped.update(part.note["skipped"])
        lines.extend(json.dumps(Fault(*fault)._asdict()) for fault in part.note["listed"])
    for draft in job.folder.glob("*.draft"):  # of processes that were killed
        draft.unlink(missing_ok=True)
    write_text(job.folder / "skipped.jsonl", "".join(f"{line}\n" for line in lines))
    manifest |= dict(complete=True, samples=sum(map(len, parts)), skipped=dict(sorted(skipped.items())))
    write_json(job.folder / MANIFEST, manifest)
    return manifest
