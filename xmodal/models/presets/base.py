"""What all presets are made of: a trunk of equal layers, and the model around the towers."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

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
WIDER_MLP = {"So400m": dict(hidden=4304)}  # where it is not four times the width

# What families of towers differ in: CLIP, SigLIP, BERT, today's language models, and the ViT that classifies or learns
# from images alone.
STYLES = {
    "clip": dict(act="quick_gelu", norm_eps=1e-5, init="clip"),
    "siglip": dict(act="gelu_tanh", norm_eps=1e-6, init="siglip"),
    "vit": dict(act="gelu", norm_eps=1e-6, init="bert"),
    "bert": dict(act="gelu", norm_eps=1e-12, init="bert"),
    "modern": dict(act="silu", norm_eps=1e-6, init="bert"),
}

# Recipes are read without JAX, which the specs import: tests/models/test_options.py compares these with their fields.
TRUNK_FIELDS = ("final_norm", "final_adaln", "final_routes", "norm", "norm_eps", "drop_path", "init",
                "condition_width", "scan", "remat")  # fmt: skip
ATTENTION_FIELDS = ("kv_heads", "head_dim", "rope", "relative", "joined", "softcap", "qk_norm", "key_bias",
                    "attn_dropout")  # fmt: skip


def size_of(variant: str) -> str:
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
    base = STYLES[style]
    whole = {k: changes.pop(k) for k in TRUNK_FIELDS if k in changes}
    common = dict(norm_eps=whole.get("norm_eps", base["norm_eps"]), norm=whole.get("norm", "ln")) | changes
    mlp = dict(kind="mlp", act=base["act"]) | {k: v for k, v in common.items() if k not in ATTENTION_FIELDS}
    attention = {k: v for k, v in common.items() if k not in ("act", "hidden", "glu")}
    layer = tuple(mlp if kind == "mlp" else dict(kind=kind, heads=heads) | attention for kind in kinds)
    return dict(
        width=width, depth=depth, pattern=(layer,) * (depth > 0), norm_eps=base["norm_eps"], drop_path=0.0,
        init=base["init"], scan=True, remat="none",
    ) | whole  # fmt: skip


def dual_tower(*, dtype: str = "float32", **towers) -> ConfigDict:
    """Two or more towers without wiring: CLIP, ALIGN, SigLIP."""
    for name, tower in towers.items():
        if any(tower.get(edges) for edges in ("reads", "attends", "condition")):
            raise ValueError(f"tower {name!r} is wired to another: use presets.fusion")
    return fusion(dtype=dtype, **towers)


def fusion(*, dtype: str = "float32", **towers) -> ConfigDict:
    """Towers that read or attend to one another: CoCa, GIT, Flamingo."""
    return ConfigDict(dict(dtype=dtype, towers=towers), convert_dict=True)


def heads(
    *, pool: str = "none", head: str = "none", embed_dim: int = 0, projection_bias: bool = False, **pooled
) -> dict:
    """The usual heads of a tower: its embedding, that of each of its tokens, and logits over a vocabulary.

    Args:
      pool: of the embedding; "none" leaves it out.
      head: map of the logits, "linear", "tied" or "masked" (which gives them at places that are hidden, too); "none"
        leaves them out.
      embed_dim: width of the shared space, or number of classes; 0: no projection.
      projection_bias: of that projection.
      **pooled: other fields of `PooledSpec`.
    """
    found = dict(local=dict(type="local"))
    if pool != "none":
        shared = dict(embed_dim=embed_dim, projection_bias=projection_bias)
        found["pooled"] = dict(type="pooled", pool=pool) | shared | pooled
    if head != "none":
        found["logits"] = dict(type="logits", map=head, vocab_size=0)
        found["logit_factors"] = dict(type="logit_factors")
    if head == "masked":
        found["masked_logits"] = dict(type="masked_logits")
    return found


def with_head(tower: Mapping, name: str, **changes) -> dict:
    """Returns a copy of a tower with fields of one head changed, or with one more head (which needs its `type`)."""
    found = dict(tower.get("heads", {}))
    return dict(tower) | dict(heads=found | {name: dict(found.get(name, {})) | changes})


def without_heads(tower: Mapping, *names: str) -> dict:
    """Returns a copy of a tower without these heads, such as "pooled" for a tower that others only read."""
    return dict(tower) | dict(heads={name: head for name, head in tower["heads"].items() if name not in names})


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


def lookup(table: Mapping, name: str, what: str) -> tuple:
    """Returns an entry of a table of presets; raises a ValueError that names the known ones."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: known are {', '.join(table)}")
    return table[name]
