"""Optimizers with settings by parameter path: learning rate multiplier, weight decay, freezing.

All parameters share one chain of transformations, in which a tree of constants scales each array. Per-path
settings therefore cost nothing to compile, and the gradient norm that clipping sees is that of all that is
trained. Only what has state is masked: frozen arrays have none, and Muon's matrices another than the rest.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from xmodal.config import ConfigError, did_you_mean, make_spec
from xmodal.models.batch_norm import STATISTICS
from xmodal.paths import flatten_paths, map_paths

FROZEN = "frozen"
NONE: Mapping[str, Any] = MappingProxyType({})
# Kernels of the trunks, [inputs, outputs] or [layers, inputs, outputs]: what Muon orthogonalises.
HIDDEN_MATRIX = re.compile(r"(.*/)?trunk/.*/kernel")
# Stacks of equal layers: the leading axis counts them.
STACK = re.compile(r"(.*/)?(layers|rest)/.*")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a rule may say about the parameters it matches; what it leaves out is the section's default.

    Attributes:
      lr: multiplies the learning rate.
      weight_decay: instead of the section's; None takes that.
      freeze: the parameters stay as they are, without a gradient or optimizer state.
      optimizer: entry of `optimizer.others` that trains them; "" the section itself.
    """

    lr: float = 1.0
    weight_decay: float | None = None
    freeze: bool = False
    optimizer: str = ""


@dataclasses.dataclass(frozen=True)
class Further:
    """A further optimizer, an entry of `optimizer.others`; what it leaves out is the section's.

    Attributes:
      name: adamw, lamb, lion, adafactor, sgd or muon.
      lr: peak learning rate.
      b1: as in the section, like the next four.
      b2: see there.
      eps: see there.
      momentum: see there.
      weight_decay: see there.
      clip_norm: of the gradients of its parameters alone.
      schedule: keys of `config.schedule` that are others here.
    """

    name: str | None = None
    lr: float | None = None
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    schedule: dict[str, Any] = dataclasses.field(default_factory=dict)

    def options(self, section: ConfigDict) -> ConfigDict:
        """Returns the `optimizer` section with the values of this entry."""
        section = section.copy_and_resolve_references()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        section.update({key: value for key, value in values.items() if value is not None and key != "schedule"})
        return section


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one array is trained.

    Attributes:
      method: as in `Row`.
      lr: multiplies the learning rate; one number, or one for each layer of a stack.
      weight_decay: as in `Row`.
      rule: the deciding pattern, or "".
      optimizer: entry of `optimizer.others` that trains it, or "".
    """

    method: str
    lr: float | tuple[float, ...]
    weight_decay: float
    rule: str
    optimizer: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the effective table: arrays of one tower with the same rule and method.

    Attributes:
      part: first component of the paths, such as "image".
      rule: pattern that matched, "" for none.
      example: the first path.
      arrays: number of arrays.
      params: number of parameters.
      method: adamw, lamb, lion, adafactor, sgd, muon or frozen; behind the name of a further optimizer and a colon.
      lr: multiplier of the learning rate, for stacked layers from the first to the last.
      weight_decay: multiplied by the learning rate and its multiplier when applied.
    """

    part: str
    rule: str
    example: str
    arrays: int
    params: int
    method: str
    lr: float | tuple[float, ...]
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class OptimizerPlan:
    """An optimizer for one parameter tree.

    Attributes:
      tx: the transformation; paths in its state end with parameter paths ("2/inner_state/mu/image/...").
      rows: what is trained how, for printing.
      frozen: tree of bool like the parameters.
      further: learning rates by step of the further optimizers.
    """

    tx: optax.GradientTransformation
    rows: tuple[Row, ...]
    frozen: Any
    further: Mapping[str, optax.Schedule] = dataclasses.field(default_factory=dict)


def make_optimizer(
    options: ConfigDict, schedule: optax.Schedule, params: Any, further: Mapping[str, optax.Schedule] = NONE
) -> OptimizerPlan:
    """Builds the optimizer of the config's `optimizer` section.

    The update of an array is `-schedule(step) * lr * (direction + weight_decay * value)`, as in AdamW
    (Loshchilov and Hutter 2019); the direction is that of `name`:

      adamw: Adam with `b1`, `b2`, `eps`.
      lamb: that, with the decay already in it, and as long as the array (or its layer of a stack) itself, so that
        `lr` is a relative step (You et al. 2020). A scalar has no such ratio: the logarithm of a temperature of 1,
        which is 0, could never move.
      lion: sign of the interpolated momentum with `b1`, `b2` (Chen et al. 2023).
      adafactor: factored second moments whose decay rises to `b2`, with momentum `b1`, without relative step
        sizes (Shazeer and Stern 2018, as in Zhai et al. 2022).
      sgd: heavy-ball `momentum`. The decay is a part of the gradient that it accumulates, as in PyTorch and all
        published recipes of ResNets: the same number shrinks weights ten times as much as above (momentum 0.9).
      muon: orthogonalised Nesterov `momentum` for the matrices of the trunks, layer by layer of a stack,
        scaled to the root mean square of Adam's updates so that one learning rate and decay serve both
        (Liu et al. 2025); AdamW for embeddings, norms, biases, poolings and heads.

    Args:
      options: the section.
      schedule: learning rate by step.
      params: the parameter tree, arrays or `jax.ShapeDtypeStruct`.
      further: learning rate by step of each entry of `optimizer.others`, which trains what rules give it.

    Raises:
      ConfigError: an unknown optimizer, or a rule that is malformed or matches nothing.
    """
    settings = settings_of(options, params)
    frozen = jax.tree.map(lambda s: s.method == FROZEN, settings)
    chains = {"": _chain(options, schedule, _part(settings, ""))}
    for name, other in further_optimizers(options).items():
        chains[name] = _chain(other.options(options), further[name], _part(settings, name))
    tx = _side_by_side(chains) if len(chains) > 1 else chains[""]
    return OptimizerPlan(tx=tx, rows=_rows(settings, params), frozen=frozen, further=further)


def further_optimizers(options: ConfigDict) -> dict[str, Further]:
    """Returns the entries of `optimizer.others`. Raises a ConfigError for one that is malformed."""
    return {name: make_spec(Further, entry, f"optimizer.others.{name}") for name, entry in options.others.items()}


def _part(settings: Any, optimizer: str) -> Any:
    """The settings as one optimizer sees them: what others train is frozen to it."""
    out = Setting(FROZEN, 0.0, 0.0, "")
    return jax.tree.map(lambda s: s if s.optimizer == optimizer else out, settings)


def _side_by_side(chains: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Optimizers of which each trains its part and gives 0 for all others."""
    main = "main"

    def init(params: Any) -> dict:
        return {name or main: tx.init(params) for name, tx in chains.items()}

    def update(gradients: Any, state: dict, params: Any) -> tuple[Any, dict]:
        total, new = None, {}
        for name, tx in chains.items():
            updates, new[name or main] = tx.update(gradients, state[name or main], params)
            total = updates if total is None else jax.tree.map(jnp.add, total, updates)
        return total, new

    return optax.GradientTransformation(init, update)


def _chain(options: ConfigDict, schedule: optax.Schedule, settings: Any) -> optax.GradientTransformation:
    """One optimizer, for the arrays that are not frozen."""
    is_method = lambda method: jax.tree.map(lambda s: s.method == method, settings)
    frozen = is_method(FROZEN)
    steps = [optax.stateless(lambda updates, _: jax.tree.map(_zero_if, frozen, updates))]
    if options.clip_norm:
        steps.append(optax.clip_by_global_norm(options.clip_norm))
    if options.name == "sgd":
        steps.append(_decay_gradients(settings))
    for method, direction in _directions(options).items():
        if any(jax.tree.leaves(mask := is_method(method))):
            steps.append(optax.masked(direction, mask))
    steps += [_decay_and_scale(settings), optax.scale_by_learning_rate(schedule)]
    return optax.chain(*steps)


def ema_update(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns the exponential moving average after `step` (0 for the first) has given `params`.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the random start is forgotten early.
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, value: average + (1.0 - rate) * (value - average), ema, params)


# ---------------------------------------------------------------------------------------------- directions


def _directions(options: ConfigDict) -> dict[str, optax.GradientTransformation]:
    """The transformations with state, by method."""
    adam = optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=options.eps)
    names = {
        "adamw": {"adamw": adam},
        "lamb": {"lamb": adam},
        "lion": {"lion": optax.scale_by_lion(b1=options.b1, b2=options.b2)},
        "adafactor": {"adafactor": _adafactor(options.b1, options.b2)},
        "sgd": {"sgd": optax.trace(options.momentum)},
        "muon": {"muon": _muon(options.momentum), "adamw": adam},
    }
    if options.name not in names:
        hint = did_you_mean(options.name, names)
        raise ConfigError(f"optimizer.name: expected {', '.join(names)}, got {options.name!r}.{hint}")
    return names[options.name]


def _adafactor(momentum: float, b2: float) -> optax.GradientTransformation:
    decay = lambda step, power: jnp.minimum(b2, 1.0 - (step + 1.0) ** -power)
    return optax.chain(optax.scale_by_factored_rms(decay_rate_fn=decay), optax.ema(momentum, debias=False))


def _muon(momentum: float) -> optax.GradientTransformation:
    # The axes that are not named are batch axes: the layers of a stack are orthogonalised one by one.
    matrices = functools.partial(jax.tree.map, lambda _: optax.contrib.MuonDimensionNumbers(-2, -1))
    orthogonal = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=matrices)
    like_adam = lambda u: 0.2 * math.sqrt(max(u.shape[-2:])) * u
    return optax.chain(orthogonal, optax.stateless(lambda updates, _: jax.tree.map(like_adam, updates)))


def _zero_if(frozen: bool, update: jax.Array) -> jax.Array:
    return jnp.zeros_like(update) if frozen else update


def _decay_gradients(settings: Any) -> optax.GradientTransformation:
    apply = lambda setting, gradient, value: gradient + setting.weight_decay * value
    return optax.stateless(lambda gradients, params: jax.tree.map(apply, settings, gradients, params))


def _decay_and_scale(settings: Any) -> optax.GradientTransformation:
    stacked = map_paths(lambda path, _: bool(STACK.fullmatch(path)), settings)

    def apply(setting: Setting, stack: bool, update: jax.Array, value: jax.Array) -> jax.Array:
        if setting.weight_decay and setting.method != "sgd":  # whose gradients have it
            update = update + setting.weight_decay * value
        if setting.method == "lamb":
            update = _as_long(update, value, stack)
        if isinstance(setting.lr, tuple):  # a stack: the leading axis is that of the layers
            return jnp.reshape(jnp.asarray(setting.lr, update.dtype), (-1, *(1,) * (update.ndim - 1))) * update
        return update if setting.lr == 1.0 else setting.lr * update

    return optax.stateless(lambda updates, params: jax.tree.map(apply, settings, stacked, updates, params))


def _as_long(update: jax.Array, value: jax.Array, stack: bool) -> jax.Array:
    """Gives an update the length of its value, layer by layer of a stack; where one of both is 0 it stays as it is."""
    if value.ndim == stack:  # scalars
        return update
    scale = lambda u, v: optax.scale_by_trust_ratio().update(u, optax.EmptyState(), v)[0]
    return (jax.vmap(scale) if stack else scale)(update, value)


# ---------------------------------------------------------------------------------------------- rules


def settings_of(options: ConfigDict, params: Any) -> Any:
    """Returns the tree of `Setting`: for each parameter the first rule that matches its whole path.

    No rule is about running statistics: they are measured, not trained.

    Args:
      options: the config's `optimizer` section.
      params: the parameter tree, arrays or `jax.ShapeDtypeStruct`.

    Raises:
      ConfigError: a rule is malformed or matches nothing, or all parameters are frozen.
    """
    measured = lambda path: path.startswith(f"{STATISTICS}/")
    rules = _read_rules(options.rules, [path for path in flatten_paths(params) if not measured(path)])
    layers = _layer_lrs(options.layer_decay, params)
    sections = {"": options} | {name: other.options(options) for name, other in further_optimizers(options).items()}
    for pattern, rule in rules.items():
        if rule.optimizer not in sections:
            hint = did_you_mean(rule.optimizer, sections)
            raise ConfigError(f"optimizer.rules ({pattern!r}): optimizer.others has no {rule.optimizer!r}.{hint}")
    if idle := sorted(sections.keys() - {rule.optimizer for rule in rules.values()} - {""}):
        raise ConfigError(f"optimizer.others.{idle[0]}: no rule gives it parameters; add one, such as "
                          f"(path regex, dict(optimizer={idle[0]!r}))")  # fmt: skip

    def decide(path: str, leaf: Any) -> Setting:
        if measured(path):
            return Setting(FROZEN, 0.0, 0.0, "running statistics")
        pattern, rule = next(((p, r) for p, r in rules.items() if re.fullmatch(p, path)), ("", Rule()))
        if rule.freeze:
            return Setting(FROZEN, 0.0, 0.0, pattern)
        hidden, section = HIDDEN_MATRIX.fullmatch(path) and leaf.ndim in (2, 3), sections[rule.optimizer]
        method = "adamw" if section.name == "muon" and not hidden else section.name
        decay = section.weight_decay if rule.weight_decay is None else rule.weight_decay
        lr = tuple(rule.lr * x for x in layers[path]) if isinstance(layers[path], tuple) else rule.lr * layers[path]
        return Setting(method, lr, decay, pattern, rule.optimizer)

    settings = map_paths(decide, params)
    if all(s.method == FROZEN for s in jax.tree.leaves(settings)):
        raise ConfigError("optimizer.rules: every parameter is frozen, there is nothing to train")
    return settings


def _layer_lrs(decay: float, params: Any) -> dict[str, float | tuple[float, ...]]:
    """Multipliers of the learning rate by path: each layer of a trunk has `decay` times that of the layer above.

    As in ELECTRA (Clark et al. 2020) and BEiT (Bao et al. 2022): the last layer of n has `decay`, the first decay^n,
    the embedder below it decay^(n + 1); what lies above the layers, and the objectives, have 1. A convolutional network
    counts its stages as layers.
    """
    if not 0.0 < decay <= 1.0:
        raise ConfigError(f"optimizer.layer_decay is {decay}: expected a factor above 0, up to 1 (no decay)")
    shapes = {path: leaf.shape for path, leaf in flatten_paths(params).items()}
    lrs: dict[str, float | tuple[float, ...]] = dict.fromkeys(shapes, 1.0)
    if decay == 1.0:
        return lrs
    for tower in dict.fromkeys(path.split("/")[0] for path in shapes):
        own = {path.removeprefix(f"{tower}/"): path for path in shapes if path.startswith(f"{tower}/")}
        numbers = lambda kind: {  # {path: number of its layer in the pattern, or of its stage}
            path: int(found[1])
            for rest, path in own.items()  # noqa: B023 (used at once)
            if (found := re.fullmatch(rf"{kind}/(\d+)/.*", rest))
        }
        below = {path for rest, path in own.items() if re.match("(embed|connectors)/", rest)}
        if layers := numbers("trunk/layers"):
            group, repeats = 1 + max(layers.values()), shapes[next(iter(layers))][0]
            depth = group * repeats
            for path, i in layers.items():
                lrs[path] = tuple(decay ** (depth - repeat * group - i) for repeat in range(repeats))
        elif stages := numbers("embed/stages"):
            depth = 1 + max(stages.values())
            lrs |= {path: decay ** (depth - i) for path, i in stages.items()}
            below -= stages.keys() | {path for rest, path in own.items() if rest.startswith("embed/top/")}
        else:
            continue
        lrs |= dict.fromkeys(below, decay ** (depth + 1))
    return lrs


def _read_rules(rules: tuple, paths: list[str]) -> dict[str, Rule]:
    read = {}
    for i, entry in enumerate(rules):
        where = f"optimizer.rules[{i}]"
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ConfigError(f"{where}: expected (path regex, dict(lr=, weight_decay=, freeze=)), got {entry!r}")
        pattern, values = entry
        if pattern in read:
            raise ConfigError(f"{where}: {pattern!r} is there twice, and only the first would count")
        check_pattern(pattern, paths, where)
        read[pattern] = make_spec(Rule, values, where=f"{where} ({pattern!r})")
    return read


def check_pattern(pattern: str, paths: list[str], where: str) -> None:
    """Raises a ConfigError for a pattern that is no regular expression or matches none of the whole paths."""
    try:
        matched = any(re.fullmatch(pattern, path) for path in paths)
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
    if not matched:
        raise ConfigError(f"{where}: {pattern!r} matches no parameter.{closest_paths(pattern, paths)}")


def closest_paths(pattern: str, paths: list[str]) -> str:
    """Returns a hint about a pattern that matches no path."""
    partial = next((path for path in paths if re.search(pattern, path)), None)
    if partial:
        return f" A rule matches whole paths, and this one matches a part of {partial!r}: add '.*' around it."
    plain = re.sub(r"[^\w/]+", "", pattern)
    close = difflib.get_close_matches(plain, paths, n=3, cutoff=0.0)
    return f" The closest paths are {', '.join(close)}."


def _rows(settings: Any, params: Any) -> tuple[Row, ...]:
    groups: dict[tuple, list[str]] = {}
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten_paths(params).items()}
    for path, setting in flatten_paths(settings).items():
        groups.setdefault((path.split("/")[0], setting), []).append(path)
    return tuple(
        Row(
            part=part,
            rule=setting.rule,
            example=paths[0],
            arrays=len(paths),
            params=sum(sizes[path] for path in paths),
            method=f"{setting.optimizer}: {setting.method}" if setting.optimizer else setting.method,
            lr=setting.lr,
            weight_decay=setting.weight_decay,
        )
        for (part, setting), paths in groups.items()
    )
