"""The cross-modal model: towers by name, wired by config, computing only what is wanted."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models.tokens import Tokens
from xmodal.models.tower import Tower, TowerSpec
from xmodal.models.trunk import Cache
from xmodal.paths import flatten_paths

OUTPUTS = ("tokens", "pooled", "logits", "masked_logits")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Description of a model.

    Attributes:
      towers: by name. A name may not be "objectives", which is where the objectives keep their parameters.
      dtype: type of the arithmetic; parameters, norms and logits stay in float32.
    """

    towers: dict[str, TowerSpec]
    dtype: Literal["float32", "bfloat16"] = "float32"


class CrossModalModel(nnx.Module):
    """Towers and their wiring.

    `model(batch, want)` returns the wanted outputs by name:
      `<tower>.tokens`: Tokens [batch, seq, width];
      `<tower>.pooled`: float32 [batch, embed_dim];
      `<tower>.logits`: float32 [batch, text length, vocab];
      `<tower>.masked_logits`: the same at the positions `<input>_places` of the batch alone, [batch, count, vocab].
    """

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        self.spec = spec
        widths = {name: tower.width for name, tower in spec.towers.items()}
        for name in wiring_order(spec.towers):
            setattr(self, name, Tower(spec.towers[name], widths, jnp.dtype(spec.dtype), rngs))

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
          keys: per-sample random keys [batch]; None runs without dropout.
          caches: decoding caches by tower; these towers then see only new tokens. Adds "caches" to the result.
          prefill: first decoding call; later ones leave out towers that have no cache (their tokens are cached).

        Returns:
          {output name: value}.
        """
        tokens, new_caches = {}, {}

        def run(name: str) -> Tokens:
            if name in tokens:
                return tokens[name]
            tower: Tower = getattr(self, name)
            spec, cache = tower.spec, (caches or {}).get(name)
            skip = lambda other: cache is not None and not prefill and other not in caches
            read = {other: run(other) for other in spec.reads if not skip(other)}
            context = run(spec.attends) if spec.attends and not skip(spec.attends) else None
            with jax.named_scope(name):
                out = tower(batch, read=read, context=context, keys=key_tools.fold(keys, name), cache=cache)
            if cache is not None:
                out, new_caches[name] = out
            tokens[name] = out
            return out

        outputs = {}
        for wanted in sorted(want):
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
                else:
                    outputs[wanted] = out if what == "tokens" else getattr(tower, what)(out)
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

    if "objectives" in towers:
        raise ValueError('a tower cannot be named "objectives": that is where objectives keep their parameters')
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
    """

    spec: ModelSpec
    graphdef: nnx.GraphDef
    structure: jax.tree_util.PyTreeDef

    @classmethod
    def build(cls, spec: ModelSpec) -> "Functional":
        """Builds the structure without allocating any parameter."""
        graphdef, state = nnx.split(nnx.eval_shape(lambda: CrossModalModel(spec, nnx.Rngs(0))))
        return cls(spec, graphdef, jax.tree.structure(nnx.to_pure_dict(state)))

    def init(self, key: jax.Array) -> dict:
        """Returns fresh float32 parameters {tower: {...}}; jit it with out_shardings to create them sharded."""
        return nnx.to_pure_dict(nnx.state(CrossModalModel(self.spec, nnx.Rngs(params=key)), nnx.Param))

    def bind(self, params: Mapping) -> CrossModalModel:
        """Returns the module holding these parameters (free: no copies).

        Raises:
          ValueError: a parameter is missing or unknown.
        """
        own = {name: params[name] for name in self.spec.towers if name in params}
        if jax.tree.structure(own) != self.structure:  # nnx.merge goes by order and would mix arrays up
            given = flatten_paths(own).keys()
            known = flatten_paths(jax.tree.unflatten(self.structure, [0] * self.structure.num_leaves)).keys()
            raise ValueError(
                "the parameters are not those of this model: "
                f"missing {sorted(known - given) or 'none'}, unknown {sorted(given - known) or 'none'}"
            )
        return nnx.merge(self.graphdef, own)

    def __call__(self, params: Mapping, batch: Mapping, want: frozenset[str], keys=None) -> dict:
        """Runs the model; see `CrossModalModel.__call__`."""
        return self.bind(params)(batch, want, keys)
