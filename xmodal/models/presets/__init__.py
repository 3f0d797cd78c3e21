"""Presets: plain ConfigDicts for the field's towers, to be changed key by key in a recipe.

Widths, depths and heads follow the papers: ViT (Dosovitskiy et al. 2021), CLIP (Radford et al. 2021), OpenCLIP's H/14
(Cherti et al. 2023), SigLIP (Zhai et al. 2023), SigLIP 2 (Tschannen et al. 2025), BERT (Devlin et al. 2019; the small
ones Turc et al. 2019). Vocabulary, text length and image size are 0 here: they are taken from the tokenizer and the
data section.
"""

from xmodal.models.presets.base import (
    VIT,
    dual_tower,
    fusion,
    heads,
    lookup,
    trunk,
    with_head,
    with_lora,
    without_heads,
    without_lora,
)
from xmodal.models.presets.convolutions import (
    CLIP_RESNET,
    CONVNEXT,
    EFFICIENTNET,
    RESNET,
    clip_resnet,
    convnext,
    convnext_tower,
    efficientnet,
    efficientnet_tower,
    no_trunk,
    resnet,
    resnet_tower,
)
from xmodal.models.presets.images import classifier, dinov2, image_tower, naflex, pixel_decoder, vit
from xmodal.models.presets.texts import (
    BERT,
    CHINESE_CLIP_TEXT,
    CLIP_TEXT,
    bert,
    bert_tower,
    chinese_clip_text,
    clip_text,
    decoder,
    modern_text,
    modern_text_tower,
    siglip_text,
    text_tower,
)

__all__ = [
    "BERT",
    "CHINESE_CLIP_TEXT",
    "CLIP_RESNET",
    "CLIP_TEXT",
    "CONVNEXT",
    "EFFICIENTNET",
    "RESNET",
    "VIT",
    "bert",
    "bert_tower",
    "chinese_clip_text",
    "classifier",
    "clip_resnet",
    "clip_text",
    "convnext",
    "convnext_tower",
    "decoder",
    "dinov2",
    "dual_tower",
    "efficientnet",
    "efficientnet_tower",
    "fusion",
    "heads",
    "image_tower",
    "lookup",
    "modern_text",
    "modern_text_tower",
    "naflex",
    "no_trunk",
    "pixel_decoder",
    "resnet",
    "resnet_tower",
    "siglip_text",
    "text_tower",
    "trunk",
    "vit",
    "with_head",
    "with_lora",
    "without_heads",
    "without_lora",
]
