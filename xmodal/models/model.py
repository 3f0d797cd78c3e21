"""The cross-modal model: towers by name, wired by config, computing only what is wanted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models.batch_norm import STATISTICS, BatchNorm
from xmodal.models.init import Draws
from xmodal.models.tokens import Tokens
from xmodal.models.tower import Tower, TowerSpec
from xmodal.models.trunk import Cache
from xmodal.paths import flatten_paths

# Parts of the parameter tree beside the towers: parameters of the objectives, running statistics of BatchNorms.
RESERVED = ("objectives", STATISTICS)
OUTPUTS = ("tokens", "pooled", "local", "logits", "masked_logits")


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
        towers = self.towers.items()
        return {name: t.embed.input for name, t in towers if t.embed and not t.reads and t.pool != "none"}


class CrossModalModel(nnx.Module):
    """Towers and their wiring.

    `model(batch, want)` returns the wanted outputs by name:
      `<tower>.tokens`: Tokens [batch, seq, width];
      `<tower>.pooled`: float32 [batch, embed_dim];
      `<tower>.local`: {"x": float32 [batch, seq, embed_dim], "valid": float32 [batch, seq]}, patches or words there;
      `<tower>.logits`: float32 [batch, text length, vocab];
      `<tower>.masked_logits`: the same at the positions `<input>_places` of the batch alone, [batch, count, vocab];
      `statistics`: {tower: moments that its BatchNorms saw, by path}, of the towers that ran, with random keys only.
    """

    def __init__(self, spec: ModelSpec, draw: Draws):
        self.spec = spec
        widths = {name: tower.width for name, tower in spec.towers.items()}
        for name in wiring_order(spec.towers):
            setattr(self, name, Tower(spec.towers[name], widths, jnp.dtype(spec.dtype), draw))

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        want: frozenset[str],
        keys: jax.Array | None = None,
        caches: dict[str, Cache] | None = None,
        prefill: bool = True,
    ) -> dict:
        """Runs the towers that `want` needs, each once.

        Args:
          batch: raw arrays by name (a view's batch).
          want: names of outputs.
          keys: per-sample random keys [batch]; None runs without dropout, and with running statistics in BatchNorms.
          caches: decoding caches by tower; these towers then see only new tokens. Adds "caches" to the result.
          prefill: first decoding call; later ones leave out towers that have no cache (their tokens are cached).

        Returns:
          {output name: value}.
        """
        tokens, new_caches, moments = {}, {}, {}

        def run(name: str) -> Tokens:
            if name in tokens:
                return tokens[name]
            tower: Tower = getattr(self, name)
            spec, cache = tower.spec, (caches or {}).get(name)
            skip = lambda other: cache is not None and not prefill and other not in caches
            read = {other: run(other) for other in spec.reads if not skip(other)}
            context = run(spec.attends) if spec.attends and not skip(spec.attends) else None
            own_keys = key_tools.fold(keys, name)
            if own_keys is not None and spec.embed is not None:  # a sample may have several texts
                own_keys = key_tools.spread(own_keys, len(batch[spec.embed.input]))
            with jax.named_scope(name):
                out, cache, own = tower(batch, read=read, context=context, keys=own_keys, cache=cache)
            if cache is not None:
                new_caches[name] = cache
            if own:
                moments[name] = own
            tokens[name] = out
            return out

        outputs = {}
        for wanted in sorted(want - {STATISTICS}):
            name, _, what = wanted.partition(".")
            if name not in self.spec.towers or what not in OUTPUTS:
                raise ValueError(
                    f"unknown model output {wanted!r}: outputs are <tower>.{', .'.join(OUTPUTS)} of the towers "
                    f"{', '.join(self.spec.towers)}"
                )
            out, tower = run(name), getattr(self, name)
            with jax.named_scope(name):
                if what == "masked_logits":
                    outputs[wanted] = tower.logits(out, batch[f"{tower.spec.embed.input}_places"])
                elif what == "local":
                    outputs[wanted] = tower.local(out, batch)
                else:
                    outputs[wanted] = out if what == "tokens" else getattr(tower, what)(out)
        if STATISTICS in want:
            outputs[STATISTICS] = moments
        if caches is not None:
            outputs["caches"] = new_caches
        return outputs

    def init_caches(self, name: str, batch_size: int, text_length: int) -> dict[str, Cache]:
        """Returns empty caches to decode `text_length` tokens with the tower `name` (and the text towers it reads)."""
        spec = self.spec.towers[name]
        dtype = jnp.dtype(self.spec.dtype)
        if self._decodes(name) and spec.embed.position == "learned" and text_length > spec.embed.length:
            raise ValueError(f"tower {name!r} has {spec.embed.length} positions, too few for {text_length} tokens")
        caches, length = {}, 0
        for other in spec.reads:
            if self._decodes(other):
                caches |= self.init_caches(other, batch_size, text_length)
            length += self.sequence_length(other, text_length)
        length += text_length if spec.embed is not None else 0
        context = self.sequence_length(spec.attends, text_length) if spec.attends else 0
        caches[name] = getattr(self, name).trunk.init_cache(batch_size, length, context, dtype)
        return caches

    def _decodes(self, name: str) -> bool:
        """Whether the tower's own input grows token by token."""
        return getattr(self.spec.towers[name].embed, "type", "") == "token"

    def sequence_length(self, name: str, text_length: int) -> int:
        """Tokens of the tower's sequence when its text has `text_length`."""
        spec = self.spec.towers[name]
        own = 0
        if spec.embed is not None:
            own = text_length if spec.embed.type == "token" else spec.embed.tokens
        return own + sum(self.sequence_length(other, text_length) for other in spec.reads)


def inputs_read(towers: Mapping[str, TowerSpec], name: str) -> frozenset[str]:
    """Returns the inputs that a tower's outputs depend on: those that it, or a tower that it is wired to, embeds."""
    tower = towers[name]
    embedded = frozenset() if tower.embed is None else frozenset({tower.embed.input})
    wired = (*tower.reads, *([tower.attends] if tower.attends else []))
    return embedded.union(*(inputs_read(towers, other) for other in wired))


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
            for other in (*towers[name].reads, *([towers[name].attends] if towers[name].attends else [])):
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

        shapes = jax.eval_shape(initializer, jax.random.key(0))
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

    def __call__(self, params: Mapping, batch: Mapping, want: frozenset[str], keys=None) -> dict:
        """Runs the model; see `CrossModalModel.__call__`."""
        return self.bind(params)(batch, want, keys)


_built: dict[str, Functional] = {}  # by description: in its order, towers draw their parameters


def _parameters(model: CrossModalModel) -> dict:
    """Parameters by tower, and running statistics where there are some."""
    params, statistics = (nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    return params | ({STATISTICS: statistics} if statistics else {})
