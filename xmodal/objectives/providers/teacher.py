"""Frozen teachers: a stored model, or the average of the student's weights, that embeds each batch.

A teacher gives `<name>.<tower>` [batch, width] for towers of the student: unit vectors, of the same input. Its weights
are no part of the train state: they have no gradient, no optimizer state and no average, and no checkpoint holds them.
A run that continues reads them again, and refuses others than those it began with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.images.device import prepare_again
from data_pipelines.images.naflex import Naflex
from data_pipelines.stream.rows import OtherText
from data_pipelines.text.preparation import Preparation
from xmodal.config import ConfigError, make_spec
from xmodal.distributed.mesh import assert_same_data
from xmodal.distributed.sharding import place, shardings
from xmodal.models.embed import inputs_of
from xmodal.models.model import Functional, ModelSpec, embeds_alone
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.contrastive import normalize, of_all
from xmodal.objectives.providers.base import Opening, Provider, ProviderSpec


@dataclasses.dataclass(frozen=True)
class Teacher(Provider):
    """A model that is asked for its pooled embeddings.

    Attributes:
      name: of the provider.
      model: those of its towers that are asked, as pure functions.
      towers: {tower of the student: the teacher's tower for the same input}.
      weights: placed on the mesh; empty where it follows the student.
      image: how its images are prepared (`data.image`); None: as the student's.
      student: how the student's are.
      captions: for the stream; empty where it reads what the student reads.
      logit_scale: log of its inverse temperature, or None.
      digest: of its weights and preparation.
    """

    name: str
    model: Functional
    towers: Mapping[str, str]
    weights: Mapping = dataclasses.field(default_factory=dict)
    image: ConfigDict | None = None
    student: ConfigDict | None = None
    captions: Mapping[str, OtherText] = dataclasses.field(default_factory=dict)
    logit_scale: float | None = None
    digest: str = ""

    @property
    def gives(self) -> frozenset[str]:
        """An embedding for each tower of the student that is asked for."""
        return frozenset(f"{self.name}.{tower}" for tower in self.towers)

    @property
    def params(self) -> Mapping:
        """Its weights."""
        return self.weights

    @property
    def texts(self) -> Mapping[str, OtherText]:
        """The captions as it reads them."""
        return self.captions

    @property
    def fingerprint(self) -> str:
        """Of its weights and preparation."""
        return self.digest

    @property
    def facts(self) -> Mapping[str, Any]:
        """The widths of its embeddings, `<name>.<tower>.width`, and its temperature, `<name>.logit_scale`."""
        spec = self.model.spec.towers
        widths = {f"{self.name}.{tower}.width": spec[name].pooled_width for tower, name in self.towers.items()}
        return widths | {f"{self.name}.logit_scale": self.logit_scale}

    @property
    def summary(self) -> str:
        """Its size, and whether captions are encoded for it."""
        leaves = jax.tree.leaves(self.weights)
        reads = "its own tokens" if self.captions else "the same tokens"
        return f"{sum(a.size for a in leaves):,} frozen parameters, {reads}"

    def __call__(self, params, batch, outputs, keys, mesh):
        """See `Provider`."""
        seen = dict(batch)
        if self.image is not None and "image" in batch:
            seen["image"] = prepare_again(batch["image"], self.student, self.image)
        for name in self.captions:
            seen |= {"text": batch[name], "text_valid": batch[f"{name}_valid"]}
        found = self.model(params, seen, frozenset(f"{name}.pooled" for name in self.towers.values()))
        return {f"{self.name}.{tower}": normalize(found[f"{name}.pooled"]) for tower, name in self.towers.items()}


@dataclasses.dataclass(frozen=True)
class Average(Teacher):
    """The average of the student's weights, which the state has. Its temperature is the student's."""

    follows: ClassVar[str] = "ema"

    @property
    def facts(self) -> Mapping[str, Any]:
        """The widths of its embeddings; its temperature is learned with the student's."""
        return {name: value for name, value in super().facts.items() if value is not None}

    @property
    def summary(self) -> str:
        """Where its weights are."""
        return "the average of the weights"


@dataclasses.dataclass(frozen=True)
class StoredTeacher(ProviderSpec):
    """A frozen model: a run, an imported folder or "hf:DIR". It prepares images and texts as it was trained with them.

    Attributes:
      model: where it is stored.
      dtype: float32 | bfloat16; "" takes what it was trained in.
    """

    model: str
    dtype: str = ""

    def open(self, name: str, asked: frozenset[str], run: Opening) -> Teacher:
        """Reads the towers that are asked, and places their weights as the student's are placed."""
        where, stored = f"providers.{name}.model={self.model}", run.stored(self.model)
        given = stored.config.copy_and_resolve_references()
        given.model.dtype = self.dtype or given.model.dtype
        spec = make_spec(ModelSpec, given.model, where=f"{where}: model")
        inputs = embeds_alone(spec.towers)
        pairs = _pairs(run.config, inputs, _towers(name, asked), where)
        # These towers read no other one; what is not asked takes no memory.
        model = Functional.build(dataclasses.replace(spec, towers={own: spec.towers[own] for own in pairs.values()}))
        kinds = {inputs[own] for own in pairs.values()}
        if "image" in kinds and (Naflex.of(run.config.data.image) or Naflex.of(given.data.image)):
            raise ConfigError(
                f"{where}: teacher and student must both read square images, and data.image.naflex packs patches"
            )
        params = model.own(stored.params)
        placed = shardings(jax.eval_shape(lambda p: p, params), run.mesh, run.config.mesh.rules, must_match=False)
        fingerprint = stored.fingerprint()
        assert_same_data(where, fingerprint)
        return Teacher(
            name, model, pairs, jax.tree.map(lambda a, s: place(np.asarray(a, np.float32), s), params, placed),
            given.data.image, run.config.data.image, _texts(name, run, stored) if "text" in kinds else {},
            _logit_scale(stored), fingerprint,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AverageTeacher(ProviderSpec):
    """The average of the run's weights, `optimizer.ema`: ALBEF's momentum distillation (Li et al. 2021)."""

    def open(self, name: str, asked: frozenset[str], run: Opening) -> Average:
        """The run's model, whose weights the step takes from the state."""
        if not run.config.optimizer.ema:
            raise ConfigError(
                f"providers.{name} is the average of the weights, and optimizer.ema is 0: set a decay, such as 0.995"
            )
        return Average(name, run.model(), {tower: tower for tower in _towers(name, asked)})


def _towers(name: str, asked: frozenset[str]) -> list[str]:
    """Towers of the student for which something reads the embeddings of the teacher `name`."""
    return sorted(entry.removeprefix(f"{name}.") for entry in asked if entry.startswith(f"{name}."))


def _pairs(config: ConfigDict, inputs: Mapping[str, str], towers: list[str], where: str) -> dict[str, str]:
    """{tower of the student: the tower of the teacher that embeds the same by itself}, of `embeds_alone`."""
    pairs = {}
    for tower, kind in inputs_of(config.model.towers).items():
        if tower in towers:
            pairs[tower] = next((name for name, other in inputs.items() if other == kind), "")
            if not pairs[tower]:
                raise ConfigError(
                    f"{where} has no tower that embeds {kind}s alone, which model.towers.{tower} is to learn from; it "
                    f"embeds {' and '.join(f'{other}s' for other in inputs.values()) or 'nothing'}"
                )
    if missing := [tower for tower in towers if tower not in pairs]:
        raise ConfigError(f"a teacher is for towers that embed images or texts, and model.towers.{missing[0]} is none")
    return pairs


def _texts(name: str, run: Opening, stored: Any) -> dict[str, OtherText]:
    """How the stream prepares captions for the teacher; {} where they would be what the student reads."""
    ours, theirs = run.config.data.text, stored.config.data.text
    alike = (theirs.length, ()) == (ours.length, tuple(ours.buckets))
    left = Preparation.of(theirs).after(Preparation.of(ours))
    if stored.tokenizer.json == run.tokenizer.json and alike and left == Preparation():
        return {}
    return {f"{name}_text": OtherText(stored.tokenizer, theirs.length, left)}


def _logit_scale(stored: Any) -> float | None:
    """Log of the inverse temperature between the stored model's pooled embeddings; None where it learned none."""
    for name, params in stored.params.get("objectives", {}).items():
        if OBJECTIVES[stored.config.objectives[name].type].scales_pooled:
            return float(of_all(params)["logit_scale"])
    return None
