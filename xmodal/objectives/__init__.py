"""Objectives, by the name that a config's `type` gives them."""

from xmodal.objectives.base import Objective, View
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.classification import Classification
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive

OBJECTIVES: dict[str, type[Objective]] = {
    "softmax": SoftmaxContrastive,
    "sigmoid": SigmoidContrastive,
    "captioning": Captioning,
    "classification": Classification,
}

__all__ = ["OBJECTIVES", "Objective", "View"]
