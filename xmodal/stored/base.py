"""A model at rest, and what a kind of folder that holds one has to say."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.modalities import Inputs
from data_pipelines.modalities import inputs_of as open_inputs
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import build_entry, make_spec, to_json
from xmodal.finite import not_finite
from xmodal.interop.tables import InteropError, fail
from xmodal.models.embed import EMBEDDERS, inputs_of
from xmodal.models.model import ModelSpec
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.base import Temperature
from xmodal.paths import flatten_paths

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model with everything that it needs to be used.

    Attributes:
      config: a complete config; `model`, `objectives` and `data.inputs` are those of the model.
      params: {tower: ..., "objectives": ...}, nested dicts of arrays.
      tokenizers: of its texts, by input; {} where it reads none.
      origin: where it was read.
      step: of the run that made it, or None.
    """

    config: ConfigDict
    params: dict
    tokenizers: Mapping[str, Tokenizer]
    origin: str
    step: int | None = None

    @property
    def spec(self) -> ModelSpec:
        """Description of the towers."""
        return make_spec(ModelSpec, self.config.model, where=f"{self.origin}: model")

    @property
    def inputs(self) -> Inputs:
        """What it reads, each text with its tokenizer; inputs that no tower reads only where they are labels.

        Raises:
          InteropError: an option of an input cannot be used.
        """
        read = set(inputs_of(self.config.model.towers).values()) | self.tokenizers.keys()
        try:
            inputs = open_inputs(self.config.data)
        except DataError as error:
            raise InteropError(f"{self.origin}: {error}") from None
        kept = inputs.only(name for name, modality in inputs.items() if name in read or modality.labels)
        return kept.with_tokenizers(self.tokenizers)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the first of its texts; None where it reads none."""
        first = next((name for name in self.inputs.texts if name in self.tokenizers), None)
        return None if first is None else self.tokenizers[first]

    def with_tokenizer(self, tokenizer: Tokenizer) -> "Stored":
        """Returns a model of one text with another tokenizer."""
        return dataclasses.replace(self, tokenizers=dict.fromkeys(self.tokenizers, tokenizer))

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
        model = {key: value for key, value in config["model"].items() if key != "dtype"}
        read = set(inputs_of(self.config.model.towers).values())
        inputs = self.inputs.only(read).identity()
        digest = hashlib.blake2b(json.dumps([model, inputs], sort_keys=True).encode(), digest_size=16)
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
    kinds = ((tower.get("embed") or {}).get("type") for tower in config.model.towers.values())
    return any(EMBEDDERS[kind].takes == "ids" for kind in kinds if kind in EMBEDDERS)


def checked(stored: Stored) -> Stored:
    """Returns a model from a folder that other programs wrote, after the checks that each of them needs.

    Raises:
      InteropError: its inputs could not be prepared, or weights are not finite.
    """
    try:
        for name, modality in stored.inputs.items():
            if name in inputs_of(stored.config.model.towers).values():
                modality.check(device=True)
    except DataError as error:
        raise InteropError(f"{stored.origin}: {error}") from None
    fail(f"{stored.origin} holds weights that are NaN or infinite", not_finite(stored.params))
    return stored
