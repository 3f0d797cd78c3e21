"""For recipes that fine-tune: everything that must agree with the weights is taken from where they are."""

from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.images.arrays import SHOWN
from xmodal.config import load_saved
from xmodal.interop.folder import CONFIG, TOKENIZER, parse
from xmodal.interop.tables import InteropError
from xmodal.models.embed import inputs_of
from xmodal.objectives import OBJECTIVES

_TEXT = ("length", "lower", "clean")


def continue_from(config: ConfigDict, where: str | Path) -> ConfigDict:
    """Sets `init_from`, model, objectives, tokenizer and what pictures and texts become; returns the config.

    A model that had providers, such as a teacher, goes on without them.

    Args:
      config: of a recipe, from `xmodal.configs.base`; the rest of it stays.
      where: an imported folder or a run.

    Raises:
      InteropError: there is no such folder, or it is a folder of another library: import it first.
    """
    kind, path = parse(where)
    if kind not in ("own", "run"):
        raise InteropError(
            f"{where}: bring it in first, `python -m xmodal import {kind}:{path} --out DIR`, and start from DIR"
        )
    saved = load_saved(path / CONFIG)
    config.init_from, config.model = str(where), saved.model
    alone = {name: OBJECTIVES[entry.type].alone(entry) for name, entry in saved.objectives.items()}
    config.objectives = {name: entry for name, entry in alone.items() if entry is not None}
    config.init_from_except += tuple(f"objectives/{name}/.*" for name, entry in alone.items() if entry is None)
    config.data.image.update({key: saved.data.image[key] for key in SHOWN if key in saved.data.image})
    config.data.image.naflex.update(saved.data.image.get("naflex", {}))
    whole = ("squash", "whole")
    if saved.data.image.crop in whole or config.data.image.crop in whole:
        config.data.image.crop = saved.data.image.crop
    if (path / TOKENIZER).is_file():
        config.data.text.update({key: saved.data.text[key] for key in _TEXT} | {"tokenizer": str(path / TOKENIZER)})
    config.data.label.update(saved.data.get("label", {}))
    if "image" not in inputs_of(saved.model.towers).values():
        config.data.modalities = ("text",)
    return config
