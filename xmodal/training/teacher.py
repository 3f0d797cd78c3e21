"""A frozen teacher, a stored model or the average of the student's own weights, that says what it sees in each batch.

Its weights are no part of the train state: they have no gradient, no optimizer state and no average, and no checkpoint
holds them. A run that goes on reads them again, and refuses others than those it began with.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.images.device import prepare_again
from data_pipelines.modalities import Image, Inputs, OtherText
from data_pipelines.text.preparation import Preparation
from xmodal.config import ConfigError, build_entry, make_spec
from xmodal.distributed.mesh import assert_same_data
from xmodal.distributed.sharding import place, shardings
from xmodal.models.embed import inputs_of
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.base import Objective, TeacherFacts, taught
from xmodal.objectives.contrastive import normalize
from xmodal.stored.base import Stored
from xmodal.stored.opening import open_stored
from xmodal.training.settle import resolve

FOLLOWS = "ema"  # instead of a model: the average of the student's weights


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a run learns from.

    Attributes:
      model: those of its towers that are asked, as pure functions.
      towers: {tower of the student: the teacher's tower for the same input}.
      params: its weights, sharded as the student's are; None where it follows the student.
      image: its image input; None where it reads none.
      student: how the student's are.
      texts: its captions, for the stream; {} where it reads what the student reads.
      logit_scale: log of its inverse temperature, or None.
      fingerprint: of its weights and preparation.
    """

    model: Functional
    towers: dict[str, str]
    params: Mapping | None
    image: Image | None
    student: Image | None
    texts: Mapping[str, OtherText]
    logit_scale: float | None
    fingerprint: str

    @property
    def facts(self) -> TeacherFacts:
        """What objectives have to know."""
        spec = self.model.spec.towers
        widths = {student: spec[own].pooled_width for student, own in self.towers.items()}
        return TeacherFacts(widths, self.logit_scale, self.params is None)

    def __call__(self, params: Mapping, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the student's preprocessed batch with `teacher.<tower>`, unit vectors [batch, width], beside it."""
        seen = dict(batch)
        if self.params is not None and self.image is not None and self.image.name in batch:
            seen[self.image.name] = prepare_again(batch[self.image.name], self.student, self.image)
        for name, how in self.texts.items():
            seen |= {how.of: batch[name], f"{how.of}_valid": batch[f"{name}_valid"]}
        with jax.named_scope("teacher"):
            found = self.model(params, seen, frozenset(f"{own}.pooled" for own in self.towers.values()))
        say = lambda own: jax.lax.stop_gradient(normalize(found[f"{own}.pooled"]))
        return {**batch, **{taught(student): say(own) for student, own in self.towers.items()}}


def open_teacher(config: ConfigDict, mesh: jax.sharding.Mesh, inputs: Inputs) -> Teacher | None:
    """Opens what `config.teacher` names; None where no objective learns from a teacher.

    Args:
      config: of the run.
      mesh: where the weights go.
      inputs: of the student.

    Raises:
      ConfigError: there is no teacher where one is needed, it is not needed, or it does not fit.
    """
    where = config.teacher.model
    learners = {name: needs for name in config.objectives if (needs := _needs(config, name))}
    if not learners and where:
        raise ConfigError(
            f"teacher.model={where!r}, and no objective learns from it: add one of type distillation or "
            "feature_matching, or leave it out"
        )
    if not learners:
        return None
    towers = sorted({tower for needs in learners.values() for tower in needs})
    if not where:
        raise ConfigError(
            f"objectives.{next(iter(learners))} learns from a teacher: set teacher.model to a run, an imported folder "
            f'or "hf:DIR", or to "{FOLLOWS}" for the average of the run\'s own weights'
        )
    if where == FOLLOWS:
        return _average(config, inputs, towers)
    try:
        stored = open_stored(where)
    except ValueError as error:
        raise ConfigError(f"teacher.model={where}: {error}") from error
    return _stored(config, mesh, inputs, stored, towers)


def _needs(config: ConfigDict, name: str) -> tuple[str, ...]:
    entry = config.objectives[name]
    kind = OBJECTIVES.get(entry.get("type"))
    if kind is None or kind.teacher_needs is Objective.teacher_needs:  # what is wrong with others, others say
        return ()
    return build_entry(OBJECTIVES, entry, f"objectives.{name}").teacher_needs


def _average(config: ConfigDict, inputs: Inputs, towers: list[str]) -> Teacher:
    """The student's own model, whose weights the step takes from the state."""
    if not config.optimizer.ema:
        raise ConfigError(
            f'teacher.model="{FOLLOWS}" is the average of the weights, and optimizer.ema is 0: set a decay'
        )
    config = resolve(config, inputs)
    model = Functional.build(make_spec(ModelSpec, config.model, where="model"))
    return Teacher(model, {tower: tower for tower in towers}, None, None, None, {}, None, "")


def _stored(config: ConfigDict, mesh: jax.sharding.Mesh, inputs: Inputs, stored: Stored, towers: list[str]) -> Teacher:
    where, given = f"teacher.model={config.teacher.model}", stored.config.copy_and_resolve_references()
    given.model.dtype = config.teacher.dtype or given.model.dtype
    spec = make_spec(ModelSpec, given.model, where=f"{where}: model")
    reads = spec.alone
    pairs = _pairs(config, reads, towers, where)
    # These towers read no other one; what is not asked takes no memory.
    model = Functional.build(dataclasses.replace(spec, towers={own: spec.towers[own] for own in pairs.values()}))
    kinds, theirs = {reads[own] for own in pairs.values()}, stored.inputs
    image = next((own for name, own in theirs.of_type(Image.type).items() if name in kinds), None)
    student = inputs[image.name] if image is not None else None
    if image is not None and (image.packing or student.packing):
        raise ConfigError(f"{where}: teacher and student must both read square images, and naflex packs patches")
    texts = _texts(inputs, theirs, kinds)
    params = model.own(stored.params)
    placed = shardings(jax.eval_shape(lambda p: p, params), mesh, config.mesh.rules, must_match=False)
    fingerprint, temperature = stored.fingerprint(), stored.temperature()
    assert_same_data(where, fingerprint)
    return Teacher(
        model, pairs, jax.tree.map(lambda a, s: place(np.asarray(a, np.float32), s), params, placed),
        image, student, texts, temperature.logit_scale if temperature else None, fingerprint,
    )  # fmt: skip


def _pairs(config: ConfigDict, theirs: Mapping[str, str], towers: list[str], where: str) -> dict[str, str]:
    """{tower of the student: the tower of the teacher that embeds the same by itself}, from `ModelSpec.alone` of it."""
    pairs = {}
    for tower, kind in inputs_of(config.model.towers).items():
        if tower in towers:
            pairs[tower] = next((own for own, other in theirs.items() if other == kind), "")
            if not pairs[tower]:
                raise ConfigError(
                    f"{where} has no tower that embeds {kind}s alone, which model.towers.{tower} is to learn from; it "
                    f"embeds {' and '.join(f'{other}s' for other in theirs.values()) or 'nothing'}"
                )
    if missing := [tower for tower in towers if tower not in pairs]:
        raise ConfigError(f"a teacher is for towers that embed images or texts, and model.towers.{missing[0]} is none")
    return pairs


def _texts(inputs: Inputs, theirs: Inputs, read: set[str]) -> dict[str, OtherText]:
    """How the stream prepares captions for the teacher; {} where they would be what the student reads."""
    found = {}
    for name, other in theirs.texts.items():
        if name not in read:
            continue
        own = inputs.texts[name]
        same = other.vocabulary.json == own.vocabulary.json and (other.length, ()) == (own.length, own.buckets)
        left = other.prepare.after(own.prepare)
        if not same or left != Preparation():
            found[f"teacher_{name}"] = OtherText(other.vocabulary, other.length, left, name)
    return found
