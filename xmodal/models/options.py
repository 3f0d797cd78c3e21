"""What an option of a spec changes, said once on its field and read by all that compare models.

`metadata=TRAINING` marks an option that matters in training alone or for speed: trained weights compute the same with
any value of it. `metadata=SHAPES` marks one whose meaning is in the parameters themselves, in which of them there are
and how large they are, so that comparing these is enough. All other options change what weights compute.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

TRAINING, SHAPES = {"changes": "training"}, {"changes": "shapes"}


def training(cls: type) -> tuple[str, ...]:
    """Names of the fields of a spec that matter in training alone: no other library has to express them."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.metadata == TRAINING)


def free_paths(spec: Any, prefix: str) -> Iterator[str]:
    """Yields the paths of a spec's values, such as "image/trunk/drop_path", that need not agree between two models.

    Args:
      spec: a dataclass, of dataclasses, tuples and plain values.
      prefix: path of the spec.
    """
    for path, free in _paths(spec, prefix, False):
        if free:
            yield path


def _paths(value: Any, path: str, free: bool) -> Iterator[tuple[str, bool]]:
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _paths(getattr(value, f.name), f"{path}/{f.name}", free or "changes" in f.metadata)
    elif isinstance(value, tuple | list | Mapping):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _paths(inner, f"{path}/{key}", free)
    else:
        yield path, free
