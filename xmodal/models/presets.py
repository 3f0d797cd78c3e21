"""Presets: plain ConfigDicts for the field's towers, to be changed key by key in a recipe.

Widths, depths and heads follow the papers: ViT (Dosovitskiy et al. 2021), CLIP (Radford et al. 2021), OpenCLIP's H/14
(Cherti et al. 2023), SigLIP (Zhai et al. 2023), SigLIP 2 (Tschannen et al. 2025), BERT (Devlin et al. 2019; the small
ones Turc et al. 2019). Vocabulary, text length and image size are 0 here: they are taken from the tokenizer and the
data section. Convolutional towers are in `convnets.py`.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from xmodal.models.convnets import (  # noqa: F401 (recipes find all presets here)
    CLIP_RESNET,
    CONVNEXT,
    EFFICIENTNET,
    RESNET,
    clip_resnet,
    convnext,
    convnext_tower,
    efficientnet,
    efficientnet_tower,
    lookup,
    no_trunk,
    resnet,
    resnet_tower,
)

# width, depth, heads, patch size
VIT = {
    "Ti16": (192, 12, 3, 16),
    "S32": (384, 12, 6, 32),
    "S16": (384, 12, 6, 16),
    "S14": (384, 12, 6, 14),
    "B32": (768, 12, 12, 32),
    "B16": (768, 12, 12, 16),
    "B14": (768, 12, 12, 14),
    "L16": (1024, 24, 16, 16),
    "L14": (1024, 24, 16, 14),
    "H14": (1280, 32, 16, 14),
    "g14": (1536, 40, 24, 14),
    "So400m14": (1152, 27, 16, 14),
    "So400m16": (1152, 27, 16, 16),
    "gopt16": (1536, 40, 16, 16),
}
_MLP = {"So400m": dict(hidden=4304)}  # where it is not four times the width
# width, depth, heads of the text tower and width of the shared space that go with an image tower of that size
CLIP_TEXT = {
    "Ti": (256, 6, 4, 256),
    "S": (384, 12, 6, 384),
    "B": (512, 12, 8, 512),
    "L": (768, 12, 12, 768),
    "H": (1024, 24, 16, 1024),
    "RN50": (512, 12, 8, 1024),
    "RN101": (512, 12, 8, 512),
    "RN50x4": (640, 12, 10, 640),
    "RN50x16": (768, 12, 12, 768),
    "RN50x64": (1024, 12, 16, 1024),
}
# width, depth, heads
BERT = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}

# size of the BERT and width of the shared space that go with an image tower of that size: Chinese-CLIP
CHINESE_CLIP_TEXT = {"B": ("base", 512), "L": ("base", 768), "H": ("large", 1024)}

# What families of towers differ in: CLIP, SigLIP, BERT, today's language models, and the ViT that classifies or learns
# from images alone.
_STYLES = {
    "clip": dict(act="quick_gelu", norm_eps=1e-5, init="clip"),
    "siglip": dict(act="gelu_tanh", norm_eps=1e-6, init="siglip"),
    "vit": dict(act="gelu", norm_eps=1e-6, init="bert"),
    "bert": dict(act="gelu", norm_eps=1e-12, init="bert"),
    "modern": dict(act="silu", norm_eps=1e-6, init="bert"),
}

_ATTENTION = ("kv_heads", "head_dim", "rope", "softcap", "qk_norm", "key_bias", "attn_dropout")  # fields of attention


def _size(variant: str) -> str:
    """The size of a variant, without its patches: "B" of "B16"."""
    return variant.rstrip("0123456789")


def trunk(
    width: int,
    depth: int,
    heads: int,
    *,
    kinds: tuple[str, ...] = ("self", "mlp"),
    style: str = "clip",
    **changes,
) -> dict:
    """A trunk of `depth` equal layers, pre-norm by default.

    Args:
      width: of the residual stream.
      depth: layers.
      heads: attention heads.
      kinds: the sublayers of a layer, in order.
      style: "clip", "siglip", "vit", "bert" or "modern": activation, epsilon and initialisation.
      **changes: fields of `TrunkSpec`, or of every `Sublayer` where the trunk has no such field.
    """
    base = _STYLES[style]
    trunk_fields = ("final_norm", "norm", "norm_eps", "drop_path", "init", "condition_width", "scan", "remat")
    whole = {k: changes.pop(k) for k in trunk_fields if k in changes}
    common = dict(norm_eps=whole.get("norm_eps", base["norm_eps"]), norm=whole.get("norm", "ln")) | changes
    mlp = dict(kind="mlp", act=base["act"]) | {k: v for k, v in common.items() if k not in _ATTENTION}
    attention = {k: v for k, v in common.items() if k not in ("act", "hidden", "glu")}
    layer = tuple(mlp if kind == "mlp" else dict(kind=kind, heads=heads) | attention for kind in kinds)
    return dict(
        width=width, depth=depth, pattern=(layer,) * (depth > 0), norm_eps=base["norm_eps"], drop_path=0.0,
        init=base["init"], scan=True, remat="none",
    ) | whole  # fmt: skip


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
    changes = _MLP.get(_size(variant), {}) | changes
    return image_tower(width, depth, heads, patch_size=patch, style=style, **changes) | dict(
        embed_dim=(lookup(CLIP_TEXT, _size(variant), "size")[3] if style == "clip" else 0)
        if embed_dim is None
        else embed_dim
    )


def image_tower(
    width: int, depth: int, heads: int, *, patch_size: int, style: str = "clip", embed_dim: int = 0,
    pool: str = "", embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """An image tower of any size; arguments as in `vit` and `trunk`, `embed` updates the patch embedder."""
    clip = style == "clip"
    pool = pool or ("map" if style == "siglip" else "cls")
    patches = dict(type="patch", image_size=0, patch_size=patch_size, stem=(), class_token=pool == "cls",
                   position="learned", bias=not clip, pre_norm=clip, norm_eps=_STYLES[style]["norm_eps"],
                   patch_dropout=0.0)  # fmt: skip
    return dict(
        embed=patches | dict(embed or {}),
        trunk=trunk(width, depth, heads, style=style, **changes),
        pool=pool, pool_heads=heads, embed_dim=embed_dim,
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
    return dict(tower) | dict(embed_dim=classes, projection_bias=True)


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


def clip_text(size: str = "B", **changes) -> dict:
    """CLIP's text tower of a size of `CLIP_TEXT`: causal, pooled at the end mark, projected without bias."""
    width, depth, heads, embed_dim = lookup(CLIP_TEXT, size, "text tower")
    return text_tower(width, depth, heads, **(dict(embed_dim=embed_dim) | changes))


def siglip_text(variant: str = "B16", **changes) -> dict:
    """SigLIP's text tower: as wide as the image tower, full attention without padding mask, last position, biased.

    Only the giant one of SigLIP 2, "gopt16", is smaller: that of So400m, projected to the width of the image tower.
    """
    embed_dim, *_ = lookup(VIT, variant, "text tower")
    own = "So400m16" if variant == "gopt16" else variant
    width, depth, heads, _ = VIT[own]
    changes = dict(embed_dim=embed_dim) | _MLP.get(_size(own), {}) | changes
    return text_tower(width, depth, heads, style="siglip", **changes)


def bert(size: str = "base", **changes) -> dict:
    """BERT's text tower: post-norm, two kinds of tokens, pooled at [CLS]; as a model by itself or beside images.

    Args:
      size: a key of `BERT`.
      **changes: as for `bert_tower`.
    """
    return bert_tower(*lookup(BERT, size, "text tower"), **changes)


def bert_tower(
    width: int, depth: int, heads: int, *, pooler: bool = True, projection_bias: bool = True, dropout: float = 0.1,
    norm_eps: float = 1e-12, embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """BERT's text tower of any size (Devlin et al. 2019, section 3).

    Args:
      width: of the residual stream.
      depth: layers.
      heads: attention heads.
      pooler: the linear map and tanh after the pooling; ALIGN and Chinese-CLIP leave it out.
      projection_bias: whether the projection to the shared space, if there is one, has a bias.
      dropout: on what is embedded, on the attention's weights and on what every sublayer adds.
      norm_eps: of all norms.
      embed: updates the token embedder.
      **changes: as for `text_tower`: `head="masked"` for masked language modelling, `embed_dim` for a shared space.
    """
    tokens = dict(causal=False, mask_padding=True, types=2, norm=True, norm_eps=norm_eps, dropout=dropout)
    layers = dict(place="post", final_norm=False, norm_eps=norm_eps, dropout=dropout, attn_dropout=dropout)
    tower = text_tower(
        width, depth, heads, style="bert", embed=tokens | dict(embed or {}), **(dict(pool="cls") | layers | changes)
    )
    return tower | dict(pooler=pooler, projection_bias=projection_bias)


def chinese_clip_text(size: str = "B", **changes) -> dict:
    """Chinese-CLIP's text tower (Yang et al. 2022): a BERT read at [CLS] and projected without bias.

    It goes with CLIP's image tower: `dual_tower(image=vit("B16"), text=chinese_clip_text("B"))`.

    Args:
      size: a key of `CHINESE_CLIP_TEXT`.
      **changes: as for `bert_tower`.
    """
    layers, embed_dim = lookup(CHINESE_CLIP_TEXT, size, "text tower")
    return bert(layers, **(dict(pooler=False, embed_dim=embed_dim, projection_bias=False) | changes))


def modern_text(size: str = "B", **changes) -> dict:
    """A text tower of the sizes of CLIP's, with the layers of today's language models.

    Args:
      size: a key of `CLIP_TEXT`.
      **changes: as for `modern_text_tower`.
    """
    width, depth, heads, embed_dim = lookup(CLIP_TEXT, size, "text tower")
    return modern_text_tower(width, depth, heads, **(dict(embed_dim=embed_dim) | changes))


def modern_text_tower(
    width: int, depth: int, heads: int, *, causal: bool = False, pool: str = "", rope: float = 10_000.0,
    embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """A text tower of rotary positions, RMSNorm and SwiGLU without biases (LLaMA, Touvron et al. 2023, section 2.2).

    Args:
      width: of the residual stream.
      depth: layers.
      heads: attention heads.
      causal: a token sees only those before it; otherwise all.
      pool: "" is the end mark of a causal tower and the mean of another.
      rope: base of the rotary positions.
      embed: updates the token embedder.
      **changes: as for `text_tower`: `qk_norm=True` normalises queries and keys (Henry et al. 2020; Qwen3),
        `kv_heads` shares keys and values (grouped queries).
    """
    hidden = -(-8 * width // (3 * 64)) * 64  # two thirds of four widths, as there are three maps: rounded up to 64
    layers = dict(norm="rms", glu=True, hidden=hidden, bias=False, rope=rope)
    tower = text_tower(
        width, depth, heads, style="modern", pool=pool or ("eos" if causal else "mean"),
        embed=dict(position="none", causal=causal, mask_padding=True) | dict(embed or {}), **(layers | changes),
    )  # fmt: skip
    return tower | dict(projection_bias=False)


def text_tower(
    width: int, depth: int, heads: int, *, style: str = "clip", embed_dim: int = 0, pool: str = "",
    head: str = "none", embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """A text tower of any size; arguments as in `trunk`, `embed` updates the token embedder."""
    clip = style == "clip"
    tokens = dict(type="token", vocab_size=0, length=0, position="learned", causal=clip, mask_padding=clip)
    return dict(
        embed=tokens | dict(embed or {}),
        trunk=trunk(width, depth, heads, style=style, **changes),
        pool=pool or ("eos" if clip else "last"), embed_dim=embed_dim, projection_bias=not clip, head=head,
        vocab_size=0,
    )  # fmt: skip


def decoder(width: int, depth: int, heads: int, *, reads: str = "text", attends: str = "image", **changes) -> dict:
    """CoCa's multimodal decoder: reads a causal text tower's tokens, attends to an image tower, predicts text."""
    kinds = changes.pop("kinds", ("self", "cross", "mlp"))
    return dict(
        trunk=trunk(width, depth, heads, kinds=kinds, **changes), reads=(reads,), attends=attends, head="linear",
        vocab_size=0,
    )  # fmt: skip


def dual_tower(*, dtype: str = "float32", **towers) -> ConfigDict:
    """Two or more towers without wiring: CLIP, ALIGN, SigLIP."""
    for name, tower in towers.items():
        if tower.get("reads") or tower.get("attends"):
            raise ValueError(f"tower {name!r} is wired to another: use presets.fusion")
    return fusion(dtype=dtype, **towers)


def fusion(*, dtype: str = "float32", **towers) -> ConfigDict:
    """Towers that read or attend to one another: CoCa, GIT, Flamingo."""
    return ConfigDict(dict(dtype=dtype, towers=towers), convert_dict=True)


def with_lora(
    model: ConfigDict, rank: int, *, alpha: float = 0.0, targets: tuple[str, ...] = ("query", "value"),
    towers: tuple[str, ...] = (),
) -> ConfigDict:  # fmt: skip
    """Returns a copy of a model whose trunks have low-rank updates: see `xmodal.models.spec.Lora`.

    Args:
      model: of `dual_tower`, `fusion`, or an imported folder.
      rank: of the updates.
      alpha: their scale times the rank; 0: the rank.
      targets: linear maps that have one; those that a sublayer lacks are no fault.
      towers: only these; () takes all.
    """
    if unknown := set(towers) - set(model.towers):
        raise ValueError(f"unknown tower {min(unknown)!r}: the model has {', '.join(model.towers)}")
    lora = dict(rank=rank, alpha=alpha, targets=targets)
    return _with_sublayers(
        model, lambda tower, s: dict(s) | dict(lora=lora) if tower in (towers or model.towers) else s
    )


def without_lora(model: ConfigDict) -> ConfigDict:
    """Returns a copy of a model without the low-rank updates."""
    return _with_sublayers(model, lambda _, s: {key: value for key, value in s.items() if key != "lora"})


def _with_sublayers(model: ConfigDict, change: Callable[[str, Mapping], Mapping]) -> ConfigDict:
    model = ConfigDict(model.to_dict(), convert_dict=True)
    for name, tower in model.towers.items():
        pattern = tower.trunk.pattern
        tower.trunk.pattern = tuple(tuple(change(name, sublayer) for sublayer in layer) for layer in pattern)
    return model
