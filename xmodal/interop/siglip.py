"""SigLIP and SigLIP 2: Hugging Face's `SiglipModel`, and `Siglip2Model` for packed patches (NaFlex).

SigLIP 2 of a fixed resolution is published as `SiglipModel`, with the tokenizer of Gemma.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xmodal.interop.encoders import (
    IMAGE,
    OBJECTIVE,
    TEXT,
    check_towers,
    encoder_config,
    encoder_entries,
    hidden,
    patch_entries,
    text_config,
    text_entries,
    towers_of,
    vision_config,
)
from xmodal.interop.settings import Settings, architecture, section
from xmodal.interop.tables import LINEAR, Entry, Family, InteropError, linear, norm, packed_attention
from xmodal.models import presets
from xmodal.models.embed import NaflexSpec
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec

# With the defaults of the reference's configuration classes.
_SETTINGS = Settings(read={}, idle=("text_config", "vision_config"))
_SHARED = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
               hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, attention_dropout=0.0)  # fmt: skip
_PATCHES = Settings(read=_SHARED | dict(patch_size=16, vision_use_head=True), fixed=dict(num_channels=3))
_VISION = _PATCHES | dict(image_size=224)
_NAFLEX = _PATCHES | dict(num_patches=256)
_TEXT = Settings(read=_SHARED | dict(vocab_size=32000, max_position_embeddings=64, projection_size=None))
# The tokenizers of SigLIP 2: it was trained on lower-cased texts, which of these classes only the last one knows.
_CASED = frozenset({"GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer"})
# What the reference fixes.
_IMAGE_TOWER = dict(
    pool="map", embed_dim=0, embed=dict(class_token=False, position="learned", bias=True, pre_norm=False)
)
_NAFLEX_TOWER = dict(pool="map", embed_dim=0, embed={})
_TEXT_TOWER = dict(
    pool="last", projection_bias=True, embed=dict(position="learned", causal=False, mask_padding=False)
)  # fmt: skip


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `SiglipConfig`."""
    vision = _vision(config, "SiglipModel", _VISION)
    model = towers_of("siglip", vision, *_words(config))
    # So400m/14 at 384 pixels: its patches end six pixels before the picture does.
    model.towers.image.embed.ragged = bool(np.any(np.mod(vision["image_size"], vision["patch_size"])))
    return model


def naflex_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `Siglip2Config`."""
    vision = _vision(config, "Siglip2Model", _NAFLEX)
    patch, positions = vision["patch_size"], math.isqrt(vision["num_patches"])
    if positions**2 != vision["num_patches"] or not isinstance(patch, int):
        raise InteropError(
            f"vision_config.num_patches is {vision['num_patches']} and patch_size {patch}: needs the number of a "
            "square grid and one side"
        )
    model = towers_of("siglip", vision | dict(image_size=patch * positions), *_words(config))
    image = presets.naflex(model.towers.image.to_dict(), positions)
    return presets.dual_tower(image=image, text=model.towers.text)


def _vision(config: Mapping[str, Any], kind: str, settings: Settings) -> dict:
    """The complete `vision_config`."""
    architecture(config, kind)
    section(config, "", _SETTINGS)
    vision = section(config, "vision_config", settings)
    if not vision["vision_use_head"]:
        raise InteropError("vision_config.vision_use_head is false: a SigLIP without its pooling head has no image "
                           "embedding. Import the whole model")  # fmt: skip
    return vision


def _words(config: Mapping[str, Any]) -> tuple[dict, int, int]:
    """The complete `text_config`, and the widths of the projections of images (none) and texts."""
    words = section(config, "text_config", _TEXT)
    return words, 0, words["projection_size"] or words["hidden_size"]


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `SiglipModel` that `spec` describes."""
    image, text = check_towers(spec, "SiglipModel", _IMAGE_TOWER, _TEXT_TOWER)
    return _rows(image, text, patch_entries(image))


def naflex_table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `Siglip2Model` that `spec` describes."""
    image, text = check_towers(spec, "Siglip2Model", _NAFLEX_TOWER, _TEXT_TOWER, NaflexSpec)
    return _rows(image, text, _packed_entries(image))


def _rows(image: TowerSpec, text: TowerSpec, patches: Iterator[Entry]) -> list[Entry]:
    return [
        Entry("logit_scale", f"objectives/{OBJECTIVE}/logit_scale", (1,), own=()),
        Entry("logit_bias", f"objectives/{OBJECTIVE}/logit_bias", (1,), own=()),
        *text_entries(text, "text_model.head", bias=True),
        *patches,
        *encoder_entries("vision_model.encoder", f"{IMAGE}/trunk", image.trunk),
        *norm("vision_model.post_layernorm", f"{IMAGE}/trunk/final_norm", image.width),
        *map_head("vision_model.head", f"{IMAGE}/pool", image.width, hidden(image.trunk)),
    ]


def _packed_entries(tower: TowerSpec) -> Iterator[Entry]:
    """Patch map, a matrix in the reference, and positions."""
    name, path, width, side = "vision_model.embeddings", f"{IMAGE}/embed", tower.width, tower.embed.patch_size
    inputs = side * side * 3
    yield Entry(f"{name}.patch_embedding.weight", f"{path}/kernel", (width, inputs), LINEAR, own=(side, side, 3, width))
    yield Entry(f"{name}.patch_embedding.bias", f"{path}/bias", (width,))
    yield Entry(f"{name}.position_embedding.weight", f"{path}/position", (tower.embed.positions**2, width))


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
    return _config("siglip", vision_config(image), text)


def naflex_to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `naflex_table` accepts."""
    image, text = check_towers(spec, "Siglip2Model", _NAFLEX_TOWER, _TEXT_TOWER, NaflexSpec)
    patches = dict(num_patches=image.embed.positions**2, patch_size=image.embed.patch_size, num_channels=3)
    return _config("siglip2", encoder_config(image.trunk, IMAGE) | patches, text)


def _config(kind: str, vision: dict, text: TowerSpec) -> dict:
    words = text_config(text) | dict(projection_size=text.embed_dim)
    return dict(
        architectures=[f"{kind.capitalize()}Model"], model_type=kind,
        text_config=dict(model_type=f"{kind}_text_model", **words),
        vision_config=dict(model_type=f"{kind}_vision_model", **vision),
    )  # fmt: skip


def _fits(spec: ModelSpec, packed: bool) -> bool:
    image = spec.towers.get(IMAGE)
    return TEXT in spec.towers and image is not None and image.pool == "map" and packed == isinstance(
        image.embed, NaflexSpec
    )  # fmt: skip


SIGLIP = Family(
    model_type="siglip", architecture="SiglipModel", model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: _fits(spec, packed=False),
    objective=dict(type="sigmoid"),
    ignored=frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}),
    image_processor="SiglipImageProcessor", processor="SiglipProcessor", cased=_CASED,
)  # fmt: skip
SIGLIP2 = Family(
    model_type="siglip2", architecture="Siglip2Model", model_config=naflex_config, table=naflex_table,
    to_config=naflex_to_config, fits=lambda spec: _fits(spec, packed=True), packed=True,
    objective=dict(type="sigmoid"), ignored=SIGLIP.ignored,
    image_processor="Siglip2ImageProcessor", processor="Siglip2Processor", cased=_CASED,
    tokenizer_class="Siglip2Tokenizer",
)  # fmt: skip
