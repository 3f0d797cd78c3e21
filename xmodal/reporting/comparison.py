"""Runs and result files side by side: the same figures of each, and how sure their differences are.

Runs whose settings differ in the seed alone are repetitions of one experiment: together they have a mean and a
deviation, and a difference between two of them has no star, however clear it is.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from xmodal.reporting.bootstrap import LEVEL, Difference, differences
from xmodal.reporting.files import read_json
from xmodal.reporting.formatting import words
from xmodal.reporting.messages import Message, say
from xmodal.reporting.report import Run, read_run
from xmodal.reporting.results import FILE, Figure, figure_groups
from xmodal.reporting.scores import Scores, read_scores
from xmodal.reporting.settings import readable


class Compared(NamedTuple):
    """One of the runs.

    Attributes:
      name: that tells it from the others.
      run: what is known of it; of a result file only the results.
      scores: what the queries behind the results scored.
    """

    name: str
    run: Run
    scores: dict[str, Scores]


class Line(NamedTuple):
    """One figure of all runs.

    Attributes:
      path: such as ("retrieval", "unseen_vendor", "image_to_text").
      metric: such as "R@1".
      figures: of each run; None where it does not have it.
      differences: of the other runs to the first, with NaN for intervals where no scores of queries are stored; None
        where there is nothing to compare.
    """

    path: tuple[str, ...]
    metric: str
    figures: tuple[Figure | None, ...]
    differences: tuple[Difference | None, ...]

    @property
    def place(self) -> str:
        """The set, and what is asked of it, in words."""
        return " · ".join(map(words, self.path[1:]))


class Group(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
      name: what their names have in common.
      members: their numbers.
    """

    name: str
    members: tuple[int, ...]


class Spread(NamedTuple):
    """A figure over the seeds of a group: mean, standard deviation (NaN of one seed), number of seeds."""

    metric: str
    mean: float
    deviation: float
    count: int


class GroupLine(NamedTuple):
    """One figure of all groups; `differences` are those of the means to the first group, by Welch's t interval."""

    path: tuple[str, ...]
    metric: str
    spreads: tuple[Spread | None, ...]
    differences: tuple[Difference | None, ...]


def open_compared(places: Sequence[str | Path], names: Sequence[str] = ()) -> list[Compared]:
    """Opens runs to compare.

    Args:
      places: run folders, or result files as `eval --json` writes them. `RUN@STEP` is what a run measured at one step,
        0 before training; of a step there are no intervals.
      names: what they are called, one each; by default as the folders or files.

    Raises:
      ValueError: there is no such run, or it has no evaluation.
    """
    paths = [Path(place) for place in places]
    return [_open(path, name) for path, name in zip(paths, names or _names(paths))]


def _open(path: Path, name: str) -> Compared:
    folder, at, step = str(path).rpartition("@")
    if at and step.isdecimal() and not path.exists():
        return Compared(name, _at(Path(folder), int(step)), {})
    if path.is_dir():
        run, file = read_run(path), path / FILE
    elif path.is_file():
        results = read_json(path)
        run, file = Run(path, [], {}, results if isinstance(results, dict) else {}, {}, {}), path
    else:
        raise ValueError(f"there is no run folder and no result file {path}")
    if not any(isinstance(node, Mapping) for node in run.results.values()):
        raise ValueError(f"{path} holds no evaluation; `python -m xmodal eval --json FILE` makes one")
    scores = read_scores(file)
    for group, own in list(scores.items()):  # of a run that went on meanwhile they are those of former weights
        node: Any = run.results
        for part in group.split("/"):
            node = node.get(part, {}) if isinstance(node, Mapping) else {}
        if any(not math.isclose(node.get(key, math.nan), value, abs_tol=1e-6) for key, value in own.figures().items()):
            del scores[group]
    return Compared(name, run, scores)


def _at(folder: Path, step: int) -> Run:
    """Returns a run with the results of one step in place of the last ones."""
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}")
    run = read_run(folder)
    if not (results := run.at(step)):
        known = ", ".join(map(str, run.evaluated)) or "none"
        raise ValueError(f"{folder} evaluated nothing at step {step}; it did at {known}")
    return run._replace(results=results)


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().with_suffix("" if path.suffix == ".json" else path.suffix).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(own[-1:])} ({i})" for i, own in enumerate(parts, 1)]


def lines(runs: Sequence[Compared], method: str = "bca") -> list[Line]:
    """Returns every figure that a run has, in the order of the results; counts that all runs share are left out."""
    tables = [_figures(run.run.results) for run in runs]
    found: dict[str, list[dict[str, Difference]]] = {}
    keys = list(dict.fromkeys(key for table in tables for key in table))
    repeats = next((group.members for group in seed_groups(runs) if 0 in group.members), ())
    result = []
    for path, metric in sorted(keys, key=lambda key: _order(keys, key)):
        figures = tuple(table.get((path, metric)) for table in tables)
        if _shared_count(metric, figures):
            continue
        group = "/".join(path)
        if group not in found:
            own = [run.scores.get(group) for run in runs]
            both = lambda a, b: differences(a, b, method) if a is not None and b is not None else {}
            found[group] = [both(own[0], other) for other in own[1:]]
        apart = [own.get(metric) or _plain(figures[0], other) for own, other in zip(found[group], figures[1:])]
        apart = [d and d._replace(chance=number in repeats) for number, d in enumerate(apart, 1)]
        result.append(Line(path, metric, figures, tuple(apart)))
    return result


def comparable(found: Sequence[Line]) -> list[Line]:
    """Returns the lines that at least two of the runs have."""
    return [line for line in found if sum(figure is not None for figure in line.figures) > 1]


def notes(runs: Sequence[Compared], found: Sequence[Line]) -> list[Message]:
    """Says which runs have no evaluation in common with the first, and how many figures a run alone has."""
    told = []
    for number, run in enumerate(runs[1:], 1):
        if not any(line.figures[0] and line.figures[number] for line in found):
            told.append(say("{name} has no evaluation in common with {first}.", name=run.name, first=runs[0].name))
    for number, run in enumerate(runs):
        alone = [line for line in found if line.figures[number] and not comparable([line])]
        if alone:
            told.append(say("Figures that {name} alone has and that are left out: {count}.", name=run.name,
                            count=len(alone)))  # fmt: skip
    return told


def seed_groups(runs: Sequence[Compared]) -> list[Group]:
    """Returns the runs by what they are repetitions of, in their order; one without a config stands alone."""
    found: dict[str, dict[Any, int]] = {}
    for number, run in enumerate(runs):
        config = {name: value for name, value in run.run.config.items() if name != "seed"}
        key, seed = json.dumps(config, sort_keys=True), run.run.config.get("seed")
        if not config or seed in found.get(key, ()):  # the same run evaluated twice is no repetition
            key = f"alone {number}"
        found.setdefault(key, {})[seed] = number
    members = [tuple(own.values()) for own in found.values()]
    names = [_common([runs[i].name for i in own]) for own in members]
    clash = len(set(names)) < len(names)
    return [Group(f"{name} ({runs[own[0]].name})" if clash else name, own) for name, own in zip(names, members)]


def _common(names: Sequence[str]) -> str:
    """What names begin with: `clip_seed0` and `clip_seed1` are `clip`."""
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names))
    common = "".join(letters[0] for letters in alike)
    return common.rstrip("0123456789-_./ ").removesuffix("seed").rstrip("-_./ ") or names[0]


def group_lines(groups: Sequence[Group], found: Sequence[Line]) -> list[GroupLine]:
    """Returns every figure of groups of runs, empty where each group is a single run.

    The interval of a difference is over seeds: it says how sure it is that the one recipe is better than the other, and
    needs two seeds of each.
    """
    if all(len(group.members) == 1 for group in groups):
        return []
    result = []
    for line in found:
        values = [[line.figures[i].value for i in group.members if line.figures[i]] for group in groups]
        spreads = [_spread(line.metric, own) for own in values]
        apart = [_welch(values[0], own) for own in values[1:]]
        result.append(GroupLine(line.path, line.metric, tuple(spreads), tuple(apart)))
    return result


def _spread(metric: str, values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(metric, statistics.fmean(values), deviation, len(values))


def _welch(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    if not first or not second:
        return None
    value, low, high = statistics.fmean(second) - statistics.fmean(first), math.nan, math.nan
    if min(len(first), len(second)) > 1 and max(map(statistics.pvariance, (first, second))) > 1e-24:
        low, high = stats.ttest_ind(second, first, equal_var=False).confidence_interval(LEVEL)
    return Difference(value, float(low), float(high), False)


def _order(keys: Sequence[tuple], key: tuple) -> tuple[int, int, int]:
    """Evaluators, sets and figures in the order in which they first appear."""
    first = lambda match: next(i for i, other in enumerate(keys) if match(other))
    (evaluator, *_), _ = key
    return first(lambda k: k[0][0] == evaluator), first(lambda k: k[0] == key[0]), first(lambda k: k == key)


def _figures(results: Mapping[str, Any]) -> dict[tuple[tuple[str, ...], str], Figure]:
    found = {}
    for evaluator, tree in results.items():
        if isinstance(tree, Mapping):
            for path, figures, _ in figure_groups(tree):
                found |= {((evaluator, *path), name): figure for name, figure in figures.items()}
    return found


def _shared_count(metric: str, figures: Sequence[Figure | None]) -> bool:
    """Whether it is a number of things (images, classes) that is the same for all runs."""
    counts = metric.endswith("s") and not metric.endswith("ss")
    return counts and len({figure.value if figure else None for figure in figures}) == 1


def _plain(first: Figure | None, other: Figure | None) -> Difference | None:
    if first is None or other is None:
        return None
    return Difference(other.value - first.value, math.nan, math.nan, False)


def settings(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Returns the settings that differ between the runs that have a config: (key, text of each run, "" for none).

    A section that some of the runs lack is one setting, and not one for each of its keys.
    """
    configs = [run.run.config for run in runs]
    known = [number for number, config in enumerate(configs) if config]
    return [
        (key, [readable(value) if value is not _ABSENT else "" for value in values])
        for key, values in _different(configs, known, "")
    ]


_ABSENT = object()


def _different(trees: Sequence[Any], known: Sequence[int], prefix: str) -> Iterator[tuple[str, list[Any]]]:
    names = dict.fromkeys(name for number in known for name in trees[number])
    for name in names:
        values = [tree.get(name, _ABSENT) if isinstance(tree, Mapping) else _ABSENT for tree in trees]
        own = [values[number] for number in known]
        if all(value == own[0] for value in own[1:]):
            continue
        if all(isinstance(value, Mapping) for value in own):
            yield from _different(values, known, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values


def document(runs: Sequence[Compared], found: Sequence[Line]) -> dict[str, Any]:
    """Returns the comparison as JSON has it."""
    head = lambda run: {key: run.run.results[key] for key in ("step", "samples", "model") if key in run.run.results}
    return {
        "runs": [{"name": run.name, "path": str(run.run.folder)} | head(run) for run in runs],
        "figures": [dict(_entry(line, runs)) for line in found],
        "groups": [dict(name=group.name, runs=[runs[i].name for i in group.members]) for group in seed_groups(runs)],
        "group_figures": [_group_entry(line) for line in group_lines(seed_groups(runs), found)],
    }


def _group_entry(line: GroupLine) -> dict[str, Any]:
    known = lambda d: {} if math.isnan(d.low) else {"ci95": [d.low, d.high]}
    return {
        "name": "/".join((*line.path, line.metric)),
        "means": [spread and spread.mean for spread in line.spreads],
        "deviations": [spread and spread.deviation for spread in line.spreads],
        "to_first": [d and {"value": d.value} | known(d) for d in line.differences],
    }


def _entry(line: Line, runs: Sequence[Compared]) -> Iterator[tuple[str, Any]]:
    yield "name", "/".join((*line.path, line.metric))
    yield "values", [figure and figure.value for figure in line.figures]
    yield "ci95", [figure and figure.interval for figure in line.figures]
    yield "differences", [_difference(run.name, apart) for run, apart in zip(runs[1:], line.differences) if apart]


def _difference(name: str, apart: Difference) -> dict[str, Any]:
    known = {} if math.isnan(apart.low) else {"ci95": [apart.low, apart.high], "paired": apart.paired}
    return {"run": name, "to_first": apart.value} | known
