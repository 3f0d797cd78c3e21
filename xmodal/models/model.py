"""The cross-modal model: towers by name, wired by config, computing only what is wanted."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.messages import did_you_mean
from xmodal.models.batch_norm import STATISTICS, BatchNorm
from xmodal.models.connectors import Source
from xmodal.models.init import Draws
from xmodal.models.tokens import Tokens
from xmodal.models.tower import Inputs, Tower, TowerSpec
from xmodal.models.trunk import Cache
from xmodal.paths import flatten_paths

# Parts of the parameter tree beside the towers: parameters of the objectives, running statistics of BatchNorms.
RESERVED = ("objectives", STATISTICS)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Description of a model.

    Attributes:
      towers: by name, which may be none of `RESERVED`.
      dtype: type of the arithmetic; parameters, norms and logits stay in float32.
    """

    towers: dict[str, TowerSpec]
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def alone(self) -> dict[str, str]:
        """{tower: input} of the towers that embed one input by themselves."""
        reads = {name: t.embed.input for name, t in self.towers.items() if t.embed is not None and t.embed.rank}
        return {name: read for name, read in reads.items() if self.towers[name].pooled and not self.towers[name].wired}

    @property
    def outputs(self) -> dict[str, int]:
        """{"<tower>.<output>": width} of all that the model gives."""
        return {
            f"{name}.{output}": width for name, tower in self.towers.items() for output, width in tower.outputs.items()
        }

    def check_output(self, wanted: str) -> None:
        """Raises a ValueError that says what there is when the model does not give an output."""
        name, _, output = wanted.partition(".")
        if name not in self.towers:
            known = ", ".join(self.towers)
            raise ValueError(f"there is no tower {name!r}.{did_you_mean(name, self.towers)} Towers: {known}")
        if output not in (given := self.towers[name].outputs):
            raise ValueError(
                f"needs {wanted}, and the tower {name!r} gives {', '.join(given)}: set model.towers.{name}.heads."
                f"{output or 'NAME'}"
            )

    def length(self, name: str, text_length: int = 0, batch: Mapping | None = None) -> int:
        """Tokens of a tower's sequence.

        Args:
          name: of the tower.
          text_length: of the inputs that grow token by token; 0: the longest.
          batch: raw arrays, which know how many items a sample has, and may bring a tower's tokens.
        """
        spec, batch = self.towers[name], batch or {}
        if (brought := batch.get(f"{name}.tokens")) is not None:
            return brought.x.shape[1]
        through = lambda other, edge: (
            edge.length(self.length(other, text_length, batch)) * (self.items(other, batch) if edge.fold else 1)
        )
        total = 0 if spec.embed and spec.embed.absorbs else sum(through(*edge) for edge in spec.reads.items())
        if spec.embed is not None:
            total += text_length if text_length and spec.embed.decodes else spec.embed.tokens
        return total

    def items(self, name: str, batch: Mapping) -> int:
        """Items that a sample has of the input of a tower, each a row of its own; 1 where samples have one."""
        embed = self.towers[name].embed
        array = batch.get(embed.input) if embed is not None and embed.rank else None
        return array.shape[1] if array is not None and array.ndim > embed.rank else 1


class CrossModalModel(nnx.Module):
    """Towers and their wiring.

    `model(batch, want)` returns the wanted outputs by name:
      `<tower>.tokens`: Tokens [batch, seq, width];
      `<tower>.<head>`: what the head gives, see `xmodal.models.heads`, such as `image.pooled`, float32 [batch, width];
      `statistics`: {tower: moments that its BatchNorms saw, by path}, of the towers that ran, with random keys only.
    """

    def __init__(self, spec: ModelSpec, draw: Draws):
        self.spec = spec
        for name in wiring_order(spec.towers):
            tower = spec.towers[name]
            sources = {other: Source(spec.towers[other].width, spec.length(other)) for other in tower.wired}
            setattr(self, name, Tower(tower, sources, jnp.dtype(spec.dtype), draw))

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        want: frozenset[str],
        keys: jax.Array | None = None,
        caches: dict[str, Cache] | None = None,
        prefill: bool = True,
        cuts: Collection[str] = (),
    ) -> dict:
        """Runs the towers that `want` needs, each once.

        Args:
          batch: raw arrays by name (a view's batch); `<tower>.tokens` (`Tokens`) stands for running that tower.
          want: names of outputs.
          keys: per-sample random keys [batch]; None runs without dropout, and with running statistics in BatchNorms.
          caches: decoding caches by tower; these towers then see only new tokens. Adds "caches" to the result.
          prefill: first decoding call; later ones leave out towers that have no cache (their tokens are cached).
          cuts: edges that are left out, "<reader><<other>", such as "caption<image": cross sublayers then add nothing.

        Returns:
          {output name: value}.
        """
        for wanted in want - {STATISTICS}:
            self.spec.check_output(wanted)
        check_cuts(self.spec.towers, cuts)
        call = _Call(self, batch, keys, caches, prefill, frozenset(cuts))
        outputs = {}
        for wanted in sorted(want - {STATISTICS}):
            name, _, what = wanted.partition(".")
            tokens, tower = call.run(name), getattr(self, name)
            with jax.named_scope(name):
                outputs[wanted] = tokens if what == "tokens" else tower.read(what, tokens, call.batch_of(name))
        if STATISTICS in want:
            outputs[STATISTICS] = call.moments
        if caches is not None:
            outputs["caches"] = call.caches
        return outputs

    def init_caches(
        self, name: str, batch_size: int, text_length: int, batch: Mapping | None = None
    ) -> dict[str, Cache]:
        """Returns empty caches to decode `text_length` tokens with the tower `name` (and the text towers it reads).

        `batch` is what the text is conditioned on, whose arrays say how many items there are.
        """
        spec, batch = self.spec.towers[name], batch or {}
        dtype = jnp.dtype(self.spec.dtype)
        grows = spec.embed is not None and spec.embed.decodes
        if grows and spec.embed.position == "learned" and text_length > spec.embed.length:
            raise ValueError(f"tower {name!r} has {spec.embed.length} positions, too few for {text_length} tokens")
        caches = {}
        for other in spec.reads:
            if (embed := self.spec.towers[other].embed) is not None and embed.decodes:
                caches |= self.init_caches(other, batch_size, text_length, batch)
        context = sum(
            edge.length(self.spec.length(other, text_length, batch))
            * (self.spec.items(other, batch) if edge.fold else 1)
            for other, edge in spec.attends.items()
        )
        length = self.spec.length(name, text_length, batch)
        caches[name] = getattr(self, name).trunk.init_cache(batch_size, length, context, dtype)
        return caches


class _Call:
    """One call of a model: towers run when they are first needed, and once."""

    def __init__(self, model: CrossModalModel, batch: Mapping, keys, caches, prefill: bool, cuts: frozenset[str]):
        self.model, self.batch, self.keys, self.prefill, self.cuts = model, batch, keys, prefill, cuts
        self.given = caches or {}
        self.tokens: dict[str, Tokens] = {}
        self.caches: dict[str, Cache] = {}
        self.moments: dict[str, dict] = {}

    def run(self, name: str) -> Tokens:
        """Returns the tokens of a tower."""
        if name not in self.tokens:
            brought = self.batch.get(f"{name}.tokens")
            self.tokens[name] = self._run(name) if brought is None else brought
        return self.tokens[name]

    def _run(self, name: str) -> Tokens:
        tower: Tower = getattr(self.model, name)
        spec, cache = tower.spec, self.given.get(name)
        done = lambda other: cache is not None and not self.prefill and other not in self.given
        live = lambda edges: [other for other in edges if not done(other) and f"{name}<{other}" not in self.cuts]
        read = {other: self.run(other) for other in live(spec.reads)}
        attended = {other: self.run(other) for other in live(spec.attends)}
        condition = {other: self._pooled(other) for other in live(spec.condition)}
        batch, items = self.batch_of(name), {o: self.model.spec.items(o, self.batch) for o in (*read, *attended)}
        there = {
            other: self.batch[f"{embed.input}_there"]
            for other, n in items.items()
            if n > 1 and (embed := self.model.spec.towers[other].embed) and f"{embed.input}_there" in self.batch
        }
        rows = self._rows(spec, batch, items, read | attended, condition)
        # Rows of a sample with several texts or images have keys of their own.
        keys = key_tools.fold(self.keys, name)
        keys = keys if keys is None else key_tools.spread(keys, rows)
        inputs = Inputs(batch, rows, read, attended, condition, items, there)
        with jax.named_scope(name):
            out, cache, moments = tower(inputs, keys=keys, cache=cache)
        if cache is not None:
            self.caches[name] = cache
        if moments:
            self.moments[name] = moments
        return out

    def _pooled(self, name: str) -> jax.Array:
        """The vector that conditions another tower."""
        return getattr(self.model, name).read("pooled", self.run(name), self.batch_of(name))

    def batch_of(self, name: str) -> Mapping:
        """The batch as a tower sees it: several items that a sample has of its input are rows."""
        items = self.model.spec.items(name, self.batch)
        return as_rows(self.batch, self.model.spec.towers[name].embed.input, items) if items > 1 else self.batch

    def _rows(self, spec: TowerSpec, batch: Mapping, items: Mapping, seen: Mapping, condition: Mapping) -> int:
        """Sequences of a tower: rows of its array, or else of what it is wired to, or else samples of the batch."""
        if spec.embed is not None and spec.embed.rank and spec.embed.input in batch and not spec.embed.absorbs:
            return batch[spec.embed.input].shape[0]  # an export's is a symbol, which `len` refuses
        for other, tokens in seen.items():
            edge = spec.reads.get(other) or spec.attends[other]
            return tokens.x.shape[0] // (items[other] if edge.fold else 1)
        for vector in condition.values():
            return vector.shape[0]
        return next(array.shape[0] for array in jax.tree.leaves(dict(batch)) if array.ndim)


def as_rows(batch: Mapping[str, jax.Array], name: str, items: int) -> dict:
    """Makes items of samples rows: the input `name` [batch, items, ...], and what stands beside it, lose an axis."""
    fits = lambda key, a: key == name or (key.startswith(f"{name}_") and a.shape[1:2] == (items,) and a.ndim > 2)
    return {**batch, **{key: a.reshape(-1, *a.shape[2:]) for key, a in batch.items() if fits(key, a)}}


def check_cuts(towers: Mapping[str, TowerSpec], cuts: Collection[str]) -> None:
    """Raises a ValueError for a cut that names no edge."""
    edges = {f"{name}<{other}" for name, tower in towers.items() for other in tower.wired}
    for cut in cuts:
        if cut not in edges:
            raise ValueError(
                f"there is no edge {cut!r} to cut: {', '.join(sorted(edges)) or 'the towers are not wired'}"
            )


def inputs_read(towers: Mapping[str, TowerSpec], name: str) -> frozenset[str]:
    """Returns the inputs that a tower's outputs depend on: those that it, or a tower that it is wired to, embeds."""
    tower = towers[name]
    embedded = frozenset({tower.embed.input}) if tower.embed and tower.embed.rank else frozenset()
    return embedded.union(*(inputs_read(towers, other) for other in tower.wired))


def wiring_order(towers: Mapping[str, TowerSpec]) -> list[str]:
    """Returns the tower names, each after those it reads or attends to; errors on unknown names and on cycles."""
    order, state = [], {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name not in towers:
            raise ValueError(f"tower {path[-1]!r} is wired to {name!r}, which does not exist: {', '.join(towers)}")
        if state.get(name) == "open":
            raise ValueError(f"the wiring of the towers has a cycle: {' -> '.join((*path, name))}")
        if name not in state:
            state[name] = "open"
            for other in (*towers[name].read_order, *towers[name].attends, *towers[name].condition):
                visit(other, (*path, name))
            state[name] = "done"
            order.append(name)

    for name in RESERVED:
        if name in towers:
            raise ValueError(f'a tower cannot be named "{name}": that part of the parameters is no tower')
    for name in towers:
        visit(name, ())
    return order


@dataclasses.dataclass(frozen=True)
class Functional:
    """A model as pure functions of a plain nested dict of parameters.

    Attributes:
      spec: description of the model.
      graphdef: the modules without their parameters.
      structure: names of the parameters, as the tree of a nested dict.
      initializer: the jitted function of a random key that makes the parameters; jitted so that it is traced once.
      frozen: paths of BatchNorms that use their running statistics in training, too.
    """

    spec: ModelSpec
    graphdef: nnx.GraphDef
    structure: jax.tree_util.PyTreeDef
    initializer: Callable[[jax.Array], dict] = dataclasses.field(compare=False, repr=False)
    frozen: frozenset[str] = frozenset()

    @classmethod
    def build(cls, spec: ModelSpec) -> "Functional":
        """Builds the structure without allocating any parameter.

        For a description that was built before in this process, that model: to train, evaluate and export it, it is
        traced once.
        """
        described = repr(spec)
        if described not in _built:
            _built[described] = cls._trace(spec)
        return _built[described]

    @classmethod
    def _trace(cls, spec: ModelSpec) -> "Functional":
        definitions = []

        @jax.jit
        def initializer(key: jax.Array) -> dict:
            model = CrossModalModel(spec, Draws(key))
            definitions.append(nnx.graphdef(model))
            return _parameters(model)

        try:
            shapes = jax.eval_shape(initializer, jax.random.key(0))
        except TypeError as error:  # where JAX meets a size first
            if "nonnegative" not in str(error):
                raise
            raise ValueError(f"one of its sizes is negative: {str(error).splitlines()[0]}") from error
        return cls(spec, definitions[0], jax.tree.structure(shapes), initializer)

    @property
    def has_statistics(self) -> bool:
        """Whether there are BatchNorms."""
        return STATISTICS in jax.tree.unflatten(self.structure, range(self.structure.num_leaves))

    def init(self, key: jax.Array) -> dict:
        """Returns fresh float32 parameters {tower: {...}}; jit it with out_shardings to create them sharded.

        A model with BatchNorms has their running statistics under "statistics", {tower: {...}} as well.
        """
        return self.initializer(key)

    def own(self, params: Mapping) -> dict:
        """Returns the parts of a tree that are of the model: its towers and their running statistics."""
        towers = lambda tree: {name: tree[name] for name in self.spec.towers if name in tree}
        statistics = {name: own for name, own in towers(params.get(STATISTICS, {})).items() if own}
        return towers(params) | ({STATISTICS: statistics} if statistics else {})

    def freezing(self, frozen: Mapping) -> "Functional":
        """Returns the model whose BatchNorms keep their running statistics where scale and bias are both frozen.

        Args:
          frozen: tree of bool like the parameters.
        """
        if not self.has_statistics:
            return self
        held, norms = flatten_paths(frozen), {path.rpartition("/")[0] for path in flatten_paths(frozen[STATISTICS])}
        names = (path.removeprefix(f"{STATISTICS}/") for path in norms)
        kept = frozenset(name for name in names if held[f"{name}/scale"] and held[f"{name}/bias"])
        return dataclasses.replace(self, frozen=kept)

    def bind(self, params: Mapping) -> CrossModalModel:
        """Returns the module holding these parameters (free: no copies).

        Raises:
          ValueError: a parameter is missing or unknown.
        """
        own = self.own(params)
        if jax.tree.structure(own) != self.structure:  # nnx.merge goes by order and would mix arrays up
            given = flatten_paths(own).keys()
            known = flatten_paths(jax.tree.unflatten(self.structure, [0] * self.structure.num_leaves)).keys()
            raise ValueError(
                "the parameters are not those of this model: "
                f"missing {sorted(known - given) or 'none'}, unknown {sorted(given - known) or 'none'}"
            )
        statistics = own.pop(STATISTICS, {})
        model = nnx.merge(self.graphdef, own, statistics)
        for path, module in nnx.iter_modules(model) if self.frozen else ():
            if isinstance(module, BatchNorm):
                module.frozen = "/".join(map(str, path)) in self.frozen
        return model

    def __call__(self, params: Mapping, batch: Mapping, want: frozenset[str], keys=None, cuts=()) -> dict:
        """Runs the model; see `CrossModalModel.__call__`."""
        return self.bind(params)(batch, want, keys, cuts=cuts)


_built: dict[str, Functional] = {}  # by description: in its order, towers draw their parameters


def _parameters(model: CrossModalModel) -> dict:
    """Parameters by tower, and running statistics where there are some."""
    params, statistics = (nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    return params | ({STATISTICS: statistics} if statistics else {})
