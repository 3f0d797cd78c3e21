"""Starts a run from weights that exist: an imported folder, another run, or "hf:DIR".

Strict: every parameter of the model must be there and fit, every weight must be used, and what a weight means (the
activation, a norm's epsilon, the tokenizer) must be the same. `init_from_except` names by pattern what need not.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

from xmodal.config import ConfigError
from xmodal.distributed.sharding import place
from xmodal.interop.folder import Stored, open_stored
from xmodal.interop.positions import resize_grid
from xmodal.interop.tables import differences, fail
from xmodal.interop.tokenizer_files import same_tokens
from xmodal.models.embed import NaflexSpec, PatchSpec
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec
from xmodal.paths import flatten_paths
from xmodal.training.task import Task

# Settings that change neither what a weight means nor its shape, or whose shapes are compared by themselves.
_FREE = re.compile(
    r".*/(dropout|attn_dropout|drop_path|drop_connect|patch_dropout|momentum|norm_momentum|scan|remat(/\d+)?|init"
    r"|gate_init|layer_scale|image_size|position_size|position_filter|positions|ragged|vocab_size|length|head|depth"
    r"|pattern/.*/lora(/.*)?|heads/(?!pooled/).*)"
)
_TOKENS = "text/embed/embedding"


def start_from(task: Task, state: dict) -> dict:
    """Returns the fresh state with the weights that `config.init_from` names, averaged weights included.

    Raises:
      ConfigError: they cannot be read, or do not fit; every one that does not is named.
    """
    where, patterns = task.config.init_from, task.config.init_from_except
    stored = open_stored(where)
    wanted = {path: leaf for path, leaf in flatten_paths(state["params"]).items() if not matches(path, patterns)}
    found = fitted(stored, task, wanted, patterns)
    if jax.process_index() == 0:
        fresh = len(flatten_paths(state["params"])) - len(found)
        print(f"started from {where}: {len(found)} arrays" + (f", {fresh} others are new" if fresh else ""))
    put = lambda path, leaf: place(found[path].astype(leaf.dtype), leaf.sharding) if path in found else leaf
    return state | {
        part: jax.tree.unflatten(
            jax.tree.structure(state[part]), [put(p, leaf) for p, leaf in flatten_paths(state[part]).items()]
        )
        for part in ("params", "ema")
        if part in state
    }


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns matches the whole path. Raises a ConfigError for one that is malformed."""
    try:
        return any(re.fullmatch(pattern, path) for pattern in patterns)
    except (re.error, TypeError) as error:
        raise ConfigError(f"init_from_except: {patterns!r} are not regular expressions: {error}") from None


def fitted(stored: Stored, task: Task, wanted: Mapping, patterns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns {path: array} for every wanted parameter, resized where that is possible.

    Args:
      stored: the weights.
      task: the run.
      wanted: {path: array or shape} of the run's parameters that no pattern excepts.
      patterns: `init_from_except`.
    """
    spec, have = task.losses.model.spec, flatten_paths(stored.params)
    problems = _meanings(stored, task, patterns)
    problems += [f"unexpected: {p}" for p in have if p not in wanted and not matches(p, patterns)]
    arrays = {}
    for path, leaf in wanted.items():
        if path not in have:
            problems.append(f"missing: {path} {leaf.shape}")
            continue
        array = _resized(path, np.asarray(have[path], np.float32), leaf.shape, stored.spec, spec)
        if array.shape != leaf.shape:
            problems.append(f"shape: {path} is {array.shape}, the model needs {leaf.shape}")
        arrays[path] = array
    advice = "Make the recipe's model agree, or name what shall start afresh in init_from_except"
    fail(f"init_from={task.config.init_from}: the weights are not those of this model. {advice}", problems)
    return arrays


def _resized(path: str, array: np.ndarray, shape: tuple, theirs: ModelSpec, ours: ModelSpec) -> np.ndarray:
    """Position embeddings for the resolution or the text length of the run; any other array as it is."""
    tower, _, rest = path.partition("/")
    if rest not in ("embed/position", "pool/position") or array.shape == shape or tower not in theirs.towers:
        return array
    old, new = (getattr(spec.towers[tower], "embed", None) for spec in (theirs, ours))
    grids = [getattr(embed, "position_grid", None) or getattr(embed, "grid", None) for embed in (old, new)]
    if all(grids):
        return resize_grid(array, *grids)
    # A shorter text has the first positions; a longer one needs some that were never trained, and stays an error.
    return array[: shape[0]]


def _meanings(stored: Stored, task: Task, patterns: tuple[str, ...]) -> list[str]:
    """What would make the same weights compute something else."""
    problems, spec = [], task.losses.model.spec
    for name, tower in spec.towers.items():
        if name in stored.spec.towers:
            pair = _as_squares(tower, stored.spec.towers[name])
            problems += [
                line
                for line in differences(*pair, name, ("is", "the weights have"))
                if not _FREE.fullmatch(option := line.partition(": ")[0]) and not matches(option, patterns)
            ]
    taken = any(t.embed is not None and t.embed.decodes for t in spec.towers.values()) and stored.tokenizer is not None
    if taken and not matches(_TOKENS, patterns) and (other := same_tokens(task.tokenizer, stored.tokenizer)):
        problems.append(
            f"data.text.tokenizer: {task.config.data.text.tokenizer} is not the weights' tokenizer: {other}; except "
            f"{_TOKENS} to learn new tokens"
        )
    classes = {where.data.label.classes for where in (task.config, stored.config) if where.data.label.classes}
    if len(classes) > 1 and not matches("image/projection/kernel", patterns):
        problems.append(
            "data.label.classes are not those of the weights; except image/projection/.* to learn these from the start"
        )
    image, theirs = task.config.data.image, stored.config.data.image
    if "image" in stored.spec.towers and not matches("image/embed/kernel", patterns):
        problems += [
            f"data.image.{key}: is {image[key]}, the weights have {theirs[key]}"
            for key in ("mean", "std")
            if not np.allclose(image[key], theirs[key], atol=1e-4) and not matches(f"data/image/{key}", patterns)
        ]
    return problems


def _as_squares(ours: TowerSpec, theirs: TowerSpec) -> tuple[TowerSpec, TowerSpec]:
    """Where one tower takes squares and the other packed patches, both as squares: their parameters mean the same."""
    if {type(ours.embed), type(theirs.embed)} != {PatchSpec, NaflexSpec}:
        return ours, theirs
    squares = next(tower.embed for tower in (ours, theirs) if isinstance(tower.embed, PatchSpec))
    same = dict(stem=(), class_token=False, registers=0, position="learned", bias=True, pre_norm=False)
    as_patches = lambda tower: dataclasses.replace(
        tower, embed=dataclasses.replace(squares, patch_size=tower.embed.patch_size, **same)
    )
    return tuple(as_patches(t) if isinstance(t.embed, NaflexSpec) else t for t in (ours, theirs))
