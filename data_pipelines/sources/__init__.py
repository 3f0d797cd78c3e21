"""Where samples come from. A new kind of source is one file here and one line in SOURCES."""

from collections.abc import Mapping
from typing import Any

from data_pipelines.captions import Captions
from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.measures import LIKENESS, TokenCount, first_of_each, likeness
from data_pipelines.sources.base import Source, read_spec
from data_pipelines.sources.files import FilesSource
from data_pipelines.sources.selected import Selected
from data_pipelines.sources.synthetic import SyntheticSource
from data_pipelines.sources.tars import TarSource
from data_pipelines.sources.tfds import TfdsSource
from data_pipelines.storage import Files
from data_pipelines.tokenizers import Tokenizer

SOURCES: dict[str, type[Source]] = dict(tar=TarSource, files=FilesSource, tfds=TfdsSource, synthetic=SyntheticSource)

__all__ = ["SOURCES", "Source", "open_source"]


def open_source(
    name: str,
    entry: Mapping[str, Any],
    config: Any,
    files: Files,
    *,
    every_field: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Source:
    """Opens one entry of `data.sources`.

    Args:
        name: its key.
        entry: its options; `type` names the class in SOURCES.
        config: the `data` section of a config, for what the entry leaves open.
        files: reads its files; the caller closes it.
        every_field: the records of its samples hold all fields, whether captions use them or not.
        tokenizer: counts the tokens of the captions, for the `lengths` of the source; None leaves them uncounted.

    Raises:
        DataError: an option is wrong, or the data cannot be used; the message starts with the entry's path.
    """
    where, kind = f"data.sources.{name}", entry.get("type", "tar")
    if kind not in SOURCES:
        raise DataError(f"{where}.type is {kind!r}, not one of {', '.join(SOURCES)}{did_you_mean(str(kind), SOURCES)}")
    cls = SOURCES[kind]
    spec = read_spec(cls.Spec, entry, where)
    text = config.text if spec.templates is None else _Replaced(config.text, templates=spec.templates)
    group_key = config.group_key if spec.group_key is None else spec.group_key
    try:
        captions = Captions(text, group_key, keep=spec.filter, always_json=every_field)
        if spec.unique and spec.unique not in LIKENESS:
            close = did_you_mean(spec.unique, LIKENESS)
            raise DataError(f"unique is {spec.unique!r}, not one of {', '.join(LIKENESS)}{close}")
        unique = likeness(spec.unique, captions) if spec.unique else None
        tokens = TokenCount(captions, tokenizer, config.text.length) if tokenizer else None
        source = cls.open(name, spec, captions, files, [measure for measure in (unique, tokens) if measure])
        if tokens:
            source.lengths = source.column(tokens)
        return Selected(source, first_of_each(source.column(unique)), reason="duplicate") if unique else source
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


class _Replaced:
    """A section of a config with some of its values replaced."""

    def __init__(self, section: Any, **values: Any):
        self._section, self._values = section, values

    def __getattr__(self, name: str) -> Any:
        return self._values[name] if name in self._values else getattr(self._section, name)
