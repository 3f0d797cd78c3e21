"""CLIP with a vision transformer: Hugging Face's `CLIPModel`."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.interop import bert
from xmodal.interop.encoders import (
    IMAGE,
    OBJECTIVE,
    TEXT,
    check_towers,
    encoder_entries,
    patch_entries,
    text_config,
    text_entries,
    towers_of,
    vision_config,
)
from xmodal.interop.settings import Settings, architecture, part_of, section, shown
from xmodal.interop.tables import Entry, Family, InteropError, linear, norm
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec

# With the defaults of the reference's configuration classes.
SETTINGS = Settings(
    read=dict(projection_dim=512),
    idle=("text_config", "vision_config", "text_config_dict", "vision_config_dict", "logit_scale_init_value"),
)
_VISION = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224,
               patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5, attention_dropout=0.0)  # fmt: skip
_TEXT = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, vocab_size=49408,
             max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5,
             attention_dropout=0.0)  # fmt: skip
# `projection_dim` is read from the file itself; `dropout` is of the first files.
VISION = Settings(read=_VISION, fixed=dict(num_channels=3, dropout=0.0), idle=("projection_dim",))
TEXT_PART = Settings(read=_TEXT, fixed=dict(dropout=0.0), idle=("projection_dim",))
EOS, LEGACY_EOS = 49407, 2
# What the reference fixes.
IMAGE_TOWER = dict(pool="cls", embed=dict(class_token=True, position="learned", bias=False, pre_norm=True))
TEXT_TOWER = dict(pool="eos", embed=dict(position="learned", causal=True, mask_padding=True))


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `CLIPConfig`."""
    architecture(config, "CLIPModel")
    dim = section(config, "", SETTINGS)["projection_dim"]
    vision = section(config, "vision_config", VISION, dict_wins=True)
    return towers_of("clip", vision, section(config, "text_config", TEXT_PART, dict_wins=True), dim, dim)


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `CLIPModel` that `spec` describes."""
    image, text = check_towers(spec, "CLIPModel", IMAGE_TOWER, TEXT_TOWER)
    return [
        Entry("logit_scale", f"objectives/{OBJECTIVE}/logit_scale", ()),
        *text_entries(text, "text_projection", bias=False),
        *image_entries(image),
    ]


def image_entries(image: TowerSpec) -> Iterator[Entry]:
    """The image tower and its projection."""
    yield from patch_entries(image)
    yield from norm("vision_model.pre_layrnorm", f"{IMAGE}/embed/pre_norm", image.width)  # the reference's spelling
    yield from encoder_entries("vision_model.encoder", f"{IMAGE}/trunk", image.trunk)
    yield from norm("vision_model.post_layernorm", f"{IMAGE}/trunk/final_norm", image.width)
    yield from linear("visual_projection", f"{IMAGE}/projection", image.width, image.embed_dim, bias=False)


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    image, text = check_towers(spec, "CLIPModel", IMAGE_TOWER, TEXT_TOWER)
    dim = dict(projection_dim=image.embed_dim)
    return dict(
        architectures=["CLIPModel"], model_type="clip", **dim, logit_scale_init_value=2.6592,
        text_config=dict(model_type="clip_text_model", **text_config(text), **dim),
        vision_config=dict(model_type="clip_vision_model", **vision_config(image), **dim),
    )  # fmt: skip


def check_marks(config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Checks that the reference pools where the tower here does: at the end mark.

    The reference takes the first `eos_token_id`, or, when that is 2 as in OpenAI's files, the largest id of a text.
    """
    part, words = part_of(config, "text_config", dict_wins=True)
    stated = words.get("eos_token_id", EOS)
    if not isinstance(stated, int):
        raise InteropError(f"{part}.eos_token_id is {shown(stated)}, needs one id")
    last, rule = tokenizer.vocab_size - 1, f"the id {stated}"
    if stated == LEGACY_EOS:
        stated, rule = last, f"the largest id of a text (eos_token_id={LEGACY_EOS} means that; the last one is {last})"
    if stated != tokenizer.eos_id:
        raise InteropError(
            f"{part}.eos_token_id: this model pools a text at {rule}, and the end mark of tokenizer.json has the "
            f"id {tokenizer.eos_id}: texts would be embedded at another token. Take the model's own tokenizer"
        )


def with_vit(spec: ModelSpec) -> bool:
    """Whether a spec has an image and a text tower, and the image tower is pooled at its class token."""
    return {IMAGE, TEXT} <= spec.towers.keys() and spec.towers[IMAGE].pool == "cls"


CLIP = Family(
    model_type="clip", architecture="CLIPModel", model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: with_vit(spec) and not bert.is_post_norm(spec.towers[TEXT]),
    objective=dict(type="softmax"),
    check_marks=check_marks,
    ignored=frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}),
    image_processor="CLIPImageProcessor", processor="CLIPProcessor",
)  # fmt: skip
