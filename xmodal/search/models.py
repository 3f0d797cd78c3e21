"""The model of an index: opened for making it, and found again for asking it."""

import dataclasses
from typing import Any

from data_pipelines.errors import DataError
from xmodal.inference import Model
from xmodal.stored.opening import open_stored, split, whole_name


@dataclasses.dataclass(frozen=True)
class Known:
    """A model, ready to embed, and what an index notes of it.

    Attributes:
      model: on the devices of this process.
      about: `origin`, `step`, `fingerprint`, `dim` and `compute`, as the manifest has them.
    """

    model: Model
    about: dict[str, Any]


def open_model(where: str, *, step: int | None = None, compute: str | None = None, batch_size: int = 256) -> Known:
    """Opens a model; arguments as for `xmodal.load`, and `compute` is its `dtype`."""
    stored = open_stored(where, step=step)
    fingerprint = stored.fingerprint()
    model = Model(stored, dtype=compute, batch_size=batch_size)
    about = dict(origin=whole_name(where), step=stored.step, fingerprint=fingerprint, dim=model.dim)
    return Known(model, about | dict(compute=compute or stored.config.model.dtype))


def model_of(about: dict[str, Any], where: str | None = None) -> Model:
    """Opens the model that an index was made with.

    Args:
      about: from the manifest.
      where: the model has moved there; None looks where it was.

    Raises:
      DataError: it is another model now, whose embeddings do not belong beside those of the index.
    """
    if where is None and not split(about["origin"])[1].exists():
        raise DataError(f"the model of this index is not at {about['origin']} any more; say where it is with --model")
    found = open_model(where or about["origin"], step=about["step"], compute=about["compute"], batch_size=8)
    if found.about["fingerprint"] != about["fingerprint"]:
        raise DataError(
            f"{found.about['origin']} is not the model that this index was made with (its fingerprint is "
            f"{found.about['fingerprint'][:12]}, not {about['fingerprint'][:12]}): name that one with --model, or "
            "embed the data again into another folder"
        )
    return found.model
