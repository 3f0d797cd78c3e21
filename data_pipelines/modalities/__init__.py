"""Kinds of data. A new one is one file here and one line in MODALITIES."""

from typing import Any

from data_pipelines.modalities.audio import Audio
from data_pipelines.modalities.base import ArraySpec, Modality, NoPart, Part, Random
from data_pipelines.modalities.image import Image
from data_pipelines.modalities.inputs import Inputs, open_inputs
from data_pipelines.modalities.label import Label
from data_pipelines.modalities.text import OtherText, Reread, Text

MODALITIES: dict[str, type[Modality]] = dict(image=Image, text=Text, label=Label, audio=Audio)

__all__ = [
    "MODALITIES", "ArraySpec", "Audio", "Image", "Inputs", "Label", "Modality", "NoPart", "OtherText", "Part", "Random",
    "Reread", "Text", "inputs_of",
]  # fmt: skip


def inputs_of(data: Any) -> Inputs:
    """Returns the inputs of the `data` section of a config. Raises DataError where an option is wrong."""
    return open_inputs(data.inputs, MODALITIES)
