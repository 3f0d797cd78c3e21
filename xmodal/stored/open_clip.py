"""Folders of open_clip, as its `push_to_hf_hub` writes them; a file of their weights stands for the folder, too."""

from collections.abc import Callable
from pathlib import Path

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.interop import OPEN_CLIP, open_clip, preprocessing
from xmodal.interop.settings import bounded, shown
from xmodal.interop.tables import InteropError
from xmodal.interop.tokenizer_files import separator
from xmodal.stored.base import Choice, Kind, Stored, checked
from xmodal.stored.converted import converted, square_side


def _holds(path: Path) -> bool:
    return (path / open_clip.CONFIG).is_file()


def _open(path: Path, choice: Choice, open_other: Callable) -> Stored:
    del choice, open_other
    folder, name = (path, open_clip.WEIGHTS) if path.is_dir() else (path.parent, path.name)
    where = folder / open_clip.CONFIG
    if not where.is_file():
        raise InteropError(
            f"{folder} has no {open_clip.CONFIG}, which describes the model. open_clip's `push_to_hf_hub` writes it; "
            "published open_clip folders have it"
        )
    config = preprocessing.read_json(where)
    for key in ("model_cfg", "preprocess_cfg"):
        if not isinstance(config.get(key) or {}, dict):
            raise InteropError(f"{where}: {key} is {shown(config[key])}, needs an object")
    bounded(config.get("model_cfg"), f"{where}: model_cfg")
    kind = open_clip.kind_of(config.get("model_cfg") or {})
    if kind not in OPEN_CLIP:
        raise InteropError(f"{where}: a model with {kind} towers cannot be converted: known are {', '.join(OPEN_CLIP)}")
    try:
        model = OPEN_CLIP[kind].model_config(config["model_cfg"])
    except KeyError as error:
        raise InteropError(f"{where}: model_cfg has no {error}") from None
    except InteropError as error:
        raise InteropError(f"{where}: {error}") from None
    preprocess = config.get("preprocess_cfg") or {}
    image = lambda embed: preprocessing.from_open_clip(preprocess, square_side(embed, folder), str(where))

    def texts(tokenizer: Tokenizer) -> tuple[Tokenizer, dict]:
        try:
            return open_clip.read_texts(config["model_cfg"], tokenizer, separator(folder))
        except InteropError as error:
            raise InteropError(f"{where}: {error}") from None

    return checked(converted(path, folder, name, OPEN_CLIP[kind], model, image, texts))


KIND = Kind("open_clip", f"an open_clip folder ({open_clip.CONFIG})", _holds, _open, prefixed=True)
