"""Models in and out: name tables of reference models, and the folders they live in.

A family is one file with one table, and one line here.
"""

from xmodal.interop import open_clip, open_clip_resnet
from xmodal.interop.align import ALIGN
from xmodal.interop.bert import BERT
from xmodal.interop.chinese_clip import CHINESE_CLIP
from xmodal.interop.clip import CLIP
from xmodal.interop.convnext import CONVNEXT
from xmodal.interop.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from xmodal.interop.efficientnet import EFFICIENTNET
from xmodal.interop.resnet import RESNET
from xmodal.interop.siglip import SIGLIP, SIGLIP2
from xmodal.interop.tables import Family
from xmodal.interop.vit import VIT

# By `model_type` of a Hugging Face config.json.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        CLIP,
        SIGLIP,
        SIGLIP2,
        VIT,
        DINOV2,
        DINOV2_WITH_REGISTERS,
        BERT,
        CONVNEXT,
        RESNET,
        EFFICIENTNET,
        ALIGN,
        CHINESE_CLIP,
    )
}
# By `open_clip.kind_of` the model_cfg of an open_clip_config.json.
OPEN_CLIP: dict[str, Family] = {"vit": open_clip.VIT, "resnet": open_clip_resnet.RESNET}
