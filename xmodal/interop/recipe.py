"""For recipes that fine-tune: everything that must agree with the weights is taken from where they are."""

from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.modalities import MODALITIES
from data_pipelines.modalities.inputs import tokenizer_files
from xmodal.config import load_saved, refuse_old
from xmodal.interop.tables import InteropError
from xmodal.models.embed import inputs_of
from xmodal.objectives import OBJECTIVES
from xmodal.stored import project, run
from xmodal.stored.base import CONFIG
from xmodal.stored.opening import parse


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
    if kind not in (project.KIND.name, run.KIND.name):
        raise InteropError(
            f"{where}: bring it in first, `python -m xmodal import {kind}:{path} --out DIR`, and start from DIR"
        )
    saved = refuse_old(load_saved(path / CONFIG), str(path / CONFIG))
    config.init_from, config.model = str(where), saved.model
    alone = {name: OBJECTIVES[entry.type].alone(entry) for name, entry in saved.objectives.items()}
    config.objectives = {name: entry for name, entry in alone.items() if entry is not None}
    config.init_from_except += tuple(f"objectives/{name}/.*" for name, entry in alone.items() if entry is None)
    config.data.inputs = _inputs(config, saved, path)
    return config


def _inputs(config: ConfigDict, saved: ConfigDict, path: Path) -> dict:
    """Returns the inputs of a recipe as the model reads them; those that files hold only where a tower reads them."""
    read, taken = set(inputs_of(saved.model.towers).values()), {}
    for name, entry in saved.data.inputs.items():
        modality = MODALITIES[entry.type]
        if name in read or modality.labels:
            given = config.data.inputs.get(name, ConfigDict()).to_dict()
            taken[name] = {"type": entry.type} | given | modality.continued(entry.to_dict(), given)
    kept = {n: entry.to_dict() for n, entry in config.data.inputs.items() if not MODALITIES[entry.type].extensions}
    files = tokenizer_files(name for name, entry in saved.data.inputs.items() if MODALITIES[entry.type].tokenized)
    for name, file in files.items():
        if name in taken and (path / file).is_file():
            taken[name]["tokenizer"] = str(path / file)
    return kept | taken
