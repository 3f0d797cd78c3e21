"""Name tables: every array of a reference model, the path at which it lives here, and how its layout changes.

Linear maps are transposed, patch kernels go from OIHW to HWIO, the layers of a trunk are stacked along a leading axis,
and packed query, key and value are taken apart. A family of models is one file with one table, in both directions;
`Family` is what it registers in `xmodal.interop.FAMILIES`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from xmodal.config import ConfigError
from xmodal.models.batch_norm import STATISTICS
from xmodal.models.model import ModelSpec
from xmodal.paths import flatten_paths

LINEAR, CONV = (1, 0), (2, 3, 1, 0)  # [out, in] -> [in, out]; OIHW -> HWIO
_EACH = 6  # lines of a kind
_SHOWN, _LINE, _CHARACTERS = 40, 400, 1500  # lines of one error, characters of a line and of all of them


class InteropError(ConfigError):
    """A model that cannot be brought in or taken out; the message says what, where and what to do."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of the reference, or one equal part of its rows, and its place here.

    Attributes:
      name: of the array in the reference.
      path: of the parameter here.
      shape: of this part in the reference's layout.
      axes: the order of its axes here; () keeps it.
      own: shape here where it is not just the axes in another order, else None.
      layer: index along the leading axis of a stacked parameter here, or None.
      part: which part of the rows of a packed array this is.
      parts: how many parts it packs.
      values: (to ours, to theirs), where the numbers mean something else here; None keeps them.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    own: tuple[int, ...] | None = None
    layer: int | None = None
    part: int = 0
    parts: int = 1
    values: tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]] | None = None

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the whole array in the reference."""
        return self.shape if self.parts == 1 else (self.parts * self.shape[0], *self.shape[1:])

    def take(self, array: np.ndarray) -> np.ndarray:
        """From the reference's whole array to the parameter here (of one layer)."""
        part = array if self.parts == 1 else np.split(array, self.parts)[self.part]
        part = part if self.values is None else self.values[0](part)
        part = part.transpose(self.axes) if self.axes else part
        return part if self.own is None else part.reshape(self.own)

    def give(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `take`, for this part alone."""
        array = array if self.layer is None else array[self.layer]
        axes = self.axes or range(len(self.shape))
        moved = array.reshape([self.shape[axis] for axis in axes]).transpose(np.argsort(axes))
        return moved if self.values is None else self.values[1](moved)


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that one table describes.

    Attributes:
      model_type: of their config.json.
      architecture: class of the reference that loads their weights.
      model_config: config.json -> our `model` section.
      table: spec -> every array; raises an InteropError for a model that the reference cannot express.
      to_config: spec -> config.json, without what only the tokenizer knows.
      fits: whether a spec is of this family rather than another: what tells it apart, not whether it is exact.
      labels: config.json -> names of the classes of a classifier, () for another model.
      with_names: (config.json, names of the weights) -> config.json, completed by what only the names tell.
      constants: spec -> arrays that the reference has and no tower here; not read, and written as they are given.
      any_size: the model resamples its positions, so its pictures are as large as their processor makes them.
      packed: its pictures are packed patches, of any aspect ratio.
      cased: tokenizer classes whose files keep capitals although the model was trained on lower-cased texts.
      tokenizer_class: of the reference, if it makes one of any folder of this family, whatever its tokenizer.json says.
      objective: entry of `objectives` that the weights carry parameters for, such as dict(type="softmax"); {} for none.
      ignored: arrays that files carry beside the weights, such as index tables.
      alias: name of an array in a file -> its name in the table, where older files call it otherwise.
      check_marks: (config.json, tokenizer) -> None; raises an InteropError when the model would read a text in another
        way than the tower here, as its configuration states marks of its own.
      image_processor: class of the reference that prepares images, "" without images.
      processor: class of the reference that prepares images and texts.
    """

    model_type: str
    architecture: str
    model_config: Callable[[Mapping[str, Any]], ConfigDict]
    table: Callable[[ModelSpec], list[Entry]]
    to_config: Callable[[ModelSpec], dict]
    fits: Callable[[ModelSpec], bool]
    labels: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None
    with_names: Callable[[Mapping[str, Any], Iterable[str]], dict] | None = None
    constants: Callable[[ModelSpec], dict[str, np.ndarray]] | None = None
    any_size: bool = False
    packed: bool = False
    cased: frozenset[str] = frozenset()
    tokenizer_class: str = ""
    objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    alias: Callable[[str], str] | None = None
    check_marks: Callable[[Mapping[str, Any], Any], None] | None = None
    image_processor: str = ""
    processor: str = ""

    def to_params(self, weights: Mapping[str, np.ndarray], spec: ModelSpec) -> dict:
        """Converts the reference's weights; see `to_params`."""
        constants = self.constants(spec) if self.constants else {}
        if self.alias and any(self.alias(name) != name for name in weights):
            weights = {self.alias(name): weights[name] for name in weights}
        return to_params(weights, self.table(spec), self.ignored | constants.keys())

    def to_weights(self, params: Mapping[str, Any], spec: ModelSpec) -> dict[str, np.ndarray]:
        """Converts parameters to the reference's weights; see `to_weights`."""
        constants = self.constants(spec) if self.constants else {}
        return to_weights(params, self.table(spec)) | constants


def to_params(weights: Mapping[str, np.ndarray], entries: list[Entry], ignored: Iterable[str] = ()) -> dict:
    """Converts weights of a reference to parameters.

    Args:
      weights: arrays by the reference's name, of any floating type; only what the table names is read.
      entries: the table of the model they are for.
      ignored: names that may be there and mean nothing.

    Returns:
      {tower: {...}, "objectives": {objective: {...}}, "statistics": {tower: {...}}}, nested dicts of float32 arrays,
      as far as the table has them.

    Raises:
      InteropError: missing names, unexpected names, wrong shapes (all listed).
    """
    wanted = {e.name: e.packed_shape for e in entries}
    prefix = "" if wanted.keys() <= set(weights) else _wrapped(wanted, weights)
    problems = [f"every name begins with {prefix!r}: save the model inside the wrapper"] if prefix else []
    shapes = {name: np.shape(weights[name]) for name in wanted if name in weights}
    kinds = (
        [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in weights],
        [f"unexpected: {name}" for name in weights if name not in wanted and name not in ignored],
        [f"shape: {n} is {shape}, the model needs {wanted[n]}" for n, shape in shapes.items() if shape != wanted[n]],
    )
    problems += [line for kind in kinds for line in kind[:_EACH]]  # some of each kind come first
    problems += [line for kind in kinds for line in kind[_EACH:]]
    fail("the weights do not fit the model", problems)
    stacks: dict[str, list[np.ndarray]] = {}
    for entry in entries:  # layers come in order
        stacks.setdefault(entry.path, []).append(entry.take(np.asarray(weights[entry.name], np.float32)))
    stacked = {e.path for e in entries if e.layer is not None}
    flat = {path: np.stack(a) if path in stacked else np.array(a[0], order="C") for path, a in stacks.items()}
    return unflatten_dict(flat, sep="/")


def _wrapped(wanted: Iterable[str], given: Iterable[str]) -> str:
    """The prefix that all wanted names have in a file, as wrappers such as DistributedDataParallel add it, or ""."""
    wanted, given = set(wanted), set(given)
    ends = {name.partition(".")[0] + "." for name in given if name.partition(".")[2] in wanted}
    prefix = min(ends, default="")
    return prefix if prefix and wanted <= {name.removeprefix(prefix) for name in given} else ""


def to_weights(params: Mapping[str, Any], entries: list[Entry]) -> dict[str, np.ndarray]:
    """Converts parameters to weights of a reference: the inverse of `to_params`.

    Args:
      params: nested dicts of arrays; what the table does not name is left out.
      entries: the table of the model.

    Returns:
      Contiguous arrays by the reference's name, of the parameters' type.

    Raises:
      InteropError: parameters are missing (all of them are listed).
    """
    flat = {path: np.asarray(value) for path, value in flatten_paths(params).items()}
    fail("the parameters are incomplete", [f"missing: {p}" for p in sorted({e.path for e in entries} - set(flat))])
    packed: dict[str, list[np.ndarray]] = {}
    for entry in entries:  # parts come in order
        packed.setdefault(entry.name, []).append(entry.give(flat[entry.path]))
    return {n: np.array(a[0] if len(a) == 1 else np.concatenate(a), order="C") for n, a in packed.items()}


# ---------------------------------------------------------------------------------------------- rows of a table


def norm(name: str, path: str, width: int, layer: int | None = None) -> Iterator[Entry]:
    """A LayerNorm: `weight` and `bias`."""
    yield Entry(f"{name}.weight", f"{path}/scale", (width,), layer=layer)
    yield Entry(f"{name}.bias", f"{path}/bias", (width,), layer=layer)


def linear(
    name: str, path: str, inputs: int, outputs: int, *, bias: bool = True, layer: int | None = None
) -> Iterator[Entry]:
    """A linear map: `weight` [outputs, inputs] and `bias`."""
    yield Entry(f"{name}.weight", f"{path}/kernel", (outputs, inputs), LINEAR, layer=layer)
    if bias:
        yield Entry(f"{name}.bias", f"{path}/bias", (outputs,), layer=layer)


def pointwise(name: str, path: str, inputs: int, outputs: int, layer: int | None = None) -> Iterator[Entry]:
    """A convolution of 1 x 1 with its bias, which is a linear map here."""
    shape, own = (outputs, inputs, 1, 1), (inputs, outputs)
    yield Entry(f"{name}.weight", f"{path}/kernel", shape, CONV, own=own, layer=layer)
    yield Entry(f"{name}.bias", f"{path}/bias", (outputs,), layer=layer)


def convolution(
    name: str, path: str, inputs: int, outputs: int, size: int, *, bias: bool = True, layer: int | None = None
) -> Iterator[Entry]:
    """A convolution: `weight` [outputs, inputs of each output, size, size] and `bias`."""
    yield Entry(f"{name}.weight", f"{path}/kernel", (outputs, inputs, size, size), CONV, layer=layer)
    if bias:
        yield Entry(f"{name}.bias", f"{path}/bias", (outputs,), layer=layer)


def batch_norm(name: str, path: str, width: int, layer: int | None = None) -> Iterator[Entry]:
    """A BatchNorm: `weight`, `bias` and its running statistics; `counters` gives what else PyTorch keeps."""
    yield from norm(name, path, width, layer)
    for theirs, ours in (("running_mean", "mean"), ("running_var", "var")):
        yield Entry(f"{name}.{theirs}", f"{STATISTICS}/{path}/{ours}", (width,), layer=layer)


def counters(entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The numbers of batches that PyTorch's BatchNorms count and, with a momentum, never read."""
    norms = (e.name.removesuffix("running_mean") for e in entries if e.name.endswith(".running_mean"))
    return {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in norms}


def packed_attention(name: str, path: str, width: int, layer: int | None = None) -> Iterator[Entry]:
    """A `torch.nn.MultiheadAttention`: query, key and value are the thirds of `in_proj_weight` and `in_proj_bias`."""
    for part, which in enumerate(("query", "key", "value")):
        packed = dict(part=part, parts=3, layer=layer)
        yield Entry(f"{name}.in_proj_weight", f"{path}/{which}/kernel", (width, width), LINEAR, **packed)
        yield Entry(f"{name}.in_proj_bias", f"{path}/{which}/bias", (width,), **packed)
    yield from linear(f"{name}.out_proj", f"{path}/out", width, width, layer=layer)


# ---------------------------------------------------------------------------------------------- errors


def fail(what: str, problems: list[str]) -> None:
    """Raises an InteropError that lists the problems, if there are any."""
    if problems:
        shown, room = [], _CHARACTERS
        for problem in problems[:_SHOWN]:
            shown, room = [*shown, problem[:_LINE]], room - len(problem[:_LINE])
            if room < 0:
                break
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise InteropError(f"{what}:\n  " + "\n  ".join(shown + more))


def differences(have: Any, need: Any, where: str, words: tuple[str, str] = ("is", "needs")) -> list[str]:
    """Returns one line for each field in which two specs differ: "image/trunk/norm: is 'rms', needs 'ln'"."""
    have, need = (flatten_paths(dataclasses.asdict(spec)) for spec in (have, need))
    show = lambda values, key: repr(values[key]) if key in values else "nothing"
    return [
        f"{where}/{key}: {words[0]} {show(have, key)}, {words[1]} {show(need, key)}"
        for key in {**have, **need}
        if have.get(key) != need.get(key)
    ]
