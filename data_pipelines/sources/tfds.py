"""Data sets prepared by tensorflow-datasets in the array_record format, read without TensorFlow."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import BadSample, DataError, Fault, did_you_mean
from data_pipelines.io.storage import Files
from data_pipelines.modalities.base import Modality
from data_pipelines.progress import progress
from data_pipelines.rules import Rules
from data_pipelines.samples import Record, Sample
from data_pipelines.sources.base import Source, SourceSpec
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.rows import UNUSED, row_blocks
from data_pipelines.text.fields import field_names

_DATA_DIR = "~/tensorflow_datasets"
_FEATURES = "features.json"
_LISTED = 1000  # faults kept per reason; the counts are exact
_AT_ONCE = 256  # examples that a filter looks at together


@dataclass(frozen=True)
class TfdsSpec(SourceSpec):
    """A prepared data set.

    Attributes:
        dataset: its name as tensorflow-datasets has it, such as "coco_captions" or "my_set/config:1.0.0", or the folder
            that holds its `features.json`.
        split: a split or a part of one: "train", "train[:90%]".
        data_dir: where data sets were prepared; "" is $TFDS_DATA_DIR or else ~/tensorflow_datasets.
        image: feature of the image; "" takes the first image feature.
        caption: feature of the caption; "" takes "caption", "text" or "title". Templates take the place of it.
    """

    dataset: str = field(default="", metadata=dict(example="coco_captions"))
    split: str = "train"
    data_dir: str = ""
    image: str = ""
    caption: str = ""


class TfdsSource(Source):
    """Examples of an array_record data set; see `Source`.

    Opening it reads no examples, unless there is a filter: one without a caption or an image shows when it is read,
    and then has a `fault`. Labels are given by the names of their classes.
    """

    Spec = TfdsSpec

    def __init__(self, name: str, spec: TfdsSpec, rules: Rules, files: Files):
        self.name, self.spec, self.rules = name, spec, rules
        self._open()
        rows = sum(count for _, count in self._files)
        self._sizes = np.full(rows, self._mean_size(), np.int32)  # of all examples, UNUSED for those left out
        self._faults: list[Fault] = []
        self.skipped: dict[str, int] = {}
        self._check()
        if spec.filter:
            self._filter()
        self.samples = int((self._sizes != UNUSED).sum())
        self.bytes, self.shards = self.samples * self._mean_size(), len(self._files)
        if not self.samples:
            raise DataError(f"no usable example in {spec.dataset} {spec.split} ({self.skipped or 'it is empty'})")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_examples", "_info")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def blocks(self, target: int) -> Blocks:
        """See `Source`."""
        ends = np.cumsum([count for _, count in self._files])
        return row_blocks([(sizes, (0,)) for sizes in np.split(self._sizes, ends[:-1])], target)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        shard = int(blocks.shard[i])
        path, first = self._files[shard][0], sum(count for _, count in self._files[:shard])
        rows = np.arange(first + int(blocks.start[i]), first + int(blocks.end[i]))
        rows = rows[self._sizes[rows] != UNUSED].tolist()
        samples = []
        for row, example in zip(rows, self._get(rows)):
            parts, record, fault = self._parts(example), Record({}, {}), ""
            try:
                record = self._record(example)
                self.rules.check(record)
                needed = (m for name, m in self.rules.inputs.stored.items() if m.required and name not in parts)
                fault = next((f"empty {modality.noun}" for modality in needed), "")
            except BadSample as bad:
                fault = bad.reason
            samples.append(Sample(path, f"example {row - first}", parts, record, fault))
        return samples

    def shard_names(self) -> list[str]:
        """See `Source`."""
        return [path for path, _ in self._files]

    def identity(self) -> tuple[str, str, list[tuple[str, int]]]:
        """See `Source`."""
        return self._info.full_name, self.spec.split, [(os.path.basename(path), count) for path, count in self._files]

    def faults(self) -> Iterator[Fault]:
        """See `Source`."""
        yield from self._faults
        if sum(self.skipped.values()) > len(self._faults):
            yield Fault(self.spec.dataset, f"and {sum(self.skipped.values()) - len(self._faults)} more", "filtered")

    def _open(self) -> None:
        import tensorflow_datasets as tfds  # a second to import

        builder = _builder(tfds, self.spec)
        self._info = builder.info
        features = self._info.features.items()
        images = [name for name, feature in features if isinstance(feature, tfds.features.Image)]
        self._features = {name: self._feature(name, images) for name in self.rules.inputs.stored}
        skip = {name: tfds.decode.SkipDecoding() for name in images}  # of texts alone, no one looks at them
        try:
            self._examples = builder.as_data_source(split=self.spec.split, decoders=skip)
        except (ValueError, KeyError, NotImplementedError) as error:
            splits = ", ".join(self._info.splits) or "none"
            raise DataError(
                f"cannot read split {self.spec.split!r} of {self.spec.dataset} (splits: {splits}): {error}"
            ) from None
        parts = self._info.splits[self.spec.split].file_instructions
        self._files = [(os.fspath(part.filename), int(part.take)) for part in parts]

    def _feature(self, name: str, images: Sequence[str]) -> str:
        """Returns the feature of an input that files hold; here those are images."""
        modality = self.rules.inputs[name]
        wanted = modality.member or next(iter(images), "")
        if wanted not in images:
            raise DataError(
                f"{self.spec.dataset} has no {modality.noun} feature{f' {wanted!r}' * bool(wanted)}"
                f"{did_you_mean(wanted, images)} (features: {', '.join(self._info.features)}; "
                f"images: {', '.join(images) or 'none'})"
            )
        return wanted

    def _parts(self, example: Mapping[str, Any]) -> dict[str, bytes]:
        found = {name: example.get(feature) for name, feature in self._features.items()}
        return {name: content for name, content in found.items() if content}

    def _check(self) -> None:
        """Finds the captions, and looks at the first example whether the fields are there."""
        names = list(self._info.features)
        self._captions = {name: self._caption(modality, names) for name, modality in self.rules.texts.items()}
        if len(self._sizes) and self.rules.fields:
            fields = self._fields(self._get([0])[0])
            missing = [name for name in self.rules.fields if name not in field_names(fields)]
            self.rules.check_fields(
                {name: name not in missing for name in self.rules.fields}, field_names(fields), self.spec.dataset
            )

    def _caption(self, modality: Modality, names: Sequence[str]) -> str:
        usual = modality.text_columns()
        caption = modality.member or next((name for name in usual if name in names), "")
        if caption not in names and (modality.member or modality.required):
            raise DataError(
                f"{self.spec.dataset} has no feature {caption or ' or '.join(usual)!r} for captions"
                f"{did_you_mean(caption, names)}; name one with `caption`, or give templates over the fields "
                f"({', '.join(names)})"
            )
        return caption

    def _filter(self) -> None:
        with progress(len(self._sizes), f"filtering {self.name}", "examples") as advance:
            for first in range(0, len(self._sizes), _AT_ONCE):
                rows = range(first, min(first + _AT_ONCE, len(self._sizes)))
                for row, example in zip(rows, self._get(rows)):
                    try:
                        self.rules.check(self._record(example))
                    except BadSample as bad:
                        self._leave_out(row, bad.reason)
                advance(len(rows))

    def _leave_out(self, row: int, reason: str) -> None:
        self._sizes[row] = UNUSED
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if len(self._faults) < _LISTED:
            self._faults.append(Fault(self.spec.dataset, f"example {row}", reason))

    def _get(self, rows: Any) -> list[Mapping[str, Any]]:
        try:
            return list(self._examples.__getitems__(list(rows)))
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"cannot read {self.spec.dataset} {self.spec.split}: {error}") from error

    def _fields(self, example: Mapping[str, Any]) -> dict[str, Any]:
        features = self._info.features
        return {
            name: _plain(value, features[name])
            for name, value in example.items()
            if name not in self._features.values() and not _is_array(features[name])
        }

    def _record(self, example: Mapping[str, Any]) -> Record:
        fields = self._fields(example)
        texts = {name: fields.get(feature) for name, feature in self._captions.items()}
        for name, text in texts.items():
            if not isinstance(text, str | None):
                raise DataError(
                    f"the feature {self._captions[name]!r} of {self.spec.dataset} is a {type(text).__name__} and not a "
                    f"text; give templates over its parts: {', '.join(field_names(fields))}"
                )
        return self.rules.from_fields(fields, texts)

    def _mean_size(self) -> int:
        whole = self._info.splits[self.spec.split.partition("[")[0]] if self._info.splits else None
        return max(1, whole.num_bytes // max(1, whole.num_examples)) if whole is not None else 1


def _builder(tfds: Any, spec: TfdsSpec) -> Any:
    """Returns the builder of a data set that is on disk."""
    folder = _folder(spec)
    try:
        builder = tfds.builder_from_directory(folder)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError, AssertionError, OSError) as error:
        raise DataError(f"{spec.dataset} cannot be opened: {_first_line(error)}") from None
    if not builder.info.splits:
        raise DataError(f"{spec.dataset} was not prepared: run `tfds build {spec.dataset} --file_format=array_record`")
    kind = builder.info.file_format.value
    if kind != "array_record":
        raise DataError(
            f"{spec.dataset} is in the format {kind}, which only TensorFlow reads; convert it with: python -m "
            f"tensorflow_datasets.scripts.convert_format --to_file_format=array_record "
            f"--dataset_dir={builder.data_dir} --out_dir=DIR"
        )
    return builder


def _folder(spec: TfdsSpec) -> Path:
    """Returns where a data set was prepared: DATA_DIR/name[/config]/version.

    Its name alone says so. The library would ask its own code for the default config and version of a set that it
    knows, and that code imports TensorFlow.
    """
    given = Path(spec.dataset).expanduser()
    if (given / _FEATURES).is_file():
        return given
    root = spec.data_dir or os.environ.get("TFDS_DATA_DIR", _DATA_DIR)
    name, _, version = spec.dataset.partition(":")
    home = Path(root).expanduser() / name
    found = [path.parent for depth in ("*", "*/*") for path in home.glob(f"{depth}/{_FEATURES}")]
    if not found:
        raise DataError(
            f"no data set {spec.dataset!r} in {root}: give the folder that holds its {_FEATURES}, or prepare it with "
            f"`tfds build --file_format=array_record`"
        )
    configs = sorted({str(path.parent.relative_to(home)) for path in found})
    if len(configs) > 1:
        raise DataError(f"{home} holds several configs; name one, as in {name}/{configs[0]!s} ({', '.join(configs)})")
    versions = {path.name: path for path in sorted(found, key=_number)}
    if version and version not in versions:
        raise DataError(f"{spec.dataset} was not prepared in {root}; versions there: {', '.join(versions)}")
    return versions[version or next(reversed(versions))]


def _number(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.name)]


def _plain(value: Any, feature: Any) -> Any:
    """Returns a decoded feature in the types of json; a label by its name."""
    feature = getattr(feature, "feature", feature)  # of a sequence
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(part, feature[name]) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, feature) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    labels = hasattr(feature, "int2str") and type(value) is int and value >= 0  # -1 is no label
    return feature.int2str(value) if labels else value


def _is_array(feature: Any) -> bool:
    """Whether a feature is an image, sound or the like, which is no field."""
    shape = getattr(feature, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 1


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
