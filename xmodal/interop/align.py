"""ALIGN: Hugging Face's `AlignModel`, an EfficientNet without last convolution and a BERT read at its first token."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xmodal.interop import bert, efficientnet
from xmodal.interop.encoders import IMAGE, OBJECTIVE, TEXT
from xmodal.interop.networks import network_differences
from xmodal.interop.settings import Settings, architecture, section
from xmodal.interop.tables import Entry, Family, InteropError, counters, fail, linear
from xmodal.models import presets
from xmodal.models.efficientnet import EfficientNetSpec
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec

_MODEL = "AlignModel"
SMOOTHING = 0.1  # of the reference's loss; its configuration does not say it
_SETTINGS = Settings(read=dict(projection_dim=640), idle=("text_config", "vision_config", "temperature_init_value"))
_IGNORED = ("position_ids", "token_type_ids")


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of an `AlignConfig`."""
    architecture(config, _MODEL)
    dim = section(config, "", _SETTINGS)["projection_dim"]
    image = efficientnet.image_tower(section(config, "vision_config", efficientnet.SETTINGS), top=0)
    width = image["trunk"]["width"]
    if dim != width:
        raise InteropError(
            f"projection_dim is {dim}, and the image tower, which has no projection, "
            f"gives {width} channels: this model cannot compare its pictures and texts"
        )
    words = section(config, "text_config", bert.TEXT_PART)
    text = bert.text_tower(words, pooler=False, embed_dim=width)
    return presets.dual_tower(**{IMAGE: image, TEXT: text})


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `AlignModel` that `spec` describes, but for those that it never reads."""
    image, text = _towers(spec)
    return [
        Entry("temperature", f"objectives/{OBJECTIVE}/logit_scale", (), values=(_scale, lambda s: np.exp(-s))),
        *efficientnet.network_entries("vision_model.", image.embed),
        *bert.tower_entries("text_model.", text),
        *linear("text_projection", f"{TEXT}/projection", text.width, text.embed_dim),
    ]


def _scale(temperature: np.ndarray) -> np.ndarray:
    """The logarithm of the factor that a divisor is."""
    if not temperature > 0:
        raise InteropError(f"temperature is {temperature}: similarities cannot be divided by it")
    return -np.log(temperature)


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    image, text = _towers(spec)
    words = bert.text_config(text) | dict(model_type="align_text_model")
    return dict(
        architectures=[_MODEL], model_type="align", projection_dim=text.embed_dim, temperature_init_value=1.0,
        text_config=words,
        vision_config=dict(model_type="align_vision_model", **efficientnet.vision_config(image.embed)),
    )  # fmt: skip


def _towers(spec: ModelSpec) -> tuple[TowerSpec, TowerSpec]:
    missing = [f"missing: {name!r}" for name in (IMAGE, TEXT) if name not in spec.towers]
    fail(f"{_MODEL} needs the towers {IMAGE!r} and {TEXT!r}", missing)
    image, text = spec.towers[IMAGE], spec.towers[TEXT]
    problems = network_differences(image, EfficientNetSpec, efficientnet.FREE, dict(stem=32, top=0), embed_dim=0)
    problems += bert.projected_differences(text, image.width, bias=True)
    fail(f"{_MODEL} has no such model", problems)
    return image, text


def _constants(spec: ModelSpec) -> dict[str, np.ndarray]:
    """The text tower's pooler, which the reference has and does not read, and the counters of its BatchNorms."""
    width = spec.towers[TEXT].width
    pooler = {"weight": np.zeros((width, width), np.float32), "bias": np.zeros((width,), np.float32)}
    return {f"text_model.pooler.dense.{name}": array for name, array in pooler.items()} | counters(table(spec))


ALIGN = Family(
    model_type="align", architecture=_MODEL, model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: {IMAGE, TEXT} <= spec.towers.keys() and isinstance(spec.towers[IMAGE].embed, EfficientNetSpec),
    constants=_constants, any_size=True, objective=dict(type="softmax", logit_scale=0.0, label_smoothing=SMOOTHING),
    ignored=frozenset(f"text_model.embeddings.{name}" for name in _IGNORED),
    image_processor="EfficientNetImageProcessor", processor="AlignProcessor",
)  # fmt: skip
