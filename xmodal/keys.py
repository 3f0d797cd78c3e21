"""Random keys, one per sample.

Everything random inside a step (dropout, patch dropout, masks, colour jitter) is drawn from a key that belongs to
its *sample*, an array of typed keys with shape [batch]. A draw therefore does not depend on which device or
micro-batch the sample lands in: sharding and accumulation never change a result.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def sample_keys(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """Returns the keys of one global batch, typed, shape [batch]; a pure function of (seed, step)."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), batch_size)


def named(key: jax.Array, name: str) -> jax.Array:
    """Derives the key of a named use from a single one, such as that of the initialisation."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def fold(keys: jax.Array | None, data: int | str | jax.Array) -> jax.Array | None:
    """Derives new per-sample keys for a named or numbered use; `None` (deterministic) stays `None`."""
    if keys is None:
        return None
    number = zlib.crc32(data.encode()) if isinstance(data, str) else data
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def fold_each(keys: jax.Array, names: Sequence[str]) -> jax.Array:
    """Derives the keys of several named uses at once, [batch] -> [names, batch]: one loop to compile and to run."""
    numbers = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    return jax.vmap(lambda number: fold(keys, number))(numbers)


def spread(keys: jax.Array, rows: int) -> jax.Array:
    """Derives keys for all rows of samples that have several: [batch] -> [rows], those of a sample side by side."""
    if rows == len(keys):
        return keys
    each = jnp.arange(rows // len(keys))
    return jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(each))(keys).reshape(rows)


def bernoulli(keys: jax.Array, probability: float | jax.Array, shape: Sequence[int] = ()) -> jax.Array:
    """Returns bool [batch, *shape], true with the given probability."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability, tuple(shape)))(keys)


def uniform(keys: jax.Array, shape: Sequence[int] = ()) -> jax.Array:
    """Returns float32 [batch, *shape] in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, tuple(shape)))(keys)


def dropout(x: jax.Array, rate: float | jax.Array, keys: jax.Array | None, shape: Sequence[int] | None = None):
    """Zeroes entries of `x` [batch, ...] with probability `rate` and rescales the rest; no keys, no dropout.

    `shape` (without batch) broadcasts one draw, for example `(1, 1)` drops whole sequences (stochastic depth).
    """
    if keys is None:
        return x
    keep = bernoulli(keys, 1.0 - rate, x.shape[1:] if shape is None else shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))
