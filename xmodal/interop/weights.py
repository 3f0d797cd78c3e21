"""Weight files: safetensors alone, whole or in parts, read array by array with clear errors."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from xmodal.interop.tables import InteropError

DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
_READ = ("F64", "F32", "F16", "BF16")  # safetensors' names of the types of weights
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_PARTS = 1000
_NAME = 255  # bytes of a file's name, which is what file systems hold
_CONVERT = (
    "Files of this kind can run code when they are read, so they are not read here. Convert them once, with the "
    "library that wrote them: `model.save_pretrained(DIR, safe_serialization=True)` (transformers) or "
    "`safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')`"
)


class Weights(Mapping[str, np.ndarray]):
    """The arrays of one or several safetensors files by name; each is read when it is asked for."""

    def __init__(self, files: list[Path]):
        """Opens the files. Raises InteropError for one that is missing, truncated or not safetensors."""
        self._where: dict[str, Any] = {}
        for path in files:
            file = _open(path)
            self._where |= dict.fromkeys(file.keys(), (file, path))

    def __getitem__(self, name: str) -> np.ndarray:
        file, path = self._where[name]
        kind = file.get_slice(name).get_dtype()
        if kind not in _READ:
            raise InteropError(
                f"{path}: {name} has the type {kind}; read are {', '.join(_READ)}. Quantised weights mean nothing "
                "without their scales: save the model in one of these types"
            )
        try:
            return file.get_tensor(name)
        except safetensors.SafetensorError as error:
            raise InteropError(f"{path}: {name} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def open_weights(folder: Path, name: str = "model.safetensors") -> Weights:
    """Opens the weights of a folder: the file `name`, or the parts that `name`.index.json lists.

    Raises:
      InteropError: there are none, only pickled ones, or they are damaged.
    """
    if (folder / name).is_file():
        return Weights([folder / name])
    index = folder / f"{name}.index.json"
    if index.is_file():
        try:
            parts = sorted(set(map(_name, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InteropError(f"{index} is not a list of weight files: {error}") from None
        if not parts or len(parts) > _PARTS:
            raise InteropError(f"{index} names {len(parts):,} weight files; 1 to {_PARTS:,} are read")
        if unsafe := [part for part in parts if Path(part).name != part or "\0" in part]:
            raise InteropError(f"{index} names {unsafe[0]!r:.200}, which is outside its folder")
        if long := [part for part in parts if len(part.encode("utf-8", "surrogatepass")) > _NAME]:
            raise InteropError(
                f"{index} names a file of {len(long[0]):,} letters, {long[0][:40]!r}...: no disk has such"
            )
        return Weights([folder / part for part in parts])
    there = sorted(p.name for p in folder.iterdir() if p.is_file())
    if pickles := [other for other in there if other.endswith(_PICKLES)]:
        raise InteropError(f"{folder} has no {name}, only {', '.join(pickles)}. {_CONVERT}")
    raise InteropError(f"{folder} has no {name}; files there: {', '.join(there) or 'none'}")


def refuse_pickles(path: Path) -> None:
    """Raises an InteropError for a file that only a pickle reader could open."""
    if path.suffix in _PICKLES:
        raise InteropError(f"{path} is not a safetensors file. {_CONVERT}")


def write_weights(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays to a safetensors file."""
    path.touch()  # the library makes files that their owner alone can read; this one has the usual mode
    mode = path.stat().st_mode
    # The library writes memory as it lies: a transposed view would come back scrambled.
    save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, path, metadata=dict(metadata or {}))
    path.chmod(stat.S_IMODE(mode))


def cast(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Returns floating arrays in the type `dtype`, a key of `DTYPES`, and counters as they are."""
    whole = lambda a: np.issubdtype(a.dtype, np.integer)
    arrays = {name: np.asarray(a) for name, a in arrays.items()}
    return {name: a if whole(a) else a.astype(DTYPES[dtype]) for name, a in arrays.items()}


def _name(part: object) -> str:
    if not isinstance(part, str):
        raise TypeError(f"{part!r:.40} is not the name of a file")
    return part


def _open(path: Path) -> Any:
    refuse_pickles(path)
    if not path.is_file():
        raise InteropError(f"there is no weight file {path}")
    try:
        return safetensors.safe_open(os.fspath(path), framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise InteropError(
            f"{path} ({path.stat().st_size:,} bytes) is not a complete safetensors file: {error}. A download that was "
            "cut short looks like this; fetch it again"
        ) from None
