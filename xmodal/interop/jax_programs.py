"""Towers as programs: serialised StableHLO that JAX runs without xmodal, for batches of any size.

`<tower>.jaxexport` holds the program and `<tower>.npz` its weights, by path; running statistics of BatchNorms are at
"statistics/...". bfloat16, which NumPy files do not know, is kept as uint16 and turned back inside the program.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from xmodal.distributed.mesh import make_mesh
from xmodal.interop.tables import InteropError
from xmodal.interop.weights import cast
from xmodal.live import Live
from xmodal.models import attention
from xmodal.models.batch_norm import STATISTICS
from xmodal.paths import flatten_paths
from xmodal.preparing import Preparing
from xmodal.stored.base import Stored

PLATFORMS = ("cpu", "cuda", "tpu")
_ARITHMETIC = {"f32": "float32", "bf16": "bfloat16"}


def write(stored: Stored, folder: Path, dtype: str) -> list[str]:
    """Writes a program for each tower that embeds one modality by itself; returns their names.

    Raises:
      InteropError: there is no such tower.
    """
    mesh, compute = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.local_devices()[:1]), _ARITHMETIC[dtype]
    towers = stored.spec.alone
    if not towers:
        raise InteropError(f"{stored.origin} has no tower that embeds pictures or texts alone; nothing to export")
    (rows,) = jax.export.symbolic_shape("batch")
    inputs = {
        name: {array: jax.ShapeDtypeStruct(*spec) for array, spec in modality.read(rows).items()}
        for name, modality in stored.inputs.items()
    }
    for name, kind in towers.items():
        statistics = stored.params.get(STATISTICS, {}).get(name, {})
        arrays = cast(flatten_paths(stored.params[name] | {STATISTICS: statistics}), dtype)
        weights = {path: a.view(np.uint16) if dtype == "bf16" else a for path, a in arrays.items()}
        # Alone, so that the program names no parameter of another tower.
        run = functools.partial(_embed, Live.of(stored, mesh, dtype=compute, towers=(name,)), name)
        shapes = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in weights.items()}
        with attention.portable():
            program = jax.export.export(jax.jit(run), platforms=PLATFORMS)(shapes, inputs[kind])
        (folder / f"{name}.jaxexport").write_bytes(program.serialize())
        np.savez(folder / f"{name}.npz", **weights)
    return list(towers)


class Programs:
    """What `write` wrote, read back: embeds as `xmodal.Model` does, with its preparation of pictures and texts.

    Attributes:
      stored: the model that was written.
    """

    def __init__(self, folder: Path, stored: Stored):
        """Reads the programs of the towers of `stored`."""
        self.stored, self._preparing = stored, Preparing(stored.inputs)
        self._towers = {}
        for name, kind in stored.spec.alone.items():
            program = jax.export.deserialize((folder / f"{name}.jaxexport").read_bytes())
            self._towers[kind] = program, dict(np.load(folder / f"{name}.npz"))

    def embed_image(self, pictures: list) -> np.ndarray:
        """Unit embeddings of pictures."""
        return self._call("image", self._preparing.rows("image", pictures))

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Unit embeddings of texts."""
        return self._call("text", self._preparing.rows("text", texts))

    def _call(self, kind: str, batch: Mapping) -> np.ndarray:
        program, weights = self._towers[kind]
        return np.asarray(program.call(weights, batch))


def _embed(live: Live, name: str, weights: Mapping, batch: Mapping) -> jax.Array:
    floats = {p: jax.lax.bitcast_convert_type(a, jnp.bfloat16) if a.dtype == jnp.uint16 else a
              for p, a in weights.items()}  # fmt: skip
    tower = unflatten_dict({p: a.astype(jnp.float32) for p, a in floats.items()}, sep="/")
    return live.embedding(name, batch, {STATISTICS: {name: tower.pop(STATISTICS, {})}, name: tower})
