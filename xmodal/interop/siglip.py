"""SigLIP: Hugging Face's `SiglipModel`."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.encoders import (
    IMAGE,
    OBJECTIVE,
    TEXT,
    check_towers,
    encoder_entries,
    hidden,
    patch_entries,
    text_config,
    text_entries,
    towers_of,
    vision_config,
    with_defaults,
)
from xmodal.interop.tables import Entry, Family, InteropError, linear, norm, packed_attention
from xmodal.models.model import ModelSpec

# Defaults of the reference's configuration classes.
_SHARED = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
               hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)  # fmt: skip
_VISION = _SHARED | dict(image_size=224, patch_size=16)
_TEXT = _SHARED | dict(vocab_size=32000, max_position_embeddings=64, projection_size=None)
# What the reference fixes.
_IMAGE_TOWER = dict(
    pool="map", embed_dim=0, embed=dict(class_token=False, position="learned", bias=True, pre_norm=False)
)
_TEXT_TOWER = dict(
    pool="last", projection_bias=True, embed=dict(position="learned", causal=False, mask_padding=False)
)  # fmt: skip


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `SiglipConfig`."""
    vision = with_defaults(config, "vision_config", _VISION)
    words = with_defaults(config, "text_config", _TEXT)
    if not vision.get("vision_use_head", True):
        raise InteropError("vision_config.vision_use_head is false: a SigLIP without its pooling head has no image "
                           "embedding. Import the whole model")  # fmt: skip
    return towers_of("siglip", vision, words, 0, words["projection_size"] or words["hidden_size"])


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `SiglipModel` that `spec` describes."""
    image, text = check_towers(spec, "SiglipModel", _IMAGE_TOWER, _TEXT_TOWER)
    return [
        Entry("logit_scale", f"objectives/{OBJECTIVE}/logit_scale", (1,), own=()),
        Entry("logit_bias", f"objectives/{OBJECTIVE}/logit_bias", (1,), own=()),
        *text_entries(text, "text_model.head", bias=True),
        *patch_entries(image),
        *encoder_entries("vision_model.encoder", f"{IMAGE}/trunk", image.trunk),
        *norm("vision_model.post_layernorm", f"{IMAGE}/trunk/final_norm", image.width),
        *map_head("vision_model.head", f"{IMAGE}/pool", image.width, hidden(image.trunk)),
    ]


def map_head(name: str, path: str, width: int, inner: int) -> Iterator[Entry]:
    """The attention pooling head."""
    yield Entry(f"{name}.probe", f"{path}/probe", (1, 1, width), own=(1, width))
    yield from packed_attention(f"{name}.attention", f"{path}/attn", width)
    yield from norm(f"{name}.layernorm", f"{path}/mlp/norm", width)
    yield from linear(f"{name}.mlp.fc1", f"{path}/mlp/mlp/fc1", width, inner)
    yield from linear(f"{name}.mlp.fc2", f"{path}/mlp/mlp/fc2", inner, width)


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    image, text = check_towers(spec, "SiglipModel", _IMAGE_TOWER, _TEXT_TOWER)
    words = text_config(text) | dict(projection_size=text.embed_dim)
    return dict(
        architectures=["SiglipModel"], model_type="siglip",
        text_config=dict(model_type="siglip_text_model", **words),
        vision_config=dict(model_type="siglip_vision_model", **vision_config(image)),
    )  # fmt: skip


SIGLIP = Family(
    model_type="siglip", architecture="SiglipModel", model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: {IMAGE, TEXT} <= spec.towers.keys() and spec.towers[IMAGE].pool == "map",
    objective=dict(type="sigmoid"),
    ignored=frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}),
    image_processor="SiglipImageProcessor", processor="SiglipProcessor",
)  # fmt: skip
