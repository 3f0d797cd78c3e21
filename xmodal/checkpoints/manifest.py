"""What a checkpoint says about its arrays: names, shapes, types and checksums, and how two such lists differ."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def describe(arrays: Mapping[str, Any], sums: Mapping[str, int] | None = None) -> dict[str, dict]:
    """Returns {path: {"shape", "dtype"[, "checksum"]}} of arrays or of what stands for them."""
    out = {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()}
    for name, value in (sums or {}).items():
        out[name]["checksum"] = value
    return out


def compare(saved: Mapping[str, Mapping], wanted: Mapping[str, Mapping]) -> str:
    """Returns the differences between two descriptions, one a line; "" when there are none."""
    show = lambda entry: f"{entry['dtype']}[{', '.join(map(str, entry['shape']))}]"
    lines = [
        f"  {name}: saved {show(saved[name])}, this config wants {show(wanted[name])}"
        for name in saved
        if name in wanted and show(saved[name]) != show(wanted[name])
    ]
    if len(lines) > 8:
        lines[8:] = [f"  and {len(lines) - 8} more of other shape or type"]
    for label, one, other in (("checkpoint", saved, wanted), ("config", wanted, saved)):
        if alone := [name for name in one if name not in other]:
            lines.append(f"  only in the {label}: {some_of(alone)}")
    return "\n".join(lines)


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """Returns the sum of every array's 32-bit words (of its elements, when smaller), modulo 2**32.

    A sum does not depend on how the array is sharded, needs no compiled program, and finds every flipped bit.
    """
    sums = np.array([_local_sum(x) for x in arrays.values()], np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    return dict(zip(arrays, sums.tolist()))


def _local_sum(x: jax.Array) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    total = 0
    for shard in x.addressable_shards:
        if shard.replica_id == 0:  # each element once over all processes
            data = np.ascontiguousarray(shard.data)
            words = data.reshape(-1).view({1: np.uint8, 2: np.uint16}.get(data.dtype.itemsize, np.uint32))
            total += int(words.sum(dtype=np.uint32))
    return total % 2**32


def seal(meta: Mapping) -> dict:
    """Returns the document as JSON would give it back, with a checksum of the rest."""
    rest = {key: value for key, value in meta.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, allow_nan=False)
    return json.loads(text) | {"checksum": zlib.crc32(text.encode())}


def nest(arrays: Mapping[str, Any]) -> dict:
    """Turns {"a/b": x} into {"a": {"b": x}}: the layout on disk does not depend on our classes."""
    tree: dict = {}
    for name, x in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = x
    return tree


def some_of(names: list[str]) -> str:
    """Returns the first few names and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
