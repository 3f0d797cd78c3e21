"""Folders of Hugging Face transformers, of every family that `xmodal.interop` has a table of."""

from collections.abc import Callable
from pathlib import Path

from data_pipelines.modalities import Label
from xmodal.interop import preprocessing
from xmodal.interop.huggingface import family_of
from xmodal.interop.tables import InteropError
from xmodal.interop.weights import open_weights
from xmodal.stored.base import CONFIG, WEIGHTS, Choice, Kind, Stored, checked
from xmodal.stored.converted import converted, square_side


def _holds(path: Path) -> bool:
    return (path / CONFIG).is_file() and "model_type" in preprocessing.read_json(path / CONFIG)


def _open(path: Path, choice: Choice, open_other: Callable) -> Stored:
    del choice, open_other
    config = preprocessing.read_json(path / CONFIG)
    try:
        family = family_of(config)
        if family.with_names:
            config = family.with_names(config, open_weights(path, WEIGHTS))
        model = family.model_config(config)
    except InteropError as error:
        raise InteropError(f"{path / CONFIG}: {error}") from None
    data = preprocessing.read_processor(path) if family.image_processor else None
    if family.any_size:
        embed = model.towers.image.embed
        with embed.ignore_type():  # a pair of sides may become one
            embed.image_size = preprocessing.shown_size(data, embed.image_size)
    if family.packed:
        image = lambda embed: preprocessing.from_packing_processor(data, embed.patch_size, str(path))
    else:
        image = lambda embed: preprocessing.from_processor(data, square_side(embed, path), str(path))
    stored = converted(path, path, WEIGHTS, family, model, image if data else None)
    if family.labels and (names := family.labels(config)):
        stored.config.objectives = dict(classification=dict(type="classification", tower="image", weight=1.0))
        stored.config.data.inputs.label = Label(name="label", classes=names).entry()
    if any(tower.head == "masked" for tower in stored.spec.towers.values()):
        stored.config.objectives = dict(masked=dict(type="masked_text", weight=1.0))
    if family.check_marks and stored.tokenizer is not None:
        try:
            family.check_marks(config, stored.tokenizer)
        except InteropError as error:
            raise InteropError(f"{path / CONFIG}: {error}") from None
    return checked(stored)


KIND = Kind("hf", "a Hugging Face folder (config.json with model_type)", _holds, _open, prefixed=True)
