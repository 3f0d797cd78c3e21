"""Chinese-CLIP (Yang et al. 2022): Hugging Face's `ChineseCLIPModel`, CLIP's ViT and a BERT read at its first token.

Both are projected without bias. The published text towers are Chinese RoBERTas, which are BERTs in everything here.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop import bert, clip
from xmodal.interop.encoders import IMAGE, OBJECTIVE, TEXT, encoder_differences, image_tower_of, vision_config
from xmodal.interop.settings import architecture, section
from xmodal.interop.tables import Entry, Family, fail, linear
from xmodal.models import presets
from xmodal.models.embed import PatchSpec
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec

_MODEL = "ChineseCLIPModel"


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `ChineseCLIPConfig`."""
    architecture(config, _MODEL)
    dim = section(config, "", clip.SETTINGS)["projection_dim"]
    image = image_tower_of("clip", section(config, "vision_config", clip.VISION, dict_wins=True), dim)
    words = section(config, "text_config", bert.TEXT_PART, dict_wins=True)
    text = bert.text_tower(words, pooler=False, embed_dim=dim, projection_bias=False)
    return presets.dual_tower(**{IMAGE: image, TEXT: text})


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `ChineseCLIPModel` that `spec` describes."""
    image, text = _towers(spec)
    return [
        Entry("logit_scale", f"objectives/{OBJECTIVE}/logit_scale", ()),
        *bert.tower_entries("text_model.", text),
        *linear("text_projection", f"{TEXT}/projection", text.width, text.embed_dim, bias=False),
        *clip.image_entries(image),
    ]


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    image, text = _towers(spec)
    dim = dict(projection_dim=image.embed_dim)
    words = bert.text_config(text) | dict(model_type="chinese_clip_text_model")
    return dict(
        architectures=[_MODEL], model_type="chinese_clip", **dim, logit_scale_init_value=2.6592,
        text_config=words,
        vision_config=dict(model_type="chinese_clip_vision_model", **vision_config(image), **dim),
    )  # fmt: skip


def _towers(spec: ModelSpec) -> tuple[TowerSpec, TowerSpec]:
    missing = [f"missing: {name!r}" for name in (IMAGE, TEXT) if name not in spec.towers]
    fail(f"{_MODEL} needs the towers {IMAGE!r} and {TEXT!r}", missing)
    image, text = spec.towers[IMAGE], spec.towers[TEXT]
    problems = encoder_differences(image, IMAGE, PatchSpec, clip.IMAGE_TOWER)
    problems += bert.projected_differences(text, image.embed_dim, bias=False)
    fail(f"{_MODEL} has no such model", problems)
    return image, text


CHINESE_CLIP = Family(
    model_type="chinese_clip", architecture=_MODEL, model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: clip.with_vit(spec) and bert.is_post_norm(spec.towers[TEXT]),
    objective=dict(type="softmax"),
    ignored=clip.CLIP.ignored | {"text_model.embeddings.token_type_ids"},
    image_processor="ChineseCLIPImageProcessor", processor="ChineseCLIPProcessor",
)  # fmt: skip
