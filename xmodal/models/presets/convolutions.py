"""Presets of convolutional image towers: networks that are embedders, with an empty trunk.

Sizes follow the papers: ConvNeXt (Liu et al. 2022), EfficientNet (Tan and Le 2019; Xie et al. 2020), ResNet (He et al.
2015), CLIP's ResNets (Radford et al. 2021).
"""

from collections.abc import Mapping

from xmodal.models.presets.base import heads, lookup

# blocks and channels of the stages
CONVNEXT = {
    "T": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "S": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "B": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "L": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "XL": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
# factors of width and depth, pixels that it was trained with, and blocks that pad alike on all sides at that size
EFFICIENTNET = {
    "B0": (1.0, 1.0, 224, ()),
    "B1": (1.0, 1.1, 240, (16,)),
    "B2": (1.1, 1.2, 260, (5, 8, 16)),
    "B3": (1.2, 1.4, 300, (5, 18)),
    "B4": (1.4, 1.8, 380, (6,)),
    "B5": (1.6, 2.2, 456, (13, 27)),
    "B6": (1.8, 2.6, 528, (31,)),
    "B7": (2.0, 3.1, 600, (18,)),
    "L2": (4.3, 5.3, 800, ()),
}
# kind of block, blocks of each stage
RESNET = {
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
}
# CLIP's: width of the stem, blocks of each stage, pixels that it was trained with, width of the shared space
CLIP_RESNET = {
    "RN50": (64, (3, 4, 6, 3), 224, 1024),
    "RN101": (64, (3, 4, 23, 3), 224, 512),
    "RN50x4": (80, (4, 6, 10, 6), 288, 640),
    "RN50x16": (96, (6, 8, 18, 8), 384, 768),
    "RN50x64": (128, (3, 15, 36, 10), 448, 1024),
}
_CLIP_HEAD = 64  # width of an attention head in all of CLIP


def convnext(variant: str = "T", **changes) -> dict:
    """ConvNeXt's image tower (Liu et al. 2022): "T", "S", "B", "L" or "XL"; arguments as in `convnext_tower`."""
    depths, widths = lookup(CONVNEXT, variant, "image tower")
    return convnext_tower(depths, widths, **changes)


def convnext_tower(
    depths: tuple[int, ...], widths: tuple[int, ...], *, embed_dim: int = 0, norm_eps: float = 1e-6, **changes
) -> dict:
    """A ConvNeXt of any size, pooled to the mean of its tokens and a norm.

    Args:
      depths: blocks of the stages.
      widths: channels of the stages.
      embed_dim: width of the shared space; 0: the last width.
      norm_eps: of the norm after the pooling.
      **changes: fields of `ConvNextSpec`.
    """
    embed = dict(type="convnext", image_size=0, depths=depths, widths=widths, drop_path=0.0, scan=True, remat="none")
    return dict(
        embed=embed | changes, trunk=no_trunk(widths[-1], norm_eps=norm_eps),
        heads=heads(pool="mean", pool_norm=True, embed_dim=embed_dim),
    )  # fmt: skip


def efficientnet(variant: str = "B0", *, embed_dim: int = 0, **changes) -> dict:
    """EfficientNet's image tower (Tan and Le 2019; "L2": Xie et al. 2020), pooled to the mean of its tokens.

    Args:
      variant: a key of `EFFICIENTNET`.
      embed_dim: width of the shared space, or number of classes; 0: as wide as the last convolution.
      **changes: fields of `EfficientNetSpec`: `top=0` leaves out the last convolution (ALIGN). `square_padding` is by
        default that of the size that the published model was trained with.
    """
    width, depth, _, padding = lookup(EFFICIENTNET, variant, "image tower")
    return efficientnet_tower(width, depth, embed_dim=embed_dim, **(dict(square_padding=padding) | changes))


def efficientnet_tower(width_factor: float, depth_factor: float, *, embed_dim: int = 0, **changes) -> dict:
    """An EfficientNet of any size; `changes` are fields of `EfficientNetSpec`."""
    from xmodal.models.efficientnet import EfficientNetSpec  # reading any other recipe must not load the modules

    embed = dict(width_factor=width_factor, depth_factor=depth_factor) | changes
    width = EfficientNetSpec(**embed).width
    embed = dict(type="efficientnet", image_size=0, scan=True, remat="none", drop_connect=0.2) | embed
    return dict(embed=embed, trunk=no_trunk(width), heads=heads(pool="mean", embed_dim=embed_dim))


def resnet(variant: str = "50", *, pool: str = "mean", **changes) -> dict:
    """A ResNet v1.5 as an image tower: global average pooling, no projection; `classifier` gives it one.

    Args:
      variant: a key of `RESNET`.
      pool: of the places of the last feature map.
      **changes: fields of `ResNetSpec`.
    """
    block, depths = lookup(RESNET, variant, "ResNet")
    widest = 4 if block == "bottleneck" else 1
    widths = tuple(widest * 64 * 2**i for i in range(len(depths)))
    embed = dict(block=block, depths=depths, widths=widths, stem_width=64, style="v1.5") | changes
    return resnet_tower(embed, init="resnet", pool=pool)


def clip_resnet(variant: str = "RN50", *, embed_dim: int | None = None, **changes) -> dict:
    """CLIP's image tower with a ResNet: a stem of three convolutions, mean pooling for strides, attention pooling.

    Args:
      variant: a key of `CLIP_RESNET`; `clip_text` has a text tower of the same name.
      embed_dim: width of the shared space; None takes the published one.
      **changes: fields of `ResNetSpec`.
    """
    stem, depths, _, shared = lookup(CLIP_RESNET, variant, "ResNet of CLIP")
    widths = tuple(4 * stem * 2**i for i in range(len(depths)))
    embed = dict(block="bottleneck", depths=depths, widths=widths, stem_width=stem, style="clip") | changes
    embed_dim = shared if embed_dim is None else embed_dim
    return resnet_tower(embed, init="clip", pool="attention", embed_dim=embed_dim)


def resnet_tower(embed: Mapping, *, init: str, pool: str = "mean", pool_heads: int = 0, embed_dim: int = 0) -> dict:
    """A ResNet of any size as an image tower.

    Args:
      embed: fields of `ResNetSpec`.
      init: scheme of `xmodal.models.init`: "resnet", or "clip".
      pool: "mean", or "attention" (CLIP), which also gives the projection its bias.
      pool_heads: of attention pooling; 0: as wide as in all of CLIP.
      embed_dim: width of the shared space; 0: no projection.
    """
    embed = dict(type="resnet", image_size=0, remat="none", scan=False) | dict(embed)
    width, attention = embed["widths"][-1], pool == "attention"
    return dict(
        embed=embed, trunk=no_trunk(width, init=init),
        heads=heads(pool=pool, pool_heads=pool_heads or (width // _CLIP_HEAD if attention else 0), embed_dim=embed_dim,
                    projection_bias=attention),
    )  # fmt: skip


def no_trunk(width: int, **changes) -> dict:
    """The empty trunk behind an embedder that is a whole network; `changes` are fields of `TrunkSpec`."""
    return dict(width=width, depth=0, pattern=(), final_norm=False, init="bert") | changes
