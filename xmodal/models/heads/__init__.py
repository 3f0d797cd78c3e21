"""Heads: what is read off a tower's tokens. A new one is a file and a line here."""

from xmodal.models.heads.base import HEADS, HeadSpec
from xmodal.models.heads.logits import LogitFactorsSpec, LogitsSpec, MaskedLogitsSpec
from xmodal.models.heads.pixels import PixelsSpec
from xmodal.models.heads.pooled import LocalSpec, PooledSpec

# Towers draw the parameters of their heads in this order, whatever the order of a config.
HEADS |= dict(
    pooled=PooledSpec,
    local=LocalSpec,
    logits=LogitsSpec,
    masked_logits=MaskedLogitsSpec,
    logit_factors=LogitFactorsSpec,
    pixels=PixelsSpec,
)

__all__ = [
    "HEADS",
    "HeadSpec",
    "LocalSpec",
    "LogitFactorsSpec",
    "LogitsSpec",
    "MaskedLogitsSpec",
    "PixelsSpec",
    "PooledSpec",
]
