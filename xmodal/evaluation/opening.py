"""Opens the evaluators of a config with a model: the same in training and offline."""

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from xmodal.building import check_need
from xmodal.config import ConfigError, build_entry
from xmodal.evaluation import EVALUATORS, EvalContext, EvalResult
from xmodal.finite import NotFinite, check_metrics, check_params
from xmodal.live import Live


def open_evaluators(config: ConfigDict, live: Live) -> dict[str, tuple[str | int, Callable[[Mapping], EvalResult]]]:
    """Opens every evaluator of a config; returns {name: (every, params -> EvalResult)}.

    Args:
      config: its `evals`, and `data` as evaluations read it.
      live: the model; its parameters are given to each evaluation.

    The functions raise NotFinite where weights, embeddings or metrics hold NaN or infinity.

    Raises:
      ConfigError: an entry, or its data, cannot be used with this model; the message names it.
    """
    modalities = inputs_of(config.data).with_tokenizers(live.modalities.tokenizers)  # a suite may name other classes
    context = EvalContext(dataclasses.replace(live, config=config, modalities=modalities))
    opened = {}
    for name, entry in config.evals.items():
        where = f"evals.{name}"
        evaluator = build_entry(EVALUATORS, entry, where)
        for need in sorted(evaluator.needs):
            check_need(live.model.spec, need, where)
        try:
            opened[name] = (evaluator.every, _checked(evaluator.prepare(name, context), where))
        except DataError as error:
            raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    return opened


def _checked(evaluate: Callable[[Mapping], EvalResult], where: str) -> Callable[[Mapping], EvalResult]:
    """Returns an evaluation that refuses weights and metrics that are not finite, whatever the evaluator does."""

    def run(params: Mapping) -> EvalResult:
        try:
            check_params(params, "the model")
            result = evaluate(params)
            check_metrics(result.metrics)
        except NotFinite as error:
            raise NotFinite(f"{where}: {error}") from None
        return result

    return run
