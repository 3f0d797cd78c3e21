"""Objectives, by the name that a config's `type` gives them."""

from xmodal.objectives.base import Objective, View
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.classification import Classification
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from xmodal.objectives.distillation import Distillation, FeatureMatching
from xmodal.objectives.fine_grained import Filip, Flair, Sparc
from xmodal.objectives.masked_pixels import MaskedPixels
from xmodal.objectives.masked_text import MaskedText
from xmodal.objectives.matching import Matching

OBJECTIVES: dict[str, type[Objective]] = {
    "softmax": SoftmaxContrastive,
    "sigmoid": SigmoidContrastive,
    "distillation": Distillation,
    "feature_matching": FeatureMatching,
    "filip": Filip,
    "sparc": Sparc,
    "flair": Flair,
    "captioning": Captioning,
    "classification": Classification,
    "masked_text": MaskedText,
    "masked_pixels": MaskedPixels,
    "itm": Matching,
}

__all__ = ["OBJECTIVES", "Objective", "View"]
