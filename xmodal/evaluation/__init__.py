"""Evaluators, by the name that a config's `type` gives them."""

from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.captioning import Captioning
from xmodal.evaluation.classification import Classification
from xmodal.evaluation.masked_text import MaskedText
from xmodal.evaluation.retrieval import Retrieval
from xmodal.evaluation.zero_shot import ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
    "retrieval": Retrieval,
    "zero_shot": ZeroShot,
    "captioning": Captioning,
    "classification": Classification,
    "masked_text": MaskedText,
}

__all__ = ["EVALUATORS", "EvalContext", "EvalResult", "Evaluator"]
