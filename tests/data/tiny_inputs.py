"""Inputs for the tests of the pipeline: an image and its caption, and rules over them."""

from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.modalities import MODALITIES, Image, Inputs, Label, Text
from data_pipelines.modalities.inputs import open_inputs
from data_pipelines.rules import Rules
from data_pipelines.specs import as_entry, options
from xmodal.configs.base import get_config


def entries(image: dict | None = None, text: dict | None = None, **others: dict) -> dict[str, dict]:
    """Returns `data.inputs` of an image and its caption, with changes, and others."""
    return dict(image=dict(type="image") | (image or {}), text=dict(type="text") | (text or {})) | others


def make_inputs(image: dict | None = None, text: dict | None = None, images: bool = True, **others: dict) -> Inputs:
    """Returns the inputs of `entries`; without `images` those of texts alone."""
    named = entries(image, text, **others)
    return open_inputs(named if images else {name: e for name, e in named.items() if name != "image"}, MODALITIES)


def make_rules(group_key: str = "", *, keep: str = "", every_field: bool = False, **inputs: Any) -> Rules:
    """Returns rules over `make_inputs`."""
    return Rules(make_inputs(**inputs), group_key, keep=keep, every_field=every_field)


def make_image(**options: Any) -> Image:
    """Returns an image input."""
    return make_inputs(image=options)["image"]


def make_text(**options: Any) -> Text:
    """Returns a text input."""
    return make_inputs(text=options)["text"]


def make_label(**options: Any) -> Label:
    """Returns a label input."""
    return make_inputs(label=dict(type="label") | options)["label"]


def data_section(**inputs: Any) -> Any:
    """Returns the `data` section of a config whose samples have `entries`."""
    data = get_config().data
    data.inputs = entries(**inputs)
    return data


def image_section() -> ConfigDict:
    """Returns the options of an image input as a section of a config, which the converters of interop read."""
    image = make_image()
    return ConfigDict(as_entry(image) | dict(where=image.where))


class LooseImage(SimpleNamespace):
    """The options of an image input, to be changed one at a time."""

    def __init__(self):
        image = make_image()
        super().__init__(**{name: getattr(image, name) for name in options(Image)}, where=image.where)
        self.naflex = SimpleNamespace(**vars(self.naflex))

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def update(self, given: dict | None = None, **changes: Any) -> None:
        """Changes options; `naflex` in part."""
        changes |= given or {}
        vars(self.naflex).update(changes.pop("naflex", {}))
        vars(self).update(changes)
