"""The embedders by name. A new one is a file and a line here."""

from collections.abc import Mapping

from xmodal.models.convnext import ConvNextSpec
from xmodal.models.efficientnet import EfficientNetSpec
from xmodal.models.embedder import EMBEDDERS, EmbedSpec
from xmodal.models.learned import MaskTokensSpec, QuerySpec
from xmodal.models.naflex import NaflexSpec
from xmodal.models.patches import PatchSpec
from xmodal.models.resnet import ResNetSpec
from xmodal.models.spectrogram_patches import SpectrogramSpec
from xmodal.models.token_ids import TokenSpec

EMBEDDERS |= dict(
    patch=PatchSpec,
    naflex=NaflexSpec,
    convnext=ConvNextSpec,
    resnet=ResNetSpec,
    efficientnet=EfficientNetSpec,
    token=TokenSpec,
    query=QuerySpec,
    mask_tokens=MaskTokensSpec,
    spectrogram=SpectrogramSpec,
)

__all__ = ["EMBEDDERS", "EmbedSpec", "MaskTokensSpec", "NaflexSpec", "PatchSpec", "QuerySpec", "TokenSpec", "inputs_of"]


def inputs_of(towers: Mapping[str, Mapping]) -> dict[str, str]:
    """Returns {tower: array of the batch that it embeds} of the `towers` of a config, which may be wrong yet."""
    embeds = {name: tower.get("embed") or {} for name, tower in towers.items()}
    kinds = {name: EMBEDDERS[embed["type"]] for name, embed in embeds.items() if embed.get("type") in EMBEDDERS}
    return {name: embeds[name].get("input", kind.input) for name, kind in kinds.items() if kind.rank}
