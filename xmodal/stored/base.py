"""A model at rest, and what a kind of folder that holds one has to say."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.images.arrays import SHOWN
from data_pipelines.images.device import check_normalisation
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import build_entry, make_spec, to_json
from xmodal.finite import not_finite
from xmodal.interop.tables import InteropError, fail
from xmodal.models.embed import inputs_of
from xmodal.models.model import ModelSpec
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.base import Temperature
from xmodal.paths import flatten_paths

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model with everything that it needs to be used.

    Attributes:
      config: a complete config; `model`, `objectives`, `data.image` and `data.text` are those of the model.
      params: {tower: ..., "objectives": ...}, nested dicts of arrays.
      tokenizer: of its texts; None for a model of images alone.
      origin: where it was read.
      step: of the run that made it, or None.
    """

    config: ConfigDict
    params: dict
    tokenizer: Tokenizer | None
    origin: str
    step: int | None = None

    @property
    def spec(self) -> ModelSpec:
        """Description of the towers."""
        return make_spec(ModelSpec, self.config.model, where=f"{self.origin}: model")

    def temperature(self, *between: str) -> Temperature | None:
        """Returns the temperature that the model has learned between pooled embeddings; None where it has none.

        Args:
          between: towers that it must be of; none takes the first objective that has one.
        """
        for name, params in self.params.get("objectives", {}).items():
            entry = self.config.objectives[name]
            if between and set(between) != set(entry.get("between", ())):
                continue
            found = build_entry(OBJECTIVES, entry, f"{self.origin}: objectives.{name}").temperature(params)
            if found is not None:
                return found
        return None

    def fingerprint(self) -> str:
        """Returns what tells this model from all whose embeddings may differ: towers, weights, preparation."""
        config = json.loads(to_json(self.config))
        image = {key: config["data"]["image"][key] for key in SHOWN}
        image["squash"] = config["data"]["image"]["crop"] == "squash"
        if image["background"] == "white":  # as in fingerprints that are older than this option
            del image["background"]
        text = {key: config["data"]["text"][key] for key in ("length", "lower")}
        if (clean := config["data"]["text"]["clean"]) != "none":
            text["clean"] = clean
        model = {key: value for key, value in config["model"].items() if key != "dtype"}
        digest = hashlib.blake2b(json.dumps([model, image, text], sort_keys=True).encode(), digest_size=16)
        digest.update((self.tokenizer.json if self.tokenizer else "").encode())
        towers = {name: tree for name, tree in self.params.items() if name != "objectives"}
        for path, array in sorted(flatten_paths(towers).items()):
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of the weights that a folder holds are wanted; only a run has several.

    Attributes:
      step: checkpoint; None takes the newest good one.
      ema: averaged or trained weights; None takes those that the run's evaluations used.
    """

    step: int | None = None
    ema: bool | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of folder that holds a model; `xmodal.stored.KINDS` registers it.

    Attributes:
      name: also the prefix of "NAME:DIR", where `prefixed`.
      expects: what tells such a folder, for the message that none was found.
      holds: path -> whether the folder (or file) is of this kind; reads no weights.
      open: (path, choice, open_other) -> the model; `open_other` opens another place that the folder names.
      prefixed: "NAME:DIR" opens a folder as this kind, whatever `holds` says.
      chooses: its folders hold several weights, so that a `Choice` means something.
    """

    name: str
    expects: str
    holds: Callable[[Path], bool]
    open: Callable[[Path, Choice, Callable[[str], Stored]], Stored]
    prefixed: bool = False
    chooses: bool = False


def has_text(config: ConfigDict) -> bool:
    """Whether a tower of a config embeds tokens, which takes a tokenizer."""
    return any(getattr(tower.get("embed"), "type", "") == "token" for tower in config.model.towers.values())


def checked(stored: Stored) -> Stored:
    """Returns a model from a folder that other programs wrote, after the checks that each of them needs.

    Raises:
      InteropError: images could not be normalised, or weights are not finite.
    """
    try:
        check_normalisation(stored.config.data.image)
    except DataError as error:
        raise InteropError(f"{stored.origin}: {error}") from None
    fail(f"{stored.origin} holds weights that are NaN or infinite", not_finite(stored.params))
    if "image" not in inputs_of(stored.config.model.towers).values():
        stored.config.data.modalities = ("text",)
    return stored
