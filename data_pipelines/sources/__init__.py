"""Where samples come from. A new kind of source is one file here and one line in SOURCES."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.io.storage import Files
from data_pipelines.modalities import Inputs, inputs_of
from data_pipelines.modalities.base import SECTION
from data_pipelines.rules import Rules
from data_pipelines.sources import index
from data_pipelines.sources.base import Source, SourceSpec
from data_pipelines.sources.files import FilesSource
from data_pipelines.sources.kinds import kind_of
from data_pipelines.sources.measures import LIKENESS, KeyHash, Measure, TokenCount, first_of_each, likeness
from data_pipelines.sources.sample_lists import listed
from data_pipelines.sources.selected import Selected
from data_pipelines.sources.synthetic import SyntheticSource
from data_pipelines.sources.tars import TarSource
from data_pipelines.sources.tfds import TfdsSource
from data_pipelines.specs import options, read_spec

SOURCES: dict[str, type[Source]] = dict(tar=TarSource, files=FilesSource, tfds=TfdsSource, synthetic=SyntheticSource)

__all__ = ["SOURCES", "Source", "index_source", "open_source"]


class _Opening(NamedTuple):
    """What an entry of `data.sources` comes to."""

    cls: type[Source]
    spec: SourceSpec
    rules: Rules
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
    inputs: Inputs | None = None,
    every_field: bool = False,
    lengths: bool = False,
    where: str = "",
) -> Source:
    """Opens one entry of `data.sources`.

    Args:
        name: its key.
        entry: its options; `type` names the class in SOURCES.
        config: the `data` section of a config, for what the entry leaves open.
        files: reads its files; the caller closes it.
        inputs: of its samples; None takes those of the config.
        every_field: the records of its samples hold all fields, whether inputs use them or not.
        lengths: count the tokens of the text that has buckets, for the `lengths` of the source.
        where: path of the entry in the config; "" is `data.sources.NAME`.

    Raises:
        NotIndexed: there are too many new shards to be scanned in passing; see `index_source`.
        DataError: an option is wrong, or the data cannot be used; the message starts with the entry's path.
    """
    where = where or f"data.sources.{name}"
    with _located(where):
        opening = _plan(where, entry, config, inputs, every_field, lengths)
        unique, tokens = opening.unique, opening.tokens
        source = opening.cls.open(name, opening.spec, opening.rules, files, opening.measures)
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
    inputs: Inputs | None = None,
    lengths: bool = False,
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
        inputs: as for `open_source`.
        lengths: as for `open_source`: the index then holds numbers of tokens.
        workers: shards scanned at a time; 0 decides by their place and size.
        engine: as for `index.load`.
        where: as for `open_source`.

    Raises:
        DataError: as `open_source`, or the index could not be kept.
    """
    where = where or f"data.sources.{name}"
    with _located(where):
        opening = _plan(where, entry, config, inputs, False, lengths)
        if opening.cls is not TarSource:
            return None
        load = lambda **how: index.load(opening.spec.urls, opening.rules, files, opening.measures, **how)
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
    where: str, entry: Mapping[str, Any], config: Any, inputs: Inputs | None, every_field: bool, lengths: bool
) -> _Opening:
    kind = kind_of(entry, where)
    if kind not in SOURCES:
        raise DataError(f"{where}.type is {kind!r}, not one of {', '.join(SOURCES)}{did_you_mean(str(kind), SOURCES)}")
    cls = SOURCES[kind]
    spec = read_spec(cls.Spec, entry, where)
    inputs = inputs_here(inputs_of(config) if inputs is None else inputs, spec, where)
    group_key = config.group_key if spec.group_key is None else spec.group_key
    rules = Rules(inputs, group_key, keep=spec.filter, every_field=every_field, where=where)
    if spec.unique and spec.unique not in LIKENESS:
        close = did_you_mean(spec.unique, LIKENESS)
        raise DataError(f"unique is {spec.unique!r}, not one of {', '.join(LIKENESS)}{close}")
    if spec.unique == "key" and not cls.keyed:
        raise DataError(f"unique is 'key', and {kind} samples have none; expected 'caption' or 'image'")
    unique = likeness(spec.unique, inputs) if spec.unique else None
    if spec.unique and unique is None:
        raise DataError(f"unique is {spec.unique!r}, and by data.inputs samples have none ({', '.join(inputs)})")
    bucketed = next((text for text in inputs.texts.values() if text.buckets), None)
    return _Opening(cls, spec, rules, unique, TokenCount(bucketed) if lengths and bucketed is not None else None)


def inputs_here(inputs: Inputs, spec: SourceSpec, where: str) -> Inputs:
    """Returns the inputs as a source has them.

    Args:
        inputs: of the config.
        spec: of the source: `inputs` changes any; `image` names the member or column of the first input that files
            hold, `caption` of the first text, whose are `templates` and `lines`, too.
        where: path of the source in the config.

    Raises:
        DataError: there is no such input or option.
    """
    changes = {name: dict(given) for name, given in spec.inputs.items()}
    for name, changed in changes.items():
        if name not in inputs:
            known = ", ".join(inputs)
            raise DataError(f"inputs: there is no input {name!r}{did_you_mean(name, inputs)} ({SECTION}: {known})")
        allowed = options(type(inputs[name]))
        if strange := next((key for key in changed if key not in allowed), ""):
            raise DataError(f"inputs.{name} has no key {strange!r}{did_you_mean(strange, allowed)}")
    stored, text = next(iter(inputs.stored), ""), inputs.caption
    if stored and (member := getattr(spec, "image", "")):
        changes.setdefault(stored, {}).setdefault("member", member)
    if text is not None:
        of_text = changes.setdefault(text.name, {})
        of_text |= {key: value for key in ("templates", "lines") if (value := getattr(spec, key)) is not None}
        if member := getattr(spec, "caption", ""):
            of_text.setdefault("member", member)
        if of_text.get("templates", text.templates) and spec.lines is None:
            of_text["lines"] = False
    for name, changed in changes.items():
        cast = read_spec(type(inputs[name]), changed, f"{where}.inputs.{name}")
        inputs = inputs.changed(name, **{key: getattr(cast, key) for key in changed})
    for name in inputs.texts:
        inputs = inputs.changed(name, source=where)
    return inputs
