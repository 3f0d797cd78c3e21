"""Text towers and decoders."""

from collections.abc import Mapping

from xmodal.models.presets.base import VIT, WIDER_MLP, lookup, size_of, trunk
from xmodal.models.presets.base import heads as usual_heads

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
    changes = dict(embed_dim=embed_dim) | WIDER_MLP.get(size_of(own), {}) | changes
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
    return text_tower(
        width, depth, heads, style="bert", embed=tokens | dict(embed or {}), pooler=pooler,
        projection_bias=projection_bias, **(dict(pool="cls") | layers | changes),
    )  # fmt: skip


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
    return text_tower(
        width, depth, heads, style="modern", pool=pool or ("eos" if causal else "mean"),
        embed=dict(position="none", causal=causal, mask_padding=True) | dict(embed or {}),
        **(dict(projection_bias=False) | layers | changes),
    )  # fmt: skip


def text_tower(
    width: int, depth: int, heads: int, *, style: str = "clip", embed_dim: int = 0, pool: str = "",
    head: str = "none", pooler: bool = False, pool_heads: int = 0, projection_bias: bool | None = None,
    embed: Mapping | None = None, **changes,
) -> dict:  # fmt: skip
    """A text tower of any size; arguments as in `heads` and `trunk`, `embed` updates the token embedder."""
    clip = style == "clip"
    tokens = dict(type="token", vocab_size=0, length=0, position="learned", causal=clip, mask_padding=clip)
    return dict(
        embed=tokens | dict(embed or {}),
        trunk=trunk(width, depth, heads, style=style, **changes),
        heads=usual_heads(
            pool=pool or ("eos" if clip else "last"), pool_heads=pool_heads, pooler=pooler, embed_dim=embed_dim,
            projection_bias=not clip if projection_bias is None else projection_bias, head=head,
        ),
    )  # fmt: skip


def decoder(width: int, depth: int, heads: int, *, reads: str = "text", attends: str = "image", **changes) -> dict:
    """CoCa's multimodal decoder: reads a causal text tower's tokens, attends to an image tower, predicts text."""
    kinds = changes.pop("kinds", ("self", "cross", "mlp"))
    return dict(
        trunk=trunk(width, depth, heads, kinds=kinds, **changes), reads={reads: {}}, attends={attends: {}},
        heads=usual_heads(head="linear"),
    )  # fmt: skip
