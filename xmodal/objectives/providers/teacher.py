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
from data_pipelines.modalities import Image, Inputs, OtherText
from data_pipelines.text.preparation import Preparation
from xmodal.config import ConfigError, make_spec
from xmodal.distributed.mesh import assert_same_data
from xmodal.distributed.sharding import place, shardings
from xmodal.models.embed import inputs_of
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.contrastive import normalize
from xmodal.objectives.providers.base import Opening, Provider, ProviderSpec


@dataclasses.dataclass(frozen=True)
class Teacher(Provider):
    """A model that is asked for its pooled embeddings.

    Attributes:
      name: of the provider.
      model: those of its towers that are asked, as pure functions.
      towers: {tower of the student: the teacher's tower for the same input}.
      weights: placed on the mesh; empty where it follows the student.
      image: its image input; None where it reads what the student reads.
      student: the student's input of that name.
      captions: for the stream; empty where it reads what the student reads.
      logit_scale: log of its inverse temperature, or None.
      digest: of its weights and preparation.
    """

    name: str
    model: Functional
    towers: Mapping[str, str]
    weights: Mapping = dataclasses.field(default_factory=dict)
    image: Image | None = None
    student: Image | None = None
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
        if self.image is not None and self.image.name in batch:
            seen[self.image.name] = prepare_again(batch[self.image.name], self.student, self.image)
        for name, how in self.captions.items():
            seen |= {how.of: batch[name], f"{how.of}_valid": batch[f"{name}_valid"]}
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
        reads = spec.alone
        pairs = _pairs(run.config, reads, _towers(name, asked), where)
        # These towers read no other one; what is not asked takes no memory.
        model = Functional.build(dataclasses.replace(spec, towers={own: spec.towers[own] for own in pairs.values()}))
        inputs = stored.inputs.only(reads[own] for own in pairs.values())
        image = next(iter(inputs.of_type(Image.type).values()), None)
        student = run.inputs[image.name] if image is not None else None
        if image is not None and (image.packing or student.packing):
            raise ConfigError(f"{where}: teacher and student must both read square images, and naflex packs patches")
        params = model.own(stored.params)
        placed = shardings(jax.eval_shape(lambda p: p, params), run.mesh, run.config.mesh.rules, must_match=False)
        fingerprint, temperature = stored.fingerprint(), stored.temperature()
        assert_same_data(where, fingerprint)
        return Teacher(
            name, model, pairs, jax.tree.map(lambda a, s: place(np.asarray(a, np.float32), s), params, placed),
            image, student, _texts(name, run.inputs, inputs), temperature.logit_scale if temperature else None,
            fingerprint,
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
    """{tower of the student: the tower of the teacher that embeds the same by itself}, of `ModelSpec.alone`."""
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


def _texts(provider: str, inputs: Inputs, others: Inputs) -> dict[str, OtherText]:
    """How the stream prepares captions for the teacher; {} where they would be what the student reads.

    Args:
      provider: its name.
      inputs: of the student.
      others: of the teacher.
    """
    found = {}
    for name, other in others.texts.items():
        text = inputs.texts[name]
        same = other.vocabulary.json == text.vocabulary.json and (other.length, ()) == (text.length, text.buckets)
        left = other.prepare.after(text.prepare)
        if not same or left != Preparation():
            found[f"{provider}_{name}"] = OtherText(other.vocabulary, other.length, left, name)
    return found
