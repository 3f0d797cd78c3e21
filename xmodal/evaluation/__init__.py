"""Evaluators, by the name that a config's `type` gives them."""

from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.captioning import Captioning
from xmodal.evaluation.classification import Classification
from xmodal.evaluation.cross_retrieval import CrossRetrieval
from xmodal.evaluation.health import EmbeddingHealth
from xmodal.evaluation.masked_text import MaskedText
from xmodal.evaluation.pairs import Pairs
from xmodal.evaluation.pointing import Pointing
from xmodal.evaluation.probe import FewShot, LinearProbe
from xmodal.evaluation.retrieval import Retrieval
from xmodal.evaluation.zero_shot import ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
    "retrieval": Retrieval,
    "cross_retrieval": CrossRetrieval,
    "zero_shot": ZeroShot,
    "pointing": Pointing,
    "captioning": Captioning,
    "classification": Classification,
    "masked_text": MaskedText,
    "linear_probe": LinearProbe,
    "few_shot": FewShot,
    "pairs": Pairs,
    "embeddings": EmbeddingHealth,
}

__all__ = ["EVALUATORS", "EvalContext", "EvalResult", "Evaluator"]
