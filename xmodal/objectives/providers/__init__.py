"""Providers, by the name that a config's `type` gives them."""

from xmodal.objectives.providers.base import Opening, Provider, ProviderSpec
from xmodal.objectives.providers.mined_negatives import MinedNegatives
from xmodal.objectives.providers.teacher import AverageTeacher, StoredTeacher

PROVIDERS: dict[str, type[ProviderSpec]] = {
    "teacher": StoredTeacher,
    "ema": AverageTeacher,
    "mined_negatives": MinedNegatives,
}

__all__ = ["PROVIDERS", "Opening", "Provider", "ProviderSpec"]
