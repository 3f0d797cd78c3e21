"""Objectives, by the name that a config's `type` gives them."""

from xmodal.objectives.base import Objective, View
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.classification import Classification
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from xmodal.objectives.masked_text import MaskedText

OBJECTIVES: dict[str, type[Objective]] = {
    "softmax": SoftmaxContrastive,
    "sigmoid": SigmoidContrastive,
    "captioning": Captioning,
    "classification": Classification,
    "masked_text": MaskedText,
}

__all__ = ["OBJECTIVES", "Objective", "View"]
