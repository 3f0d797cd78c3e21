"""Where samples come from. A new kind of source is one file here and one line in SOURCES."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.images.decode import Options
from data_pipelines.io.storage import Files
from data_pipelines.labels import open_labels
from data_pipelines.samples import has_images
from data_pipelines.sources import index
from data_pipelines.sources.base import Source, SourceSpec, read_spec
from data_pipelines.sources.files import FilesSource
from data_pipelines.sources.kinds import kind_of
from data_pipelines.sources.measures import LIKENESS, KeyHash, Measure, TokenCount, first_of_each, likeness
from data_pipelines.sources.sample_lists import listed
from data_pipelines.sources.selected import Selected
from data_pipelines.sources.synthetic import SyntheticSource
from data_pipelines.sources.tars import TarSource, TarSpec
from data_pipelines.sources.tfds import TfdsSource
from data_pipelines.text.captions import Captions, Members
from data_pipelines.text.tokenizers import Tokenizer

SOURCES: dict[str, type[Source]] = dict(tar=TarSource, files=FilesSource, tfds=TfdsSource, synthetic=SyntheticSource)

__all__ = ["SOURCES", "Source", "index_source", "open_source"]


class _Opening(NamedTuple):
    """What an entry of `data.sources` comes to."""

    cls: type[Source]
    spec: SourceSpec
    captions: Captions
    unique: Measure | None
    tokens: TokenCount | None

    @property
    def measures(self) -> list[Measure]:
        keys = KeyHash() if self.spec.keep or self.spec.drop or self.spec.groups else None
        return list({measure.signature: measure for measure in (self.unique, self.tokens, keys) if measure}.values())


def open_source(
    name: str,
    entry: Mapping[str, Any],
    config: Any,
    files: Files,
    *,
    every_field: bool = False,
    uncaptioned: bool = False,
    tokenizer: Tokenizer | None = None,
    where: str = "",
) -> Source:
    """Opens one entry of `data.sources`.

    Args:
        name: its key.
        entry: its options; `type` names the class in SOURCES.
        config: the `data` section of a config, for what the entry leaves open.
        files: reads its files; the caller closes it.
        every_field: the records of its samples hold all fields, whether captions use them or not.
        uncaptioned: samples without a caption are usable, too.
        tokenizer: counts the tokens of the captions, for the `lengths` of the source; None leaves them uncounted.
        where: path of the entry in the config; "" is `data.sources.NAME`.

    Raises:
        NotIndexed: there are too many new shards to be scanned in passing; see `index_source`.
        DataError: an option is wrong, or the data cannot be used; the message starts with the entry's path.
    """
    where = where or f"data.sources.{name}"
    with _located(where):
        opening = _plan(where, entry, config, every_field, tokenizer, uncaptioned)
        unique, tokens = opening.unique, opening.tokens
        source = opening.cls.open(name, opening.spec, opening.captions, files, opening.measures)
        if tokens:
            source.lengths = source.column(tokens)
        source = listed(source, opening.spec.keep, opening.spec.drop, files)
        return Selected(source, first_of_each(source.column(unique)), reason="duplicate") if unique else source


def index_source(
    name: str,
    entry: Mapping[str, Any],
    config: Any,
    files: Files,
    *,
    tokenizer: Tokenizer | None = None,
    workers: int = 0,
    engine: index.Engine | None = None,
    where: str = "",
) -> index.Index | None:
    """Indexes the shards of an entry of `data.sources`, however large they are; None where its type has no index.

    Args:
        name: its key.
        entry: its options.
        config: the `data` section of a config.
        files: reads and writes; the caller closes it.
        tokenizer: as for `open_source`: the index then holds numbers of tokens.
        workers: shards scanned at a time; 0 decides by their place and size.
        engine: as for `index.load`.
        where: as for `open_source`.

    Raises:
        DataError: as `open_source`, or the index could not be kept.
    """
    where = where or f"data.sources.{name}"
    with _located(where):
        opening = _plan(where, entry, config, False, tokenizer)
        if opening.cls is not TarSource:
            return None
        load = lambda **how: index.load(opening.spec.urls, opening.captions, files, opening.measures, **how)
        made = load(workers=workers, at_most=math.inf, engine=engine)
        try:
            kept = load(at_most=0)
        except index.NotIndexed as error:
            raise DataError(
                f"the index that was just made is not there, or shards changed meanwhile: {error}"
            ) from None
        if kept.digest() != made.digest():
            raise DataError(f"the index of {opening.spec.urls} that was kept is not the one that was made; delete it")
        return kept


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        kind = index.NotIndexed if isinstance(error, index.NotIndexed) else DataError
        raise error if str(error).startswith(where) else kind(f"{where}: {error}") from error


def _plan(
    where: str,
    entry: Mapping[str, Any],
    config: Any,
    every_field: bool,
    tokenizer: Tokenizer | None,
    uncaptioned: bool = False,
) -> _Opening:
    kind = kind_of(entry, where)
    if kind not in SOURCES:
        raise DataError(f"{where}.type is {kind!r}, not one of {', '.join(SOURCES)}{did_you_mean(str(kind), SOURCES)}")
    cls = SOURCES[kind]
    spec = read_spec(cls.Spec, entry, where)
    templates = config.text.templates if spec.templates is None else spec.templates
    lines = config.text.lines and not templates if spec.lines is None else spec.lines
    text = _Replaced(config.text, templates=templates, lines=lines)
    group_key = config.group_key if spec.group_key is None else spec.group_key
    members = Members(spec.image.lower(), spec.caption.lower()) if isinstance(spec, TarSpec) else Members()
    captions = Captions(
        text, group_key, keep=spec.filter, always_json=every_field, labels=open_labels(config.label),
        images=has_images(config.modalities), members=members, optional=uncaptioned, where=where,
    )  # fmt: skip
    if spec.unique and spec.unique not in LIKENESS:
        close = did_you_mean(spec.unique, LIKENESS)
        raise DataError(f"unique is {spec.unique!r}, not one of {', '.join(LIKENESS)}{close}")
    if spec.unique == "image" and not captions.images:
        raise DataError("unique is 'image', and by data.modalities samples have none")
    if spec.unique == "key" and not cls.keyed:
        raise DataError(f"unique is 'key', and {kind} samples have none; expected 'caption' or 'image'")
    unique = likeness(spec.unique, captions, Options.of(config.image)) if spec.unique else None
    tokens = TokenCount(captions, tokenizer, config.text.length) if tokenizer else None
    return _Opening(cls, spec, captions, unique, tokens)


class _Replaced:
    """A section of a config with some of its values replaced."""

    def __init__(self, section: Any, **values: Any):
        self._section, self._values = section, values

    def __getattr__(self, name: str) -> Any:
        return self._values[name] if name in self._values else getattr(self._section, name)
