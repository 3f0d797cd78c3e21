"""What is sharded how: rules by parameter path, the table that shows them, and constraints inside a model.

A rule names the *trailing* dimensions of a parameter, so stacked layers (a leading axis for `lax.scan`) need
no rule of their own. It is matched against the *end* of the path, so the optimizer's copies of a parameter
(`opt_state/0/mu/image/...`) and its average (`ema/image/...`) follow it. The first match wins.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from xmodal.config import ConfigError
from xmodal.paths import flatten_paths

# What a dimension means -> the mesh axis that splits it.
LOGICAL_AXES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

# (end of the path, meaning of the trailing dimensions).
PARAM_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"v_(row|col)/.*", ()),  # Adafactor's factors: vectors beside the matrix that they describe
    (r"position(/embedding)?", (None, "embed")),
    (r"embedding", ("vocab", "embed")),
    (r"(query|key|value)(/expert\d+)?/kernel", ("embed", "heads")),
    (r"out(/expert\d+)?/kernel", ("heads", "embed")),
    (r"(fc1|gate)(/expert\d+)?/kernel", ("embed", "mlp")),
    (r"fc2(/expert\d+)?/kernel", ("mlp", "embed")),
    (r"head/kernel", ("embed", "vocab")),
    (r"projection/kernel", ("embed", None)),
    (r"kernel", (None, "embed")),  # patch maps, convolutions, connectors: by outputs
    (r".*", ()),
)

MIN_SIZE = 2**14  # elements; gathering anything smaller costs more than keeping a copy
LARGE = 2**18  # elements; a copy of this on every device is worth a word

Rule = tuple[str, Sequence[Any]]


def shardings(
    tree: Any, mesh: Mesh, extra_rules: Sequence[Rule] = (), *, min_size: int = MIN_SIZE, must_match: bool = True
) -> Any:
    """Returns the sharding of every array of a tree: parameters, or a whole train state.

    Dimensions that their axis does not divide, arrays below `min_size` elements and everything without a rule
    stay whole. Extra rules name mesh axes directly and hold whatever the size.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
      mesh: the device mesh.
      extra_rules: config.mesh.rules: ((path regex, (an axis, a tuple of axes, or None, ...)), ...) over the
        trailing dimensions, tried first.
      min_size: elements below which the built-in rules keep an array whole.
      must_match: an extra rule that matches nothing is a mistake; not so for a model that the rules were not made for.

    Returns:
      A tree of `NamedSharding` of the same structure.

    Raises:
      ConfigError: an extra rule is malformed, names an unknown axis, has more dimensions than an array that
        it matches, or matches nothing.
    """
    extra = [_check_rule(rule, mesh) for rule in extra_rules]
    unused = set(range(len(extra)))

    def spec(path: str, shape: tuple[int, ...]) -> jax.P:
        for i, (pattern, axes) in enumerate(extra):
            if pattern.fullmatch(path):
                unused.discard(i)
                if len(axes) > len(shape):
                    raise ConfigError(f"mesh.rules: {extra_rules[i]!r} names {len(axes)} dimensions, "
                                      f"but {path} has shape {shape}")  # fmt: skip
                return _fit(shape, axes, mesh.shape)
        if math.prod(shape) < min_size:
            return jax.P()
        axes = next(axes for pattern, axes in _BUILT_IN if pattern.fullmatch(path))
        return _fit(shape, [LOGICAL_AXES.get(a) for a in axes], mesh.shape)

    leaves = flatten_paths(tree)
    out = [NamedSharding(mesh, spec(path, tuple(x.shape))) for path, x in leaves.items()]
    for i in sorted(unused) if must_match else ():
        some = ", ".join(list(leaves)[:: max(1, len(leaves) // 4)][:4])
        raise ConfigError(
            f"mesh.rules: the pattern {extra_rules[i][0]!r} matches no parameter. A pattern must match whole "
            f"path components up to the end of the path; some paths: {some}"
        )
    return jax.tree.unflatten(jax.tree.structure(tree), out)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shards an array of which every process holds the whole; each gives its own parts."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the sharding table: arrays of one path pattern, shape and sharding.

    Attributes:
      pattern: path with layer numbers and the like as `*`.
      count: how many arrays share the line.
      shape: of one array.
      spec: its sharding, dimension by dimension; () is a full copy on every device.
      bytes_total: of all arrays of the line, once.
      bytes_per_device: of all arrays of the line, on one device.
      large_copy: big matrices that every device holds whole although the mesh could split them.
    """

    pattern: str
    count: int
    shape: tuple[int, ...]
    spec: tuple
    bytes_total: int
    bytes_per_device: int
    large_copy: bool


def sharding_table(tree: Any, tree_shardings: Any) -> list[Row]:
    """Groups arrays of equal pattern, shape and sharding into rows, in the order of the tree.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
      tree_shardings: their shardings, from `shardings`.
    """
    groups: dict[tuple, list[int]] = {}
    for (path, x), sharding in zip(flatten_paths(tree).items(), jax.tree.leaves(tree_shardings), strict=True):
        shape, spec = tuple(x.shape), tuple(sharding.spec)
        pattern = "/".join("*" if part.isdigit() else part for part in path.split("/"))
        could_split = any(sharding.mesh.shape[axis] > 1 for axis in ("fsdp", "tensor"))
        large_copy = could_split and not any(spec) and len(shape) >= 2 and math.prod(shape) >= LARGE
        group = groups.setdefault((pattern, shape, spec, large_copy), [0, 0, 0])
        group[0] += 1
        group[1] += x.dtype.itemsize * math.prod(shape)
        group[2] += x.dtype.itemsize * math.prod(sharding.shard_shape(shape))
    return [
        Row(pattern, count, shape, spec, total, local, large_copy)
        for (pattern, shape, spec, large_copy), (count, total, local) in groups.items()
    ]


def format_sharding_table(rows: Sequence[Row]) -> str:
    """Returns the table as aligned text, with a total and a note on large arrays that stay whole."""
    mib = lambda n: f"{n / 2**20:,.2f}"
    lines = [("parameters", "count", "shape", "sharded over", "MiB/device")]
    for row in rows:
        axes = ["+".join(a) if isinstance(a, tuple) else a or "-" for a in row.spec]
        where = ", ".join(axes) if any(row.spec) else "whole (large)" if row.large_copy else "whole"
        shape = " x ".join(map(str, row.shape)) or "scalar"
        lines.append((row.pattern, str(row.count), shape, where, mib(row.bytes_per_device)))
    total = mib(sum(row.bytes_per_device for row in rows))
    lines.append(("total", str(sum(row.count for row in rows)), "", "", total))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    text = ["  ".join(map(str.ljust, line[:4], widths)) + "  " + line[4].rjust(widths[4]) for line in lines]
    if copies := sum(row.bytes_per_device for row in rows if row.large_copy):
        text.append(f"{mib(copies)} MiB of large arrays fit no rule on this mesh: every device holds them whole.")
    return "\n".join(text)


def constrain(x: jax.Array, spec: jax.P) -> jax.Array:
    """Asks the compiler to shard `x` like `spec`; does nothing without a mesh in context (`jax.set_mesh`).

    Axes that the mesh lacks, that a surrounding `shard_map` handles by hand, or that do not divide their
    dimension are left out, so a model can state its wish without knowing the mesh.

    An embedding table that is sharded along its width must be constrained to `jax.P("tensor", None)` *before*
    `jnp.take`: otherwise the partitioner rematerialises the gather's whole result at every step.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types)
    automatic = {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}
    if not automatic:
        return x
    if len(spec) > x.ndim:
        raise ValueError(f"{spec} has more dimensions than an array of shape {x.shape}")
    leading = (*spec, *(None,) * (x.ndim - len(spec)))  # a PartitionSpec counts from the front
    return jax.lax.with_sharding_constraint(x, _fit(x.shape, leading, automatic))


def _compile(pattern: str) -> re.Pattern:
    """A pattern matches whole path components up to the end of the path."""
    return re.compile(f"(?:.*/)?(?:{pattern})")


_BUILT_IN = tuple((_compile(pattern), axes) for pattern, axes in PARAM_RULES)


def _check_rule(rule: Rule, mesh: Mesh) -> tuple[re.Pattern, Sequence]:
    form = "expected (path regex, (axis, ...)), such as ('head/kernel', ('fsdp', None))"
    if len(rule) != 2 or not isinstance(rule[0], str) or isinstance(rule[1], str):
        raise ConfigError(f"mesh.rules: {form}, got {rule!r}")
    for axis in rule[1]:
        for name in axis if isinstance(axis, (tuple, list)) else (axis,):
            if name is not None and name not in mesh.shape:
                axes = ", ".join(mesh.axis_names)
                raise ConfigError(f"mesh.rules: no axis is called {name!r} in {rule!r}; the axes are {axes}")
    try:
        return _compile(rule[0]), rule[1]
    except re.error as error:
        raise ConfigError(f"mesh.rules: {rule[0]!r} is not a regular expression: {error}") from None


def _fit(shape: Sequence[int], axes: Sequence, sizes: Mapping[str, int]) -> jax.P:
    """Aligns axes to the trailing dimensions and drops what does not divide or splits nothing."""
    out: list = [None] * len(shape)
    # An array may have fewer dimensions than its rule: Adafactor keeps placeholders for what it does not use.
    for back in range(1, min(len(shape), len(axes)) + 1):
        names = axes[-back] if isinstance(axes[-back], (tuple, list)) else (axes[-back],)
        names = tuple(name for name in names if sizes.get(name, 1) > 1)
        if names and shape[-back] % math.prod(sizes[name] for name in names) == 0:
            out[-back] = names if len(names) > 1 else names[0]
    while out and out[-1] is None:  # so that equal shardings compare equal and print alike
        out.pop()
    return jax.P(*out)
