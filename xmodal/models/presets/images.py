"""Image towers of the ViT family."""

from collections.abc import Mapping

from xmodal.models.presets.base import STYLES, VIT, WIDER_MLP, lookup, size_of, trunk, with_head
from xmodal.models.presets.base import heads as usual_heads
from xmodal.models.presets.texts import CLIP_TEXT


def vit(variant: str = "B16", *, style: str = "clip", embed_dim: int | None = None, **changes) -> dict:
    """An image tower: `vit("B16")` is CLIP's, `vit("B16", style="siglip")` SigLIP's.

    Args:
      variant: a key of `VIT`.
      style: "clip": class token, pre-norm, projection; "siglip": attention pooling, no projection; "vit": class token,
        no projection.
      embed_dim: width of the shared space; None takes the published one of this size.
      **changes: fields of the trunk or its sublayers, see `trunk`; `embed` updates the patch embedder.
    """
    width, depth, heads, patch = lookup(VIT, variant, "image tower")
    changes = WIDER_MLP.get(size_of(variant), {}) | changes
    if embed_dim is None:
        embed_dim = lookup(CLIP_TEXT, size_of(variant), "size")[3] if style == "clip" else 0
    return image_tower(width, depth, heads, patch_size=patch, style=style, embed_dim=embed_dim, **changes)


def image_tower(
    width: int, depth: int, heads: int, *, patch_size: int, style: str = "clip", embed_dim: int = 0,
    projection_bias: bool = False, pooler: bool = False, pool: str = "", pool_heads: int = 0,
    embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """An image tower of any size; arguments as in `vit`, `heads` and `trunk`, `embed` updates the patch embedder."""
    clip = style == "clip"
    pool = pool or ("map" if style == "siglip" else "cls")
    patches = dict(type="patch", image_size=0, patch_size=patch_size, stem=(), class_token=pool == "cls",
                   position="learned", bias=not clip, pre_norm=clip, norm_eps=STYLES[style]["norm_eps"],
                   patch_dropout=0.0)  # fmt: skip
    return dict(
        embed=patches | dict(embed or {}),
        trunk=trunk(width, depth, heads, style=style, **changes),
        heads=usual_heads(pool=pool, pool_heads=pool_heads or heads, embed_dim=embed_dim,
                          projection_bias=projection_bias, pooler=pooler),
    )  # fmt: skip


def naflex(tower: Mapping, positions: int = 16) -> dict:
    """An image tower of `vit` for packed patches: pictures of any aspect ratio and resolution (SigLIP 2).

    Args:
      tower: without class token, such as `vit("B16", style="siglip")`.
      positions: learned ones along a side of their grid; SigLIP 2: 16.
    """
    embed = tower["embed"]
    if embed["class_token"] or embed["pre_norm"] or embed["stem"] or embed["position"] != "learned":
        raise ValueError("packed patches have learned positions and no class token, norm or stem: use style='siglip'")
    return dict(tower) | dict(embed=dict(type="naflex", patch_size=embed["patch_size"], positions=positions, length=0))


def classifier(tower: Mapping, classes: int) -> dict:
    """An image tower whose projection gives the logits of so many classes: for the objective `classification`."""
    return with_head(tower, "pooled", embed_dim=classes, projection_bias=True)


def pixel_decoder(
    width: int = 512, depth: int = 8, heads: int = 16, *, patch_size: int = 16, reads: str = "image",
    embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """The decoder of a masked autoencoder (He et al. 2021, table 1), for the objective `masked_pixels`.

    Args:
      width: of the residual stream.
      depth: layers.
      heads: attention heads.
      patch_size: pixels of the encoder's patches.
      reads: the encoder, such as `vit("B16", style="vit", embed=dict(position="sincos"))`.
      embed: updates the embedder `mask_tokens`, such as `prefix_tokens=0` for an encoder without class token.
      **changes: fields of the trunk or its sublayers, see `trunk`.
    """
    return dict(
        embed=dict(type="mask_tokens", image_size=0, patch_size=patch_size) | dict(embed or {}),
        trunk=trunk(width, depth, heads, **(dict(style="vit") | changes)),
        reads={reads: dict(type="linear")}, heads=dict(pixels=dict(type="pixels", patch_size=patch_size)),
    )  # fmt: skip


def dinov2(variant: str = "B14", *, registers: int = 0, **changes) -> dict:
    """DINOv2's image tower (Oquab et al. 2023): LayerScale, SwiGLU in "g14", positions of 518 pixels resampled.

    Args:
      variant: "S14", "B14", "L14" or "g14".
      registers: 4 in the models "with registers" (Darcet et al. 2024).
      **changes: as for `vit`.
    """
    mlp = dict(glu=True, act="silu", hidden=4096) if variant == "g14" else dict(hidden=4 * lookup(VIT, variant, "")[0])
    how = "bicubic_antialias" if registers else "bicubic"
    patches = dict(registers=registers, position_size=518, position_filter=how) | changes.pop("embed", {})
    return vit(variant, style="vit", embed=patches, **(mlp | dict(gate="layerscale", gate_init=1e-5) | changes))
