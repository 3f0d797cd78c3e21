"""The plain vision transformer: Hugging Face's `ViTModel`, with or without pooler, and `ViTForImageClassification`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.encoders import IMAGE, encoder_config, fixed_heads, layer_settings, sizes
from xmodal.interop.settings import Settings, architecture, labels_of, require, section
from xmodal.interop.tables import CONV, Entry, Family, InteropError, differences, fail, linear, norm
from xmodal.models import presets
from xmodal.models.embed import PatchSpec
from xmodal.models.model import ModelSpec
from xmodal.models.spec import Sublayer
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec

# With the defaults of the reference's configuration class.
_READ = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224,
             patch_size=16, hidden_act="gelu", layer_norm_eps=1e-12, attention_probs_dropout_prob=0.0)  # fmt: skip
FIXED = dict(qkv_bias=True, num_channels=3, hidden_dropout_prob=0.0)
_SETTINGS = Settings(
    read=_READ, fixed=FIXED | dict(pooler_act="tanh"),
    idle=("encoder_stride", "add_pooling_layer", "pooler_output_size"),
)  # fmt: skip
_CLASSIFIER = "ViTForImageClassification"
_MAPS = (("attention.attention.query", "query"), ("attention.attention.key", "key"),
         ("attention.attention.value", "value"), ("attention.output.dense", "out"))  # fmt: skip


# ---------------------------------------------------------------------------------------------- parts of every ViT


def patch_entries(prefix: str, tower: TowerSpec) -> Iterator[Entry]:
    """Class token, registers, positions and patch map, named as ViT and DINOv2 name them."""
    width, embed, name, path = tower.width, tower.embed, f"{prefix}embeddings", f"{IMAGE}/embed"
    rows = embed.position_grid[0] * embed.position_grid[1] + embed.class_token
    yield Entry(f"{name}.cls_token", f"{path}/class_token", (1, 1, width), own=(width,))
    if embed.registers:
        shape = (embed.registers, width)
        yield Entry(f"{name}.register_tokens", f"{path}/registers", (1, *shape), own=shape)
    yield Entry(f"{name}.position_embeddings", f"{path}/position", (1, rows, width), own=(rows, width))
    patches = f"{name}.patch_embeddings.projection"
    yield Entry(f"{patches}.weight", f"{path}/kernel", (width, 3, *(embed.patch_size,) * 2), CONV)
    yield Entry(f"{patches}.bias", f"{path}/bias", (width,))


def attention_entries(layer: str, path: str, width: int, i: int) -> Iterator[Entry]:
    """The four maps of a layer's attention."""
    for theirs, ours in _MAPS:
        yield from linear(f"{layer}.{theirs}", f"{path}/attn/{ours}", width, width, layer=i)


def check_tower(spec: ModelSpec, reference: str, *, embed: Mapping, layer: Mapping, **fixed) -> TowerSpec:
    """Returns the image tower, the only one, if the reference can express it.

    Args:
      spec: the model.
      reference: class of the reference, for the message.
      embed: what it fixes of the `PatchSpec`; sizes are free.
      layer: what it fixes of both sublayers; heads, hidden width and activation are free.
      **fixed: what it fixes of the head `pooled`; the rest has its default.

    Raises:
      InteropError: listing every setting that stands in the way.
    """
    if list(spec.towers) != [IMAGE]:
        raise InteropError(f"{reference} has one tower, {IMAGE!r}; the model has {', '.join(spec.towers)}")
    tower = spec.towers[IMAGE]
    if not isinstance(tower.embed, PatchSpec):
        raise InteropError(f"{IMAGE}/embed: needs a PatchSpec, is {type(tower.embed).__name__}")
    # Built from the classes' defaults, so that an option that is added later is refused until a table knows it.
    free = ("image_size", "patch_size", "patch_dropout", "input", "norm_eps")
    patches = PatchSpec(**{name: getattr(tower.embed, name) for name in free} | dict(embed))
    wanted = TowerSpec(trunk=_fixed_trunk(tower.trunk, layer), embed=patches,
                       heads=fixed_heads(tower, ("pool_heads",), **fixed))  # fmt: skip
    fail(f"{reference} has no such model", differences(tower, wanted, IMAGE))
    return tower


def _fixed_trunk(trunk: TrunkSpec, layer: Mapping) -> TrunkSpec:
    first = {s.kind: s for s in trunk.pattern[0]}

    def keep(kind: str, *names: str) -> Sublayer:
        have = first.get(kind, Sublayer(kind))
        kept = {name: getattr(have, name) for name in ("dropout", "attn_dropout", "gate_init", *names)}
        return Sublayer(kind, norm_eps=trunk.norm_eps, **kept, **layer)

    free = ("width", "depth", "norm_eps", "drop_path", "init", "scan", "remat")
    pattern = ((keep("self", "heads"), keep("mlp", "hidden", "act", "glu")),)
    return TrunkSpec(pattern=pattern, **{name: getattr(trunk, name) for name in free})


# ---------------------------------------------------------------------------------------------- ViT


def with_names(config: Mapping[str, Any], names: Iterable[str]) -> dict:
    """Completes a config.json by what only the weights tell: whether there is a pooler."""
    return {**config, "add_pooling_layer": "pooler.dense.weight" in names}


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `ViTConfig`."""
    kind = architecture(config, "ViTModel", _CLASSIFIER)
    read = section(config, "", _SETTINGS)
    require(config, dict(pooler_output_size=read["hidden_size"]))
    head = dict(embed_dim=len(labels(config)), projection_bias=True) if kind == _CLASSIFIER else {}
    if not head and config.get("add_pooling_layer", True):
        head = dict(pooler=True)
    image = presets.image_tower(
        *sizes(read), patch_size=read["patch_size"], style="vit", embed=dict(image_size=read["image_size"]),
        **layer_settings(read, "attention_probs_dropout_prob"),
    )  # fmt: skip
    return presets.dual_tower(**{IMAGE: presets.with_head(image, "pooled", **head)})


def labels(config: Mapping[str, Any], classifier: str = _CLASSIFIER) -> tuple[str, ...]:
    """Class names of a classifier's config.json; () for another model."""
    return labels_of(config) if (config.get("architectures") or ("",))[0] == classifier else ()


def label_settings(classes: int) -> dict:
    """Keys of a config.json that name so many classes by their numbers; none for no classifier."""
    names = {str(i): f"LABEL_{i}" for i in range(classes)}
    return dict(id2label=names, label2id={name: int(i) for i, name in names.items()}) if names else {}


def _tower(spec: ModelSpec) -> TowerSpec:
    tower = spec.towers.get(IMAGE)
    pooled = tower.pooled if tower else None
    if pooled and pooled.embed_dim:
        own = dict(embed_dim=pooled.embed_dim, projection_bias=True)
    else:
        own = dict(pooler=bool(pooled and pooled.pooler))
    return check_tower(spec, _CLASSIFIER if "embed_dim" in own else "ViTModel", embed={}, layer={}, pool="cls", **own)


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `ViTModel` or `ViTForImageClassification` that `spec` describes."""
    tower = _tower(spec)
    width, classes = tower.width, tower.embed_dim
    prefix = "vit." if classes else ""
    rows = [*patch_entries(prefix, tower), *_layers(prefix, tower)]
    rows += norm(f"{prefix}layernorm", f"{IMAGE}/trunk/final_norm", width)
    if tower.pooled.pooler:
        rows += linear("pooler.dense", f"{IMAGE}/pooler", width, width)
    if classes:
        rows += linear("classifier", f"{IMAGE}/projection", width, classes)
    return rows


def _layers(prefix: str, tower: TowerSpec) -> Iterator[Entry]:
    width, inner = tower.width, tower.trunk.pattern[0][1].hidden or 4 * tower.width
    attention, mlp = f"{IMAGE}/trunk/layers/0/0", f"{IMAGE}/trunk/layers/0/1"
    for i in range(tower.trunk.depth):
        layer = f"{prefix}encoder.layer.{i}"
        yield from norm(f"{layer}.layernorm_before", f"{attention}/norm", width, i)
        yield from attention_entries(layer, attention, width, i)
        yield from norm(f"{layer}.layernorm_after", f"{mlp}/norm", width, i)
        yield from linear(f"{layer}.intermediate.dense", f"{mlp}/mlp/fc1", width, inner, layer=i)
        yield from linear(f"{layer}.output.dense", f"{mlp}/mlp/fc2", inner, width, layer=i)


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    tower = _tower(spec)
    size, patch = tower.embed.image_size, tower.embed.patch_size
    own = encoder_config(tower.trunk, IMAGE)
    own["attention_probs_dropout_prob"] = own.pop("attention_dropout")
    return dict(
        architectures=[_CLASSIFIER if tower.embed_dim else "ViTModel"], model_type="vit", **own,
        **label_settings(tower.embed_dim),
        image_size=size, patch_size=patch, num_channels=3, qkv_bias=True,
        hidden_dropout_prob=0.0, pooler_act="tanh", pooler_output_size=tower.width,
    )  # fmt: skip


def is_image_tower(spec: ModelSpec) -> bool:
    """Whether a spec is one tower over image patches, pooled at its class token."""
    return list(spec.towers) == [IMAGE] and spec.towers[IMAGE].pool == "cls"


def gated(spec: ModelSpec) -> bool:
    """Whether the layers have LayerScale."""
    return spec.towers[IMAGE].trunk.pattern[0][0].gate == "layerscale"


VIT = Family(
    model_type="vit", architecture="ViTModel", model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: is_image_tower(spec) and not gated(spec),
    labels=labels, with_names=with_names, image_processor="BitImageProcessor",
)  # fmt: skip
