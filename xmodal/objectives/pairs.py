"""Similarities of all pairs of a global batch, one block at a time around a ring of devices.

Each device keeps its rows (one modality) while the columns (the other) travel. A block of logits lives only while it
is being reduced: it is computed under `jax.checkpoint`, in column chunks of fixed size, so memory per device grows
linearly with the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xmodal.distributed.mesh import BATCH_AXES

CHUNK = 512  # columns of a block of logits held at once


def positives(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Which pairs belong together: those that share any of their identities.

    Args:
      rows: uint32 [rows, kinds, 2], 64-bit identities (such as key and caption).
      columns: uint32 [columns, kinds, 2].

    Returns:
      bool [rows, columns].
    """
    return jnp.any(jnp.all(rows[:, None] == columns[None], axis=-1), axis=-1)


def targets(rows: tuple[jax.Array, ...], columns: jax.Array) -> jax.Array:
    """How much pairs belong together: 1 for positives, 0 for others, and between them where images are mixed.

    Args:
      rows: identities [rows, kinds, 2]; of mixed images also the identities of the other image [rows, kinds, 2] and
        the share of the own one [rows].
      columns: identities [columns, kinds, 2].

    Returns:
      float32 [rows, columns].
    """
    own = positives(rows[0], columns).astype(jnp.float32)
    if len(rows) == 1:
        return own
    _, other, share = rows
    return share[:, None] * own + (1 - share[:, None]) * positives(other, columns)


def identities(batch: dict, multi_positive: bool) -> jax.Array:
    """Returns uint32 [batch, kinds, 2]: key and captions, or the row number alone when duplicates do not count.

    Samples without any text (sound and images) have their key alone.
    """
    if multi_positive and "caption_id" not in batch:
        return batch["key_id"][:, None]
    if multi_positive:
        captions = batch["caption_id"].reshape(batch["key_id"].shape[0], -1, 2)
        return jnp.concatenate([batch["key_id"][:, None], captions], axis=1)
    number = jnp.arange(batch["key_id"].shape[0], dtype=jnp.uint32)
    return jnp.stack([number, jnp.zeros_like(number)], axis=-1)[:, None]


def caption_identities(ids: jax.Array, captions: int) -> jax.Array:
    """Returns uint32 [batch, captions, kinds, 2]: identities of each caption, kind by kind as those of the samples.

    Args:
      ids: from `identities`.
      captions: of a sample.
    """
    of_all = jnp.broadcast_to(ids[:, None], (len(ids), captions, *ids.shape[1:]))
    if captions == 1 or ids.shape[1] == 1:
        return of_all
    own = jnp.broadcast_to(ids[:, 1:, None], (len(ids), captions, captions, 2))  # its text, as any caption of another
    return jnp.concatenate([of_all[:, :, :1], own], axis=2)


def zero_rows(features) -> jax.Array:
    """Returns one float32 zero for each row of features [n, ...], varying over the ring's devices as they do."""
    leaf = jax.lax.stop_gradient(jax.tree.leaves(features)[0])
    return leaf.reshape(leaf.shape[0], -1)[:, 0] * 0.0


def chunk_size(columns: int, most: int = 0) -> int:
    """Returns the largest divisor of `columns` that is at most `most`, or CHUNK."""
    return next(c for c in range(min(columns, most or CHUNK), 0, -1) if columns % c == 0)


def ring(
    mesh: jax.sharding.Mesh,
    block: Callable,
    finish: Callable,
    start: Callable,
    rows: tuple[jax.Array, ...],
    columns: tuple[jax.Array, ...],
    params: tuple[jax.Array, ...],
    chunk: int = 0,
) -> tuple[jax.Array, ...]:
    """Reduces all (row, column) blocks of a global batch.

    Args:
      mesh: rows and columns are split over its batch axes; other axes stay automatic.
      block: (rows, columns, row_state, column_state, params) -> (row_state, column_state).
      finish: (row_state, column_state, rows, columns) of a device's own rows and columns -> tuple of sums over them.
      start: (what stands first among the rows, or columns) -> their initial state.
      rows: arrays [batch, ...] or trees of them, the embeddings first.
      columns: the same of the columns.
      params: the same on all devices: scalars, weights.
      chunk: columns of a block held at once; 0: CHUNK.

    Returns:
      The sums of `finish` over the whole batch.
    """

    def local(rows, columns, params):
        devices = jax.lax.axis_size(BATCH_AXES)
        shift = [(i, (i + 1) % devices) for i in range(devices)]
        size = chunk_size(jax.tree.leaves(columns)[0].shape[0], chunk)
        cut = lambda a: a.reshape(-1, size, *a.shape[1:])
        join = lambda a: a.reshape(-1, *a.shape[2:])

        @jax.checkpoint
        def fold(row_state, travelling):
            part, state = travelling
            return block(rows, part, row_state, state, params)

        @jax.checkpoint
        def hop(carry, _):
            row_state, columns, column_state = carry
            row_state, column_state = jax.lax.scan(fold, row_state, jax.tree.map(cut, (columns, column_state)))
            column_state = jax.tree.map(join, column_state)
            columns, column_state = jax.tree.map(
                lambda a: jax.lax.ppermute(a, BATCH_AXES, shift), (columns, column_state)
            )
            return (row_state, columns, column_state), None

        carry = (start(rows[0]), columns, start(columns[0]))
        (row_state, _, column_state), _ = jax.lax.scan(hop, carry, length=devices)
        return jax.tree.map(lambda a: jax.lax.psum(a, BATCH_AXES), finish(row_state, column_state, rows, columns))

    split = jax.P(BATCH_AXES)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(split, split, jax.P()), out_specs=jax.P(), axis_names=set(BATCH_AXES)
    )(rows, columns, params)
