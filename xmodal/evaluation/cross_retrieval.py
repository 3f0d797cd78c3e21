"""Retrieval between what any two towers embed, beside what a single number of the samples would reach."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.stream.evalset import EvalSet, texts_of
from xmodal.evaluation import ranking
from xmodal.evaluation.base import BetweenTowers, EvalContext, EvalResult
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.retrieval import number_of, ranks, recalls
from xmodal.reporting.scores import Scores


@dataclasses.dataclass(frozen=True)
class CrossRetrieval(BetweenTowers):
    """Ranks what the second tower embeds for each sample of the first one, and the other way round.

    Attributes:
      between: two towers. The first embeds what files hold; a second one of texts embeds the first caption.
      group: json field; samples with the same value are right for one another. "": each sample for itself alone.
      item: json field; samples with the same value show the second tower the same, which is one candidate: the first
        sample that has it. "": each sample is a candidate.
      by: json field; recall is also given per value of it, among the same candidates.
      control: json fields with a number, of the queries and of the candidates, such as ("seconds", "usual_seconds").
        Recall is also given for candidates ranked by how close their number is: what a model is worth is what it
        reaches beyond that.
    """

    group: str = ""
    item: str = ""
    by: str = ""
    control: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if len(self.control) not in (0, 2):
            raise ValueError(f"control={self.control!r}: give two fields, of the queries and of the candidates")

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset = self.open(name, context)
        plan = self._plan(dataset, written=context.input_of(self.between[1]) in context.inputs.texts)
        queries, candidates = (self._embedder(context, tower) for tower in self.between)

        def run(params: Mapping) -> EvalResult:
            first, second = queries(params, dataset), candidates(params, dataset)[plan.items]
            return self._result(f"cross_retrieval/{name}", plan, first, second)

        return run

    def _plan(self, dataset: EvalSet, written: bool) -> "_Plan":
        """Returns what is ranked; `written`: the candidates are texts."""
        items = np.arange(len(dataset))
        if self.item:
            items = np.sort(np.unique(_values(dataset, self.item, "item"), return_index=True)[1])
        group = self.group or self.item
        group = np.array(_values(dataset, group, "group")) if group else np.arange(len(dataset))
        right = group[:, None] == group[items]
        by = np.array(_values(dataset, self.by, "by")) if self.by else None
        columns = number_of([dataset.records[i].captions[0] for i in items]) if written else None
        return _Plan(np.array(dataset.names), items, right, by, columns, self._controlled(dataset, items, right))

    def _result(self, prefix: str, plan: "_Plan", first: np.ndarray, second: np.ndarray) -> EvalResult:
        there, back = (f"{a}_to_{b}" for a, b in (self.between, self.between[::-1]))
        found = {there: ranks(first, second, np.argwhere(plan.right), plan.columns)}
        if plan.controlled is not None:
            found[f"{there}_by_{self.control[0]}"] = plan.controlled
        groups = {}
        for group, rank in found.items():
            groups[group] = plan.recalls(rank, slice(None))
            for value in [] if plan.by is None else sorted(set(plan.by) - {""}):
                groups[f"{group}_of_{value}"] = plan.recalls(rank, plan.by == value)
        rank = ranks(second, first, np.argwhere(plan.right.T))
        names = plan.names[plan.items]
        groups[back] = recalls(rank, len(first), plan.right.sum(axis=0), names, unit=plan.items)
        metrics = {f"{prefix}/queries": float(len(first)), f"{prefix}/candidates": float(len(second))}
        for group, (values, _) in groups.items():
            metrics |= {f"{prefix}/{group}/{key}": value for key, value in values.items()}
        return EvalResult(metrics, scores={f"{prefix}/{group}": scores for group, (_, scores) in groups.items()})

    def _embedder(self, context: EvalContext, tower: str) -> Callable[[Mapping, EvalSet], np.ndarray]:
        """Returns (params, dataset) -> unit embeddings [samples, dim] of what a tower reads."""
        embedder = Embedder(context, self.batch_size, (tower, tower))
        if context.input_of(tower) in context.inputs.texts:
            return lambda params, dataset: embedder.texts(params, [record.captions[0] for record in dataset.records])
        return embedder.samples

    def _controlled(self, dataset: EvalSet, items: np.ndarray, right: np.ndarray) -> np.ndarray | None:
        """Returns the ranks of the first right candidates by the numbers of `control`; None without."""
        if not self.control:
            return None
        try:
            asked, listed = (np.array(_values(dataset, field, "control"), np.float64) for field in self.control)
        except ValueError:
            raise DataError(
                f"control: a field of {self.control} is no number in every sample of {dataset.where}"
            ) from None
        return ranking.ranks(-np.abs(asked[:, None] - listed[items]), right, np)


class _Plan(NamedTuple):
    """What is ranked.

    Attributes:
      names: of the samples.
      items: samples whose input of the second tower is a candidate, int [candidates].
      right: bool [samples, candidates].
      by: value of each sample, or None.
      columns: as `retrieval.ranks` has them: equal texts tie.
      controlled: ranks [samples] by the numbers of `control`, or None.
    """

    names: np.ndarray
    items: np.ndarray
    right: np.ndarray
    by: np.ndarray | None
    columns: np.ndarray | None
    controlled: np.ndarray | None

    def recalls(self, rank: np.ndarray, rows: slice | np.ndarray) -> tuple[dict[str, float], Scores]:
        """Returns the recall of some of the samples."""
        return recalls(rank[rows], len(self.items), self.right[rows].sum(axis=1), self.names[rows])


def _values(dataset: EvalSet, field: str, option: str) -> list[str]:
    values = texts_of(dataset.records, field)
    if not any(values):
        names = ", ".join(sorted(dataset.records[0].fields))
        raise DataError(f"{option}: no sample of {dataset.where} has the field {field!r}; fields there: {names}")
    return values
