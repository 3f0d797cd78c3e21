"""Where a run's first weights come from: `init_from`, read, checked and fitted to the model of the run.

`init_from` is one place (an imported folder, another run, or "hf:DIR") for all parameters, or a list of
(path regex, place) or (path regex, place, dict(stored=False)); the first that matches a parameter's whole path gives
it. Strict: every parameter must be covered, be there and fit, every weight that is covered must be used, and what a
weight means (the activation, a norm's epsilon, the tokenizer) must be the same. `init_from_except` names by pattern
what need not. Weights that are not stored stay out of checkpoints: whoever opens one reads them from their place again.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.modalities import inputs_of as open_inputs
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import ConfigError, make_spec
from xmodal.interop.positions import resize_grid
from xmodal.interop.tables import differences, fail
from xmodal.interop.tokenizer_files import same_tokens
from xmodal.models.batch_norm import STATISTICS
from xmodal.models.embed import NaflexSpec, PatchSpec
from xmodal.models.model import ModelSpec
from xmodal.models.options import free_paths
from xmodal.models.tower import TowerSpec
from xmodal.paths import flatten_paths
from xmodal.stored.base import Stored

UNSTORED = "unstored"  # entry of a checkpoint's document: fingerprint of the parameters that it leaves out
_CLASSES = "image/projection/kernel"  # what names of classes are for
_FORM = "expected (path regex, place) or (path regex, place, dict(stored=False)), such as ('image/.*', 'hf:clip')"


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """Options of an entry of `init_from`, behind the pattern of the paths and the place.

    Attributes:
      stored: keep these parameters in the run's checkpoints. False reads them again from their place whenever a
        checkpoint is opened, and refuses others than those that the run began with; rules must freeze them.
    """

    stored: bool = True


@dataclasses.dataclass(frozen=True)
class Starting:
    """`init_from` and `init_from_except` of a config.

    Attributes:
      entries: ((pattern, place, options), ...), in the order in which they are tried.
      excepted: patterns of the paths that start afresh.
    """

    entries: tuple[tuple[str, str, StartOptions], ...]
    excepted: tuple[str, ...]

    @classmethod
    def of(cls, config: ConfigDict) -> "Starting":
        """Reads the two options. Raises a ConfigError for an entry that is malformed."""
        given, excepted = config.init_from or (), config.init_from_except
        if isinstance(given, str):
            given = ((".*", given),)
        if not isinstance(given, tuple | list):
            raise ConfigError(f"init_from is {given!r}; expected a place, or entries: {_FORM}")
        found = cls(tuple(_entry(i, entry) for i, entry in enumerate(given)), tuple(excepted))
        for pattern in (*(pattern for pattern, _, _ in found.entries), *excepted):
            matches("", (pattern,))
        return found

    def excepts(self, path: str) -> bool:
        """Whether a parameter, or a setting, is excepted."""
        return matches(path, self.excepted)

    def entry_of(self, path: str) -> int | None:
        """Number of the entry that covers a path, excepted or not; None where none does."""
        numbers = (i for i, (pattern, _, _) in enumerate(self.entries) if matches(path, (pattern,)))
        return next(numbers, None)

    @property
    def stores_all(self) -> bool:
        """Whether checkpoints hold every parameter."""
        return all(options.stored for _, _, options in self.entries)

    def unstored(self, paths: Collection[str]) -> frozenset[str]:
        """Those of a model's parameters that checkpoints leave out."""
        if self.stores_all:
            return frozenset()
        number = {path: self.entry_of(path) for path in paths if not self.excepts(path)}
        return frozenset(path for path, i in number.items() if i is not None and not self.entries[i][2].stored)

    def __str__(self) -> str:
        named = [where if pattern == ".*" else f"{where} ({pattern})" for pattern, where, _ in self.entries]
        return ", ".join(named)


@dataclasses.dataclass(frozen=True)
class Target:
    """The run that weights are for.

    Attributes:
      config: complete.
      tokenizers: of its texts, by input.
      shapes: {path: array or shape} of all its parameters.
    """

    config: ConfigDict
    tokenizers: Mapping[str, Tokenizer]
    shapes: Mapping[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """Description of the towers."""
        return make_spec(ModelSpec, self.config.model, where="model")


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns matches the whole path. Raises a ConfigError for one that is malformed."""
    try:
        return any(re.fullmatch(pattern, path) for pattern in patterns)
    except (re.error, TypeError) as error:
        raise ConfigError(f"init_from, init_from_except: {patterns!r} are not regular expressions: {error}") from None


def read_start(
    target: Target, open_other: Callable[[str], Stored], only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Returns {path: array} of the parameters that `init_from` gives, resized where that is possible.

    Args:
      target: the run.
      open_other: `xmodal.stored.opening.open_stored`, which may itself open runs that start from elsewhere.
      only: paths that are wanted; None takes all.

    Raises:
      ConfigError: a place cannot be read, a parameter is not covered or does not fit; every one that does not is named.
    """
    starting, found = Starting.of(target.config), {}
    covered = {path: starting.entry_of(path) for path in target.shapes}
    if bare := [p for p, number in covered.items() if number is None and not starting.excepts(p)]:
        fail(
            f"init_from={starting}: no pattern covers some parameters. Add an entry for them, or name what shall "
            "start afresh in init_from_except",
            [f"not covered: {path} {target.shapes[path].shape}" for path in bare],
        )
    for number, (pattern, where, _) in enumerate(starting.entries):
        wanted = [p for p, i in covered.items() if i == number and not starting.excepts(p)]
        if not wanted:
            raise ConfigError(
                f"init_from: {pattern!r} gives no parameter: earlier entries or init_from_except take all that it "
                f"matches, or it matches none. Paths of this model begin with {', '.join(_towers(target.shapes))}"
            )
        if only is None or not only.isdisjoint(wanted):
            found |= _Fit(target, starting, number, open_other(where)).arrays(wanted)
    return found if only is None else {path: found[path] for path in only}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns what tells these arrays from all others: of their paths, types, shapes and values."""
    total = hashlib.blake2b(digest_size=16)
    for path, array in sorted(arrays.items()):
        total.update(f"{path} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def read_unstored(target: Target, open_other: Callable[[str], Stored], fingerprint: str) -> dict[str, np.ndarray]:
    """Reads what a checkpoint has left out: the same arrays that the run began with.

    Args:
      target: the run.
      open_other: as for `read_start`.
      fingerprint: of these arrays, from the checkpoint.

    Raises:
      ConfigError: they are not there any more, or are others.
    """
    starting = Starting.of(target.config)
    paths = starting.unstored(target.shapes)
    if not paths:
        return {}
    places = ", ".join(dict.fromkeys(where for _, where, options in starting.entries if not options.stored))
    advice = f"Its checkpoints leave these weights out (stored=False), so {places} must be as it was"
    try:
        arrays = read_start(target, open_other, paths)
    except ValueError as error:
        raise ConfigError(f"init_from: {str(error).splitlines()[0]}. {advice}") from error
    if digest(arrays) != fingerprint:
        raise ConfigError(f"init_from: {places} does not hold the weights that this run began with. {advice}")
    return arrays


def without(tree: Any, paths: Collection[str]) -> Any:
    """Returns a nested dict without the leaves at these paths, and without the sections that this empties."""
    if not paths:
        return tree
    return _without(tree, "", paths)


def merged(part: Mapping, whole: Mapping, leaves: Mapping[str, Any]) -> dict:
    """Undoes `without`: a tree as `whole`, with the leaves of `part` and, where it has none, those of `leaves`."""

    def fill(part: Any, whole: Any, prefix: str) -> Any:
        if not isinstance(whole, Mapping):
            return leaves[prefix] if part is None else part
        part = part or {}
        return {key: fill(part.get(key), whole[key], f"{prefix}/{key}".lstrip("/")) for key in whole}

    return fill(part, whole, "")


def _without(tree: Mapping, prefix: str, paths: Collection[str]) -> dict:
    kept = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}".lstrip("/")
        if isinstance(value, Mapping):
            if (inner := _without(value, path, paths)) or not value:
                kept[key] = inner
        elif path not in paths:
            kept[key] = value
    return kept


def _entry(number: int, entry: Any) -> tuple[str, str, StartOptions]:
    where = f"init_from[{number}]"
    if not isinstance(entry, tuple | list) or len(entry) not in (2, 3):
        raise ConfigError(f"{where}: {_FORM}, got {entry!r}")
    pattern, place, *options = entry
    if not isinstance(pattern, str) or not isinstance(place, str) or not place:
        raise ConfigError(f"{where}: {_FORM}, got {entry!r}")
    return pattern, place, make_spec(StartOptions, options[0] if options else {}, where)


def _towers(paths: Collection[str]) -> list[str]:
    return sorted({f"{path.partition('/')[0]}/" for path in paths})


@dataclasses.dataclass(frozen=True)
class _Fit:
    """One place and the parameters that it gives."""

    target: Target
    starting: Starting
    number: int
    stored: Stored

    def arrays(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """Returns the wanted arrays; raises a ConfigError that lists all that does not fit."""
        have, shapes, spec = flatten_paths(self.stored.params), self.target.shapes, self.target.spec
        problems = self._meanings(spec)
        problems += [f"unexpected: {p}" for p in have if p not in wanted and self._takes(p)]
        arrays = {}
        for path in wanted:
            if path not in have:
                problems.append(f"missing: {path} {shapes[path].shape}")
                continue
            array = resized(path, np.asarray(have[path], np.float32), shapes[path].shape, self.stored.spec, spec)
            if array.shape != shapes[path].shape:
                problems.append(f"shape: {path} is {array.shape}, the model needs {shapes[path].shape}")
            arrays[path] = array
        advice = "Make the recipe's model agree, or name what shall start afresh in init_from_except"
        place = self.starting.entries[self.number][1]
        fail(f"init_from={place}: the weights are not those of this model. {advice}", problems)
        return arrays

    def _takes(self, path: str) -> bool:
        """Whether this place must give a parameter."""
        return self.starting.entry_of(path) == self.number and not self.starting.excepts(path)

    def _meanings(self, spec: ModelSpec) -> list[str]:
        """What would make the same weights compute something else."""
        problems, ours, given = [], self.target.config, self.stored.config
        here = {p.removeprefix(f"{STATISTICS}/").partition("/")[0] for p in self.target.shapes if self._gives(p)}
        for name in [name for name in spec.towers if name in here and name in self.stored.spec.towers]:
            problems += self._differences(name, spec.towers[name])
            problems += self._inputs(name, spec.towers[name])
        mine, stored = (_classes(config) for config in (ours, given))
        if mine and stored and mine != stored and self._takes(_CLASSES):
            problems.append(
                "the classes of data.inputs are not those of the weights; except image/projection/.* to learn these "
                "from the start"
            )
        return problems

    def _inputs(self, name: str, tower: TowerSpec) -> list[str]:
        """What makes the embedding of a tower mean something else: another tokenizer, other means of the pixels."""
        read = getattr(tower.embed, "input", "")
        ours, given = open_inputs(self.target.config.data).get(read), self.stored.inputs.get(read)
        paths = [path for path in self.target.shapes if path.startswith(f"{name}/embed/") and self._takes(path)]
        if ours is None or given is None or not paths:
            return []
        problems = [
            f"{ours.where}.{key}: is {getattr(ours, key)}, the weights have {getattr(given, key)}"
            for key in ours.meaning
            if not np.allclose(getattr(ours, key), getattr(given, key), atol=1e-4)
            and not self.starting.excepts(f"data/inputs/{read}/{key}")
        ]
        path, tokenizers = f"{name}/embed/embedding", (self.target.tokenizers, self.stored.tokenizers)
        both = path in paths and all(read in known for known in tokenizers)
        if both and (other := same_tokens(*(known[read] for known in tokenizers))):
            problems.append(
                f"{ours.where}.tokenizer: {ours.tokenizer} is not the weights' tokenizer: {other}; except {path} to "
                "learn new tokens"
            )
        return problems

    def _gives(self, path: str) -> bool:
        return self.starting.entry_of(path) == self.number

    def _differences(self, name: str, tower: TowerSpec) -> list[str]:
        pair = _as_squares(tower, self.stored.spec.towers[name])
        free = {path for spec in pair for path in free_paths(spec, name)}
        option = lambda line: line.partition(": ")[0]
        lines = differences(*pair, name, ("is", "the weights have"))
        return [line for line in lines if option(line) not in free and not self.starting.excepts(option(line))]


def _classes(config: ConfigDict) -> tuple:
    """Returns the names of the classes that a config knows; () where it knows none."""
    labels = (modality for modality in open_inputs(config.data).values() if modality.labels)
    return next((tuple(label.classes) for label in labels), ())


def resized(path: str, array: np.ndarray, shape: tuple, given: ModelSpec, wanted: ModelSpec) -> np.ndarray:
    """Position embeddings for the resolution or the text length of the run; any other array as it is."""
    tower, _, rest = path.partition("/")
    if rest not in ("embed/position", "pool/position") or array.shape == shape or tower not in given.towers:
        return array
    old, new = (getattr(spec.towers[tower], "embed", None) for spec in (given, wanted))
    grids = [getattr(embed, "position_grid", None) or getattr(embed, "grid", None) for embed in (old, new)]
    if all(grids):
        return resize_grid(array, *grids)
    # A shorter text has the first positions; a longer one needs some that were never trained, and stays an error.
    return array[: shape[0]]


def _as_squares(wanted: TowerSpec, given: TowerSpec) -> tuple[TowerSpec, TowerSpec]:
    """Where one tower takes squares and the other packed patches, both as squares: their parameters mean the same."""
    if {type(wanted.embed), type(given.embed)} != {PatchSpec, NaflexSpec}:
        return wanted, given
    squares = next(tower.embed for tower in (wanted, given) if isinstance(tower.embed, PatchSpec))
    same = dict(stem=(), class_token=False, registers=0, position="learned", bias=True, pre_norm=False)
    as_patches = lambda tower: dataclasses.replace(
        tower, embed=dataclasses.replace(squares, patch_size=tower.embed.patch_size, **same)
    )
    return tuple(as_patches(t) if isinstance(t.embed, NaflexSpec) else t for t in (wanted, given))
