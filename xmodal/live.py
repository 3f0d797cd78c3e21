"""A model in use: its towers on a mesh, with the preparation of its inputs; what all that runs a model shares.

Inference, evaluations, search, exports and frozen models of a training run ask a `Live`. It runs a model and knows
nothing of who asks: training gives the parameters of each call, others place those of a stored model.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.modalities import Inputs
from xmodal.config import ConfigError
from xmodal.distributed.mesh import batch_sharding, num_batch_shards
from xmodal.distributed.sharding import place, shardings
from xmodal.models.model import Functional
from xmodal.objectives.base import Temperature
from xmodal.objectives.contrastive import normalize
from xmodal.preparing import Preparing
from xmodal.stored.base import Stored

_SIZES = (1, 8, 64)  # rows that are compiled, beside the largest; a smaller batch is padded to the next size


@dataclasses.dataclass(frozen=True, eq=False)
class Live:
    """A model in use.

    Attributes:
      model: the towers that are placed, as pure functions.
      config: complete; `model` and `data` are those of the model.
      mesh: batches are split over all its devices.
      modalities: what it reads, by input, each text with its tokenizer.
      params: the towers' parameters on the mesh; None where each call is given them, as in training.
      stored: the model that was placed, without the towers' parameters; None in training.
      fingerprint: of weights and preparation, where it was asked for; else "".
    """

    model: Functional
    config: ConfigDict
    mesh: jax.sharding.Mesh
    modalities: Inputs
    params: Mapping | None = None
    stored: Stored | None = None
    fingerprint: str = ""

    @classmethod
    def of(cls, stored: Stored, mesh: jax.sharding.Mesh, *, dtype: str = "", towers: Collection[str] = ()) -> "Live":
        """Describes a stored model without placing its parameters; arguments as for `place`."""
        config = stored.config.copy_and_resolve_references()
        config.model.dtype = dtype or config.model.dtype
        spec = dataclasses.replace(stored, config=config, params={}).spec
        if unknown := sorted(set(towers) - set(spec.towers)):
            raise ConfigError(f"{stored.origin} has no tower {unknown[0]!r}: its towers are {', '.join(spec.towers)}")
        if towers:
            spec = dataclasses.replace(spec, towers={name: t for name, t in spec.towers.items() if name in towers})
        light = dataclasses.replace(stored, params={"objectives": stored.params.get("objectives", {})})
        return cls(Functional.build(spec), config, mesh, stored.inputs, stored=light)

    @classmethod
    def place(
        cls,
        stored: Stored,
        mesh: jax.sharding.Mesh,
        *,
        dtype: str = "",
        towers: Collection[str] = (),
        identify: bool = False,
    ) -> "Live":
        """Puts a stored model on a mesh.

        Args:
          stored: the model; parameters that lie on the mesh already stay where they are.
          mesh: of this process, or of all: each process then holds the whole model on its host.
          dtype: of the arithmetic; "" takes the model's. Parameters stay as they are stored.
          towers: those that are needed, none of which may read another one; () takes all.
          identify: compute `fingerprint`, which reads every weight.

        Raises:
          ConfigError: there is no such tower, or the weights are not those of the model.
        """
        live = cls.of(stored, mesh, dtype=dtype, towers=towers)
        params = live.model.own(stored.params)
        shapes = jax.eval_shape(lambda tree: tree, params)
        placed = shardings(shapes, mesh, live.config.mesh.rules, must_match=False)  # some are for parts not placed here
        params = jax.tree.map(_put, params, placed)
        return dataclasses.replace(live, params=params, fingerprint=stored.fingerprint() if identify else "")

    # ------------------------------------------------------------------------------------------ what it is

    @property
    def origin(self) -> str:
        """Where the model was read; "" in training."""
        return self.stored.origin if self.stored else ""

    def temperature(self, *between: str) -> Temperature | None:
        """The temperature between embeddings that was stored with the model; see `Stored.temperature`."""
        return self.stored.temperature(*between) if self.stored else None

    @property
    def data(self) -> ConfigDict:
        """The section of the config that says how inputs are prepared."""
        return self.config.data

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """{input: the tower that embeds it by itself}."""
        return {kind: tower for tower, kind in self.model.spec.alone.items()}

    def tower_of(self, kind: str) -> str:
        """Returns the tower that embeds an input by itself. Raises a ConfigError where there is none."""
        if kind not in self.inputs:
            raise ConfigError(f"{self.origin} has no tower that embeds {kind}s alone")
        return self.inputs[kind]

    def width(self, tower: str) -> int:
        """Width of a tower's embeddings."""
        return self.model.spec.towers[tower].pooled_width

    @functools.cached_property
    def preparing(self) -> Preparing:
        """How raw images and texts become rows of a batch."""
        return Preparing(self.modalities)

    # ------------------------------------------------------------------------------------------ pure functions

    @property
    def preprocess(self) -> Callable[[Mapping, jax.Array | None], dict]:
        """(batch, keys or None) -> batch as towers take it, on the device; see `Modality.on_device`."""
        return self.modalities.on_device

    def outputs(self, batch: Mapping, want: Collection[str], params: Mapping | None = None) -> dict:
        """Runs the towers that `want` needs on a raw batch; may be traced.

        Args:
          batch: arrays as `preparing` or a stream makes them.
          want: names of outputs, see `CrossModalModel`.
          params: instead of those that are placed: arguments of a jitted step, or weights that are trained.
        """
        return self.model(self.given(params), self.preprocess(batch, None), frozenset(want))

    def embedding(self, tower: str, batch: Mapping, params: Mapping | None = None) -> jax.Array:
        """Unit embeddings [batch, width] of a raw batch; may be traced."""
        output = f"{tower}.pooled"
        return normalize(self.outputs(batch, {output}, params)[output])

    def local(self, tower: str, batch: Mapping, params: Mapping | None = None) -> dict[str, jax.Array]:
        """{"x": unit patches or words [batch, seq, width], "valid": [batch, seq]} of a raw batch; may be traced."""
        output = f"{tower}.local"
        found = self.outputs(batch, {output}, params)[output]
        return {"x": normalize(found["x"]), "valid": found["valid"]}

    def given(self, params: Mapping | None) -> Mapping:
        """Returns the parameters of a call: those that it is given, or else those that are placed."""
        if params is None and self.params is None:
            raise ValueError("no parameters were placed with this model: give them with each call")
        return self.params if params is None else params

    # ------------------------------------------------------------------------------------------ running it

    @functools.cached_property
    def embed(self) -> dict[str, Callable[[Mapping, Mapping], jax.Array]]:
        """Jitted (params, batch) -> unit embeddings [batch, width], by tower."""
        jitted = lambda tower: jax.jit(lambda params, batch: self.embedding(tower, batch, params))
        return {tower: jitted(tower) for tower in self.model.spec.towers}

    @functools.cached_property
    def embed_local(self) -> dict[str, Callable[[Mapping, Mapping], dict[str, jax.Array]]]:
        """Jitted (params, batch) -> what `local` gives, by tower."""
        jitted = lambda tower: jax.jit(lambda params, batch: self.local(tower, batch, params))
        return {tower: jitted(tower) for tower in self.model.spec.towers}

    def rows(self, batch_size: int) -> int:
        """Returns a batch size, rounded up so that all devices have equally many rows."""
        shards = num_batch_shards(self.mesh)
        return -(-batch_size // shards) * shards

    def sizes(self, batch_size: int) -> list[int]:
        """Returns the sizes that batches of at most `batch_size` rows are padded to: each is compiled once."""
        return sorted({self.rows(size) for size in (*_SIZES, batch_size) if size <= batch_size})

    def embed_rows(
        self, kind: str, prepare: Callable[[int, int], Mapping[str, np.ndarray]], count: int, batch_size: int = 256
    ) -> np.ndarray:
        """Embeds rows that are prepared batch by batch: while the devices work, the next batch is made.

        Args:
          kind: an input that a tower embeds by itself.
          prepare: gives the rows [start, stop), as `preparing` does; it is asked for all rows in order, once.
          count: of the rows.
          batch_size: rows embedded at once.

        Returns:
          Unit vectors, float32 [count, width].
        """
        tower = self.tower_of(kind)
        if not count:
            return np.zeros((0, self.width(tower)), np.float32)
        sizes, pending, parts = self.sizes(batch_size), None, []
        for start in range(0, count, sizes[-1]):
            rows = prepare(start, stop := min(start + sizes[-1], count))
            batch = self._padded(rows, next(size for size in sizes if size >= stop - start))
            with jax.set_mesh(self.mesh):
                result = self.embed[tower](self.params, batch)
            if pending is not None:
                parts.append(np.asarray(pending[0])[: pending[1]])
            pending = result, stop - start
        parts.append(np.asarray(pending[0])[: pending[1]])
        return np.concatenate(parts).astype(np.float32)

    def local_row(self, kind: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Unit patches or words of a batch of one row, [seq, width]."""
        tower = self.tower_of(kind)
        with jax.set_mesh(self.mesh):
            found = self.embed_local[tower](self.params, self._padded(batch, self.sizes(1)[0]))
            return np.asarray(found["x"][:1])[0]

    def _padded(self, batch: Mapping[str, np.ndarray], size: int) -> dict[str, jax.Array]:
        """Puts rows on the devices, as many as `size`: the last one is repeated."""
        pad = lambda a: np.concatenate([a, np.repeat(a[-1:], size - len(a), axis=0)])
        return jax.device_put({name: pad(a) for name, a in batch.items()}, batch_sharding(self.mesh))


def _put(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    return place(np.asarray(array), sharding)
