"""Classes by name, prompts around their names, and which class a sample has; from the config or from a file.

A file is plain text with one name or prompt a line, or JSON: a list, CLIP_benchmark's `{dataset: [...]}` or
`{dataset: {"classnames": [...], "templates": [...]}}`, and for prompts also `{class: [prompts]}` (as in CuPL), alone or
in a `{dataset: ...}`. The data set is named behind a colon, `classnames.json:imagenet1k`, where there are several.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.io.paths import find_file
from data_pipelines.modalities.label import MEMBER, Label
from data_pipelines.stream.evalset import EvalSet, texts_of
from xmodal.evaluation.base import EvalContext, Evaluator

PLACE = re.compile(r"\{(?:label|c)?\}")  # where the name goes: {label}, {c} (CLIP_benchmark), {} (OpenAI)
SORTED = "sorted"
_ANY = 2**31 - 1  # classes, where only the ids are known


def fill(prompt: str, name: str) -> str:
    """Returns a prompt with the name of a class at its places."""
    return PLACE.sub(lambda _: name, prompt)


def has_place(prompt: str) -> bool:
    """Whether a class name has a place in a prompt."""
    return PLACE.search(prompt) is not None


def read_names(given: str | Sequence[str], option: str) -> list[str]:
    """Returns names that an option lists, or those of the file that it names.

    Raises:
      DataError: there is no such file, or it holds something else.
    """
    found = _read(given, option, "classnames") if isinstance(given, str) else list(given)
    if isinstance(found, Mapping):
        raise DataError(f"{option}: {given} holds prompts by class, and a list of names is wanted")
    return found


def read_prompts(given: str | Sequence[str], classes: Sequence[str], option: str) -> list[list[str]]:
    """Returns the prompts of each class, filled in.

    Raises:
      DataError: a prompt has no place for the name, or a class has no prompts.
    """
    found = _read(given, option, "templates") if isinstance(given, str) else list(given)
    if isinstance(found, Mapping):
        if missing := [name for name in classes if not found.get(name)]:
            raise DataError(
                f"{option}: {given} has no prompts of the class {missing[0]!r}{did_you_mean(missing[0], found)}; it "
                f"has {_several(found)}. A data set in it is named behind a colon: {given}:NAME"
            )
        return [[fill(prompt, name) for prompt in found[name]] for name in classes]
    if bad := [prompt for prompt in found if not has_place(prompt)]:
        raise DataError(f"{option}: {bad[0]!r} has no place for the class name, {{label}}, {{c}} or {{}}")
    return [[fill(prompt, name) for prompt in found] for name in classes]


def ensemble(embeddings: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Returns unit vectors of classes: the means of their prompts' unit vectors (Radford et al. 2021, section 3.1.4).

    Args:
      embeddings: of all prompts, those of a class side by side, [prompts, dim].
      counts: prompts of each class, all of which have some.
    """
    starts = np.cumsum([0, *counts[:-1]])
    means = np.add.reduceat(embeddings, starts, axis=0) / np.asarray(counts, np.float32)[:, None]
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def open_labelled(
    evaluator: Evaluator, name: str, context: EvalContext, field: str, **data: Any
) -> tuple[EvalSet, list[str]]:
    """Opens held-out samples and returns them with the content of a field of each; "" where it has none.

    Samples need no caption; those of tars may have their class as the `cls` member. For `data` see `Evaluator.open`.
    """
    label = Label(name="label", field=MEMBER, count=_ANY) if field == MEMBER else None
    dataset = evaluator.open(name, context, instead=field, label=label, **data)
    return dataset, [value.strip() for value in texts_of(dataset.records, field)]


def number(values: Sequence[str], classes: Sequence[str], labels: str | Sequence[str], where: str) -> np.ndarray:
    """Returns the class of each sample as a number, int [samples]; -1 for one of another class.

    Args:
      values: what the samples say their class is.
      classes: names of the classes.
      labels: what the samples call the classes, in their order; "sorted": the sorted values are that; (): the names
        themselves, or else their numbers from 0.
      where: what the data are called in messages.

    Raises:
      DataError: no sample has one of the classes, or what they are called is not unique.
    """
    if labels == SORTED:
        labels = sorted(set(values) - {""})
    elif labels:
        labels = read_names(labels, "labels")
    if labels and len(labels) != len(classes):
        raise DataError(
            f"labels: {len(labels)} of them for {len(classes)} classes: {_several(labels)} for {_several(classes)}"
        )
    names = list(labels or classes)
    ids = {name: i for i, name in enumerate(names)}
    if not labels and not set(values) & set(names) and all(value.isdecimal() for value in values if value):
        ids = {str(i): i for i in range(len(classes))}  # an integer may have leading zeros
        values = [str(int(value)) if value else "" for value in values]
    elif len(ids) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{'labels' if labels else 'classes'}: {twice!r} occurs twice, so it does not say which class a sample "
            "has; give the values of the field in the order of the classes as `labels`"
        )
    found = np.array([ids.get(value, -1) for value in values])
    if not np.any(found >= 0):
        raise DataError(f"no sample of {where} has one of the classes {_several(names)}; theirs are {_several(values)}")
    return found


def _read(given: str, option: str, key: str) -> list[str] | dict[str, list[str]]:
    name, colon, dataset = given.partition(".json:")
    try:
        path = find_file(name + ".json" if colon else given)
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except (ValueError, OSError) as error:  # a DataError is a ValueError
        raise DataError(f"{option}: {error}") from None
    if colon:
        if not isinstance(found, Mapping) or dataset not in found:
            known = found if isinstance(found, Mapping) else ()
            raise DataError(f"{option}: {path} has no {dataset!r}{did_you_mean(dataset, known)}; {_several(known)}")
        found = found[dataset]
    elif isinstance(found, Mapping) and len(found) == 1:
        (found,) = found.values()
    if isinstance(found, Mapping) and key in found:
        found = found[key]
    texts = lambda a: isinstance(a, list) and bool(a) and all(isinstance(text, str) for text in a)
    if texts(found) or (isinstance(found, Mapping) and all(map(texts, found.values()))):
        return found
    keys = f"; it has {_several(found)}, of which one is named behind a colon" if isinstance(found, Mapping) else ""
    raise DataError(f"{option}: {given} holds no list of texts{keys}")


def _several(names: Any) -> str:
    shown = [repr(name) for name in dict.fromkeys(names)]
    return ", ".join(shown[:5]) + (f", ... ({len(shown)})" if len(shown) > 5 else "") if shown else "nothing"
