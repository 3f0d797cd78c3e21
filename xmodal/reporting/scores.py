"""What each query of an evaluation scored: figures are means of it, resampling it says how sure they are.

Stored beside a results file (`results.json` -> `results.scores.npz`), so that runs can be compared query by query: a
bit a query and figure where the values are hits and misses. No objects, nothing that reading could execute.
"""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.reporting.files import write_bytes

SUFFIX = ".scores.npz"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Scores:
    """The queries behind a group of figures, such as `retrieval/val/image_to_text`.

    Attributes:
      values: figure -> what each query scored, such as True for a hit; [queries].
      digest: tells whether two runs had the same queries in the same order; see `digest_of`.
      weights: figure -> what each query could have scored, for figures that are a ratio of sums (tokens that are
        right, of all tokens); [queries]. Figures that are not named count each query once.
      unit: which queries are resampled together, such as the captions of one image; int [queries], None: none.
      group: class of each query, int [queries]; for `macro`.
      macro: figure -> name of the values whose mean within each group it is the mean of, over groups.
    """

    values: dict[str, np.ndarray]
    digest: str = ""
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    unit: np.ndarray | None = None
    group: np.ndarray | None = None
    macro: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def figures(self) -> dict[str, float]:
        """Returns the figures: sums of values over sums of weights, and means over the groups of such."""
        found = {}
        for name, values in self.values.items():
            weights = self.weights.get(name)
            found[name] = float(np.sum(values) / (len(values) if weights is None else np.sum(weights)))
        for name, of in self.macro.items():
            counts = np.bincount(self.group)
            sums = np.bincount(self.group, self.values[of])
            found[name] = float(np.mean(sums[counts > 0] / counts[counts > 0]))
        return found


def digest_of(names: Iterable[str]) -> str:
    """Returns what stands for a list of queries, each named by a text."""
    state = hashlib.blake2b(digest_size=12)
    for name in names:
        state.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return state.hexdigest()


def flat_figures(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Returns the figures of all groups by their full names."""
    return {f"{group}/{name}": value for group, own in scores.items() for name, value in own.figures().items()}


def scores_path(results: str | os.PathLike) -> Path:
    """Returns where the scores of a results file lie."""
    return Path(results).with_suffix(SUFFIX)


def write_scores(results: str | os.PathLike, scores: Mapping[str, Scores]) -> None:
    """Writes the scores beside a results file; without any, removes those of former results."""
    path = scores_path(results)
    if not scores:
        path.unlink(missing_ok=True)
        return
    arrays, about = {}, {"format": _FORMAT, "groups": {}}
    for number, (group, own) in enumerate(scores.items()):
        columns = {("values", name): a for name, a in own.values.items()}
        columns |= {("weights", name): a for name, a in own.weights.items()}
        columns |= {(key, ""): a for key in ("unit", "group") if (a := getattr(own, key)) is not None}
        kept = []
        for column, ((key, name), a) in enumerate(columns.items()):
            a = np.asarray(a)
            kept.append([key, name, a.dtype == bool])
            arrays[f"{number}.{column}"] = np.packbits(a) if a.dtype == bool else _small(a)
        about["groups"][group] = dict(digest=own.digest, macro=own.macro, queries=len(own), columns=kept)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(json.dumps(about, ensure_ascii=False)), **arrays)
    write_bytes(path, buffer.getvalue())


def read_scores(results: str | os.PathLike) -> dict[str, Scores]:
    """Reads the scores beside a results file, empty if there are none.

    Raises:
      ValueError: the file is damaged; the message names it.
    """
    path = scores_path(results)
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, not {_FORMAT}")
            groups = about["groups"].items()
            return {group: _restored(file, number, own) for number, (group, own) in enumerate(groups)}
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it or restore it from a copy") from error


def _restored(file: Mapping[str, np.ndarray], number: int, about: Mapping[str, Any]) -> Scores:
    found: dict[str, Any] = {"values": {}, "weights": {}}
    for column, (key, name, packed) in enumerate(about["columns"]):
        a = file[f"{number}.{column}"]
        a = np.unpackbits(a, count=about["queries"]).astype(bool) if packed else a
        if a.shape != (about["queries"],):
            raise ValueError(f"{key} {name} has {a.shape} entries for {about['queries']} queries")
        if name:
            found[key][name] = a
        else:
            found[key] = a.astype(np.int64)
    return Scores(digest=about["digest"], macro=dict(about["macro"]), **found)


def _small(a: np.ndarray) -> np.ndarray:
    """Integers in as few bytes as hold them; floats in 4."""
    if not np.issubdtype(a.dtype, np.integer):
        return a.astype(np.float32)
    if a.size and (a.min() < 0 or a.max() >= 2**32):
        return a
    return a.astype(np.min_scalar_type(int(a.max(initial=0))))
