"""The device mesh, and how a batch lies on it.

Three axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits matrices. The
batch axis of every array is therefore cut into `data * fsdp` shards and copied along `tensor`.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from data_pipelines.errors import DataError
from xmodal.config import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: Mapping, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of `config.mesh`.

    Args:
      config: sizes of `data`, `fsdp` and `tensor`; one of them may be -1 and takes the remaining devices.
      devices: devices of all processes; default all that JAX has.

    Returns:
      A mesh with automatic axes (`AxisType.Auto`; JAX's own default, Explicit, types arrays by sharding).

    Raises:
      ConfigError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = {axis: int(config[axis]) for axis in MESH_AXES}, len(devices)
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if any(size != -1 and size < 1 for size in sizes.values()):
        raise ConfigError(f"{given}: an axis has at least 1 device, or -1 for all that are left")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"{given}: only one axis can be -1 (take what is left)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    elif free or fixed != count:
        advice = f"must divide {count}" if free else f"must be {count}, or set one axis to -1"
        raise ConfigError(f"{given}: the fixed axes take {fixed} devices and there are {count}; "
                          f"their product {advice}")  # fmt: skip
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays with a leading batch axis."""
    return NamedSharding(mesh, jax.P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, jax.P())


def num_batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts the batch axis is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises a ConfigError unless every micro-batch can be cut evenly over the mesh."""
    shards = num_batch_shards(mesh)
    if accumulation < 1:
        raise ConfigError(f"accumulation={accumulation}: a step has at least 1 micro-batch")
    unit = accumulation * shards
    if batch_size < 1 or batch_size % unit:
        below, above = batch_size // unit * unit, (max(batch_size, 0) // unit + 1) * unit
        nearest = f"{below} or {above}" if below > 0 else str(above)
        raise ConfigError(
            f"batch_size={batch_size} cannot be split into accumulation={accumulation} micro-batches over "
            f"{shards} batch shards (mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}): "
            f"it must be a multiple of {unit}; the nearest are {nearest}"
        )


def process_shard(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns (index, count): this process loads part `index` of `count` equal parts of each global batch.

    Processes along the `tensor` axis hold the same rows, so they get the same index and must load the same
    samples: nothing in JAX notices when they do not (`assert_same_rows` does).

    Args:
      mesh: over the devices of all processes.
      batch_size: rows of the global batch.
    """
    indices = batch_sharding(mesh).devices_indices_map((batch_size,))
    rows: dict[int, set[tuple[int, int]]] = {}
    for device, (part,) in indices.items():
        start, stop, _ = part.indices(batch_size)
        rows.setdefault(device.process_index, set()).add((start, stop))
    return group_rows(rows, jax.process_index())


def group_rows(rows: Mapping[int, set[tuple[int, int]]], process: int) -> tuple[int, int]:
    """Returns (index, count) of `process` among the distinct sets of rows that processes hold.

    Args:
      rows: process -> {(first row, end)} of its devices.
      process: whose index is wanted.

    Raises:
      ConfigError: the processes' rows overlap in part, so no equal split exists.
    """
    groups = sorted({tuple(sorted(held)) for held in rows.values()})
    if len({len(group) for group in groups}) > 1 or len({r for g in groups for r in g}) != sum(map(len, groups)):
        raise ConfigError(
            "on this mesh some processes share a part of their rows of the batch, so the data cannot be "
            "split evenly between them. Choose mesh.tensor so that it divides the devices of a process, or "
            f"is a multiple of them. Rows by process: { {p: sorted(held) for p, held in rows.items()} }"
        )
    return groups.index(tuple(sorted(rows[process]))), len(groups)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns each process's rows into global arrays.

    Args:
      batch: name -> [local rows, ...], the part that `process_shard` names.
      mesh: where to put them.

    Returns:
      name -> [global rows, ...], sharded over the batch axes.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def assert_same_rows(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> None:
    """Checks that processes which hold the same rows of the batch loaded the same samples.

    All processes must call it; it costs one small exchange, so call it for the first batch and then rarely.

    Raises:
      RuntimeError: naming the processes that disagree.
    """
    if jax.process_count() == 1:
        return
    index, _ = process_shard(mesh, batch_size)
    mine = np.array([index, batch_fingerprint(batch)], np.uint32)
    check_fingerprints(np.asarray(multihost_utils.process_allgather(mine)))


def assert_same_data(what: str, fingerprint: str) -> None:
    """Checks that all processes opened the same data: each reads only its own rows, so nothing else would show.

    All processes must call it.

    Args:
      what: was opened, such as "data.sources".
      fingerprint: of the data and their order, 16 hexadecimal digits.

    Raises:
      DataError: naming the processes whose data are others than those of the first.
    """
    if jax.process_count() > 1:
        mine = np.frombuffer(bytes.fromhex(fingerprint), np.uint32)
        check_data(what, np.asarray(multihost_utils.process_allgather(mine)))


def check_data(what: str, table: np.ndarray) -> None:
    """Compares fingerprints of data; `table` is [processes, words]."""
    others = np.flatnonzero((table != table[0]).any(axis=1)).tolist()
    if others:
        raise DataError(
            f"{what}: process{'es' * (len(others) > 1)} {', '.join(map(str, others))} found other data than process 0, "
            "so that samples would be repeated and left out without any other sign. All processes must see the same "
            "files: look for copies that are old or not complete, and for images that are missing on some machines"
        )


def batch_fingerprint(batch: Mapping[str, np.ndarray]) -> int:
    """Returns a 32-bit checksum of the names, shapes and values of a host batch."""
    checksum = 0
    for name in sorted(batch):
        rows = np.ascontiguousarray(batch[name])
        checksum = zlib.crc32(f"{name} {rows.dtype} {rows.shape}".encode(), checksum)
        checksum = zlib.crc32(rows.view(np.uint8).data if rows.size else b"", checksum)
    return checksum


def check_fingerprints(table: np.ndarray) -> None:
    """Compares fingerprints; `table` is [processes, 2] of (part of the batch, fingerprint)."""
    for index in np.unique(table[:, 0]):
        processes = np.flatnonzero(table[:, 0] == index)
        if len(set(table[processes, 1])) > 1:
            raise RuntimeError(
                f"processes {processes.tolist()} hold the same rows of the batch (part {index}) but loaded "
                "different samples, which would train on inconsistent data without any other sign. They must "
                "see the same files, config and code."
            )
