"""What a data set is like: lengths, sizes, shapes, repetitions, fields. Measured in processes, in bounded memory."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.errors import BadSample
from data_pipelines.examine.distributions import Distribution, Repeats
from data_pipelines.examine.sampling import Part, choose, read_part
from data_pipelines.images.decode import Options, image_header
from data_pipelines.io.listing import NULLS
from data_pipelines.modalities import Image
from data_pipelines.names import label_at, parts_of
from data_pipelines.progress import progress
from data_pipelines.samples import Sample
from data_pipelines.sources.base import Source
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.measures import LIKENESS, likeness
from data_pipelines.text.fields import field_names, lookup
from data_pipelines.text.tokenizers import Tokenizer
from data_pipelines.workers import in_processes

_BLOCK_BYTES = 8 * 2**20  # what a process holds at a time, about
_FIELDS = 500  # names at most: where keys are data there is no end of them
_EXAMPLES, _SHOWN = 3, 60  # of a field or caption, and characters of one
_NULLS = frozenset(map(str.lower, NULLS))
_NOTHING = ("", [], {}, None)


@dataclass(frozen=True)
class Rules:
    """What the data are measured against.

    Attributes:
        options: how images are decoded.
        tokenizer: None counts no tokens.
        length: tokens of a caption, as `length` of the text input.
        size: pixels of an image, as `size` of the image input.
    """

    options: Options
    tokenizer: Tokenizer | None
    length: int
    size: int


@dataclass
class FieldSurvey:
    """A field of the json members: in how many samples it has a content, of which types, and what it holds."""

    filled: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def merge(self, other: "FieldSurvey") -> None:
        """Adds what another one has counted."""
        self.filled += other.filled
        self.kinds.update(other.kinds)
        self.examples = list(dict.fromkeys(self.examples + other.examples))[:_EXAMPLES]


@dataclass
class Survey:
    """The figures of some samples.

    Attributes:
        samples: looked at.
        bad: reason -> samples whose image says nothing of itself.
        kinds: format of an image -> samples.
        characters: of each caption, all captions of a sample.
        tokens: of each caption, begin and end included, before it is cut.
        cut: captions that are longer than the model's text.
        nulls: captions that are a word for no value, such as "nan".
        width: of each image in pixels, upright.
        height: of each image.
        shorter: shorter side of each image.
        aspect: width / height of each image.
        small: images whose shorter side is less than what the model sees.
        transparent: images with an alpha channel or a transparent colour.
        bytes: of each image.
        repeats: "key", "caption" and "image" -> copies.
        fields: of the json members.
    """

    samples: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    characters: Distribution = field(default_factory=Distribution)
    tokens: Distribution = field(default_factory=Distribution)
    cut: int = 0
    nulls: int = 0
    width: Distribution = field(default_factory=Distribution)
    height: Distribution = field(default_factory=Distribution)
    shorter: Distribution = field(default_factory=Distribution)
    aspect: Distribution = field(default_factory=Distribution)
    small: int = 0
    transparent: int = 0
    bytes: Distribution = field(default_factory=Distribution)
    repeats: dict[str, Repeats] = field(default_factory=lambda: {kind: Repeats() for kind in LIKENESS})
    fields: dict[str, FieldSurvey] = field(default_factory=dict)

    def merge(self, other: "Survey") -> None:
        """Adds the figures of other samples."""
        for name in ("samples", "cut", "small", "transparent", "nulls"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bad.update(other.bad)
        self.kinds.update(other.kinds)
        for name in ("characters", "tokens", "width", "height", "shorter", "aspect", "bytes"):
            getattr(self, name).merge(getattr(other, name))
        for kind, repeats in other.repeats.items():
            self.repeats[kind].merge(repeats)
        for name, found in other.fields.items():
            if name in self.fields or len(self.fields) < _FIELDS:
                self.fields.setdefault(name, FieldSurvey()).merge(found)

    def summary(self) -> dict[str, Any]:
        """Returns everything as json has it."""
        names = ("characters", "tokens", "width", "height", "shorter", "aspect", "bytes")
        return dict(
            samples=self.samples,
            bad=dict(self.bad),
            formats=dict(self.kinds),
            **{name: getattr(self, name).summary() for name in names},
            captions_cut=self.cut,
            captions_null=self.nulls,
            images_smaller=self.small,
            images_transparent=self.transparent,
            duplicates={
                kind: dict(share=repeats.share, looked_at=repeats.kept, most=repeats.most(10))
                for kind, repeats in self.repeats.items()
            },
            fields={
                name: dict(filled=found.filled / max(self.samples, 1), types=dict(found.kinds), examples=found.examples)
                for name, found in sorted(self.fields.items())
            },
        )


def survey(
    sources: Sequence[Source], rules: Rules, *, wanted: int = 0, seed: int = 0, workers: int = 1
) -> dict[str, Survey]:
    """Measures samples of sources, in processes.

    Args:
        sources: what to read, opened with `every_field`.
        rules: what to measure.
        wanted: as many samples, chosen by `seed`; 0 takes all.
        seed: of the choice.
        workers: processes.

    Returns:
        The survey of each source by its name.

    Raises:
        DataError: the data cannot be read.
    """
    tables = [source.blocks(_BLOCK_BYTES) for source in sources]
    choice = choose(tables, wanted, seed)
    surveys = {source.name: Survey() for source in sources}
    parts = in_processes(_measure, choice, max(1, min(workers, len(choice))), sources, tables, rules)
    with progress(choice.samples, "measuring", "samples") as advance, contextlib.closing(parts):
        for number, found in parts:
            surveys[sources[number].name].merge(found)
            advance(found.samples)
    return surveys


def together(surveys: Mapping[str, Survey]) -> Survey:
    """Returns the survey of all sources."""
    whole = Survey()
    for found in surveys.values():
        whole.merge(found)
    return whole


def _measure(part: Part, sources: Sequence[Source], tables: Sequence[Blocks], rules: Rules) -> tuple[int, Survey]:
    found = Survey()
    samples = read_part(part, sources, tables)
    source, inputs = sources[part.source], sources[part.source].rules.inputs
    captions = [source.rules.captions(sample.record) for sample in samples]
    _measure_texts(captions, rules, found)
    image = next(iter(inputs.of_type(Image.type)), "")
    if image:
        _measure_images(samples, image, rules, found)
    measures = {kind: likeness(kind, inputs) for kind in LIKENESS if kind != "key" or source.keyed}
    kinds = {kind: measure for kind, measure in measures.items() if measure is not None}
    for sample, texts in zip(samples, captions):
        name = f"{sample.key} of {label_at(parts_of(sample.shard), 2)}"
        for kind, measure in kinds.items():
            content = sample.parts.get(measure.needs, b"")
            if content or not measure.needs:
                shown = texts[0] if texts and kind == "caption" else name
                found.repeats[kind].add(measure.of(sample.key, sample.record, content), _short(shown))
        _measure_fields(sample.record.fields, found.fields)
    found.samples = len(samples)
    return part.source, found


def _measure_texts(captions: list[list[str]], rules: Rules, found: Survey) -> None:
    texts = [text for some in captions for text in some]
    found.characters.add(map(len, texts))
    found.nulls += sum(text.lower() in _NULLS for text in texts)
    if rules.tokenizer:
        lengths = [len(tokens) + rules.tokenizer.marks for tokens in rules.tokenizer.tokens(texts)]
        found.tokens.add(lengths)
        found.cut += sum(length > rules.length for length in lengths)


def _measure_images(samples: list[Sample], image: str, rules: Rules, found: Survey) -> None:
    headers = []
    for sample in samples:
        try:
            if sample.fault:
                raise BadSample(sample.fault)
            content = sample.parts.get(image, b"")
            headers.append(image_header(content, rules.options))
            found.bytes.add([len(content)])
        except BadSample as bad:
            found.bad[bad.reason] += 1
    found.kinds.update(header.kind for header in headers)
    found.width.add(header.width for header in headers)
    found.height.add(header.height for header in headers)
    found.aspect.add(header.width / max(header.height, 1) for header in headers)
    shorter = [min(header.width, header.height) for header in headers]
    found.shorter.add(shorter)
    found.small += sum(side < rules.size for side in shorter)
    found.transparent += sum(header.transparent for header in headers)


def _measure_fields(record: Mapping[str, Any], fields: dict[str, FieldSurvey]) -> None:
    for name in field_names(record):
        if name not in fields and len(fields) >= _FIELDS:
            continue
        own = fields.setdefault(name, FieldSurvey())
        value = lookup(record, name)
        if value in _NOTHING:
            continue
        own.filled += 1
        own.kinds[type(value).__name__] += 1
        if len(own.examples) < _EXAMPLES:
            shown = _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
            if shown not in own.examples:
                own.examples.append(shown)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
