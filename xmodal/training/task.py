"""A task: everything that a config decides about a run, built and checked before any device time is spent."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.images.device import check_augmentation, preprocess_batch
from data_pipelines.images.mix import mix_images
from data_pipelines.text.tokenizers import Tokenizer
from xmodal import keys as key_tools
from xmodal.config import ConfigError, did_you_mean, make_spec
from xmodal.distributed.mesh import num_batch_shards
from xmodal.distributed.sharding import shardings
from xmodal.evaluation import EVALUATORS, EvalContext, EvalResult
from xmodal.finite import NotFinite, check_metrics, check_params
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives import OBJECTIVES, Objective
from xmodal.objectives.providers.base import NOTHING, Provider
from xmodal.paths import flatten_paths
from xmodal.reporting.bootstrap import METHODS
from xmodal.reporting.weights_and_biases import library
from xmodal.training.durations import Pace, to_steps
from xmodal.training.losses import Losses
from xmodal.training.optimizer import OptimizerPlan, check_pattern, further_optimizers, make_optimizer
from xmodal.training.schedules import learning_rate
from xmodal.training.settle import resolve, settle_objectives
from xmodal.training.step import init_params, init_state, make_step

_REGISTERED = " One of a project's own is known after its module is imported: `xmodal --import MODULE COMMAND`"


@dataclasses.dataclass(frozen=True)
class Task:
    """A run's model, objectives, optimizer and evaluators on one mesh.

    Attributes:
      config: the config with everything that it left to the data or the tokenizer filled in.
      mesh: devices.
      tokenizer: of the text.
      losses: model, objectives and providers.
      plan: optimizer.
      schedule: learning rate by step.
      total_steps: length of the run.
      epoch_size: training samples of one epoch.
      pace: samples of its steps.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    losses: Losses
    plan: OptimizerPlan
    schedule: Callable
    total_steps: int
    epoch_size: int
    pace: Pace

    @property
    def batch_size(self) -> int:
        """Samples of one optimizer step."""
        return self.config.batch_size

    @property
    def total_samples(self) -> int:
        """Samples that the run sees from its start to its end."""
        return self.pace.samples_at(self.total_steps)

    def steps(self, duration: str | int, where: str) -> int:
        """Converts a duration of the config to steps."""
        return to_steps(
            duration,
            batch_size=self.batch_size,
            epoch_size=self.epoch_size,
            total_steps=self.total_steps,
            where=where,
        )

    def init(self, key: jax.Array) -> dict:
        """Returns a fresh train state."""
        return init_state(self.losses, self.plan, key, ema=bool(self.config.optimizer.ema))

    def abstract_state(self) -> dict:
        """Returns the train state's shapes, types and shardings, without allocating it."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        placed = shardings(shapes, self.mesh, self.config.mesh.rules)
        return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)

    def init_sharded(self, abstract_state: dict) -> dict:
        """Creates the state of step 0 directly in its shards; it never exists whole on one device."""
        placed = jax.tree.map(lambda s: s.sharding, abstract_state)
        return jax.jit(self.init, out_shardings=placed)(jax.random.key(self.config.seed))

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Providers by name, in the order in which a step asks them."""
        return self.losses.providers

    @property
    def frozen(self) -> dict:
        """Frozen parameters that the step takes: {provider: params}, of those that have some."""
        return {name: provider.params for name, provider in self.providers.items() if provider.params}

    def compile_step(self, abstract_state: dict) -> Callable[[dict, Mapping, Mapping], tuple[dict, dict]]:
        """Returns the jitted step (state, batch, frozen) -> (state, metrics); the state given to it is consumed."""
        step = make_step(
            self.losses, self.plan, self.schedule, seed=self.config.seed, accumulation=self.config.accumulation,
            ema=self.config.optimizer.ema,
        )  # fmt: skip
        placed = jax.tree.map(lambda s: s.sharding, abstract_state)
        return jax.jit(step, donate_argnums=0, out_shardings=(placed, None))

    def chance_losses(self) -> dict[str, float]:
        """Loss of a model that knows nothing, by objective."""
        spec = self.losses.model.spec
        several = dict(captions=self.config.data.text.captions)
        own = lambda o: o.chance_loss(self.batch_size, spec, **(several if o.takes_captions else {}))
        return {name: own(objective) for name, objective in self.losses.objectives.items()}

    def max_logit_scales(self) -> dict[str, float]:
        """Bounds of the inverse temperatures, of the objectives that have one."""
        objectives = self.losses.objectives.items()
        return {name: o.max_logit_scale for name, o in objectives if hasattr(o, "max_logit_scale")}

    def evaluators(self) -> dict[str, tuple[int, Callable[[Mapping], EvalResult]]]:
        """Opens the held-out data; returns {name: (steps between evaluations, params -> result)}."""
        return {
            name: (self.steps(every, f"evals.{name}.every"), run)
            for name, (every, run) in open_evaluators(
                self.config, self.losses.model, self.mesh, self.losses.preprocess, self.tokenizer
            ).items()
        }


def build_task(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
    epoch_size: int,
    providers: Mapping[str, Provider] = NOTHING,
    pace: Pace | None = None,
) -> Task:
    """Builds a task; every error of a setting is raised here, but for those that `open_providers` raises.

    Args:
      config: a checked config.
      mesh: devices.
      tokenizer: of the text.
      epoch_size: training samples of one epoch.
      providers: of the run, from `open_providers`.
      pace: of a run that goes on; None where all steps have the config's batch size.

    Raises:
      ConfigError: naming the key and what was expected.
    """
    if config.optimizer.max_nonfinite < 1:
        raise ConfigError(f"optimizer.max_nonfinite={config.optimizer.max_nonfinite}: at least 1 step must be skipped")
    if config.log.intervals not in METHODS:
        hint = did_you_mean(config.log.intervals, METHODS)
        raise ConfigError(f"log.intervals={config.log.intervals!r}: expected {', '.join(METHODS)}.{hint}")
    if config.log.wandb:
        library(config.log.wandb)
    config, losses, params = abstract_params(config, mesh, tokenizer, providers)
    pace = pace or Pace.of(config.batch_size)
    units = dict(batch_size=config.batch_size, epoch_size=epoch_size, pace=pace)
    total = to_steps(config.schedule.total, **units, where="schedule.total")
    schedule = learning_rate(config.schedule, config.optimizer.lr, total, **units)
    losses = dataclasses.replace(losses, schedules=_weights(losses, total, units))
    further = {
        name: learning_rate(changed(config.schedule, other.schedule, f"optimizer.others.{name}.schedule"),
                            config.optimizer.lr if other.lr is None else other.lr, total, **units)
        for name, other in further_optimizers(config.optimizer).items()
    }  # fmt: skip
    plan = make_optimizer(config.optimizer, schedule, params, further)
    return Task(config, mesh, tokenizer, losses, plan, schedule, total, epoch_size, pace)


def changed(section: ConfigDict, values: Mapping, where: str) -> ConfigDict:
    """Returns a section of the config with some values replaced. Raises a ConfigError for a key that it lacks."""
    for key in values:
        if key not in section:
            raise ConfigError(f"{where}: unknown key {key!r}.{did_you_mean(key, section)}")
    section = section.copy_and_resolve_references()
    section.update(values)
    return section


def _weights(losses: Losses, total: int, units: Mapping) -> dict[str, Callable]:
    """Weights by step, of the objectives whose weight changes over the run."""
    schedules = {}
    for name, objective in losses.objectives.items():
        where = f"objectives.{name}.weight"
        steps = lambda duration, key, where=where: to_steps(
            duration, **units, total_steps=total, where=f"{where}.{key}"
        )
        try:
            schedules[name] = objective.schedule(steps)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
    return {name: schedule for name, schedule in schedules.items() if schedule is not None}


def abstract_params(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
    providers: Mapping[str, Provider] = NOTHING,
) -> tuple[ConfigDict, Losses, dict]:
    """Returns the resolved config, model and objectives, and the shapes of their parameters; nothing is allocated.

    Raises:
      ConfigError: as `build_task`, as far as data and optimizer are not asked.
    """
    config = resolve(config, tokenizer)
    facts = {name: fact for provider in providers.values() for name, fact in provider.facts.items()}
    settle_objectives(config, lambda cls, entry: cls.settle_facts(entry, facts))
    losses = dataclasses.replace(build_losses(config, mesh), providers=providers)
    params = jax.eval_shape(lambda key: init_params(losses, key), jax.random.key(0))
    for name, objective in losses.objectives.items():
        check_pattern(objective.trains, list(flatten_paths(params)), f"objectives.{name}.trains")
    return config, losses, params


def build_losses(config: ConfigDict, mesh: jax.sharding.Mesh) -> Losses:
    """Builds model and objectives of a resolved config."""
    try:
        model = Functional.build(make_spec(ModelSpec, config.model, where="model"))
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"model: {error}") from error
    objectives = {}
    for name, entry in config.objectives.items():
        objectives[name] = build_entry(OBJECTIVES, entry, f"objectives.{name}")
        for need in sorted(objectives[name].needs):
            _check_need(model.spec, need, f"objectives.{name}")
        if objectives[name].needs_labels:
            _check_labels(config, model.spec, objectives[name].tower, f"objectives.{name}")
        try:
            objectives[name].check(model.spec)
        except ValueError as error:
            raise ConfigError(f"objectives.{name}: {error}") from error
    if not objectives:
        raise ConfigError("objectives: a run needs at least one, such as dict(type='softmax')")
    _check_mixing(config, objectives, mesh)
    _check_captions(config, model.spec, objectives)
    return Losses(model, objectives, preprocessor(config.data.image), mesh)


def _check_labels(config: ConfigDict, spec: ModelSpec, tower: str, where: str) -> None:
    label = config.data.label
    if not label.field:
        raise ConfigError(f"{where} needs the classes of the samples: set data.label.field and data.label.classes")
    classes, width = len(label.classes) or label.count, spec.towers[tower].embed_dim
    if width != classes:
        raise ConfigError(f"{where}: data.label has {classes} classes, and model.towers.{tower}.embed_dim is {width}; "
                          "make them agree")  # fmt: skip


def _check_mixing(config: ConfigDict, objectives: Mapping[str, Objective], mesh: jax.sharding.Mesh) -> None:
    image = config.data.image
    if not (image.mixup or image.cutmix):
        return
    for name, objective in objectives.items():
        if not objective.takes_mixed:
            raise ConfigError(
                f"objectives.{name} needs images that show one sample each, and data.image.mixup={image.mixup}, "
                f"cutmix={image.cutmix} mix two; set both to 0"
            )
    rows = config.batch_size // (config.accumulation * num_batch_shards(mesh))
    if rows % 2:
        raise ConfigError(
            f"data.image.mixup and cutmix mix neighbours, so each device needs an even number of rows of a "
            f"micro-batch, not {rows} (batch_size={config.batch_size}, accumulation={config.accumulation})"
        )


def _check_captions(config: ConfigDict, spec: ModelSpec, objectives: Mapping[str, Objective]) -> None:
    """Several captions of a sample are rows of their own, so texts have more rows than images."""
    if config.data.text.captions == 1:
        return
    where = f"data.text.captions={config.data.text.captions}"
    if one := [name for name, objective in objectives.items() if not objective.takes_captions]:
        raise ConfigError(f"objectives.{one[0]} takes one caption of a sample, and {where}; set it to 1")
    for name, objective in objectives.items():
        first, second = (getattr(spec.towers[tower].embed, "input", "") for tower in objective.between)
        if first == "text" or second != "text":
            raise ConfigError(f"objectives.{name}.between={objective.between}: with {where} the tower that reads texts "
                              "comes second")  # fmt: skip
    if wired := [name for name, tower in spec.towers.items() if tower.reads or tower.attends]:
        raise ConfigError(
            f"{where} needs towers without wiring, and model.towers.{wired[0]} reads or attends to others"
        )


def _check_need(spec: ModelSpec, need: str, where: str) -> None:
    tower, _, what = need.partition(".")
    if tower not in spec.towers:
        known = ", ".join(spec.towers)
        raise ConfigError(f"{where}: there is no tower {tower!r}.{did_you_mean(tower, spec.towers)} Towers: {known}")
    if (what == "pooled" and spec.towers[tower].pool == "none") or (
        what in ("logits", "masked_logits") and spec.towers[tower].head == "none"
    ):
        setting = "pool" if what == "pooled" else "head"
        raise ConfigError(f"{where}: needs {need}, so model.towers.{tower}.{setting} must not be 'none'")


def build_entry(registry: Mapping[str, type], entry: ConfigDict, where: str) -> Any:
    """Builds a named entry of an open section: its `type` chooses the class, the other keys are its fields."""
    values = dict(entry)
    kind = values.pop("type", None)
    if kind not in registry:
        raise ConfigError(f"{where}.type: expected {', '.join(registry)}, got {kind!r}."
                          f"{did_you_mean(str(kind), registry) or _REGISTERED}")  # fmt: skip
    return make_spec(registry[kind], values, where=where)


def preprocessor(image: ConfigDict) -> Callable:
    """Returns (batch, keys or None) -> batch with normalised, and with keys augmented, float images."""
    check_augmentation(image)
    mixes = dict(mixup=image.mixup, cutmix=image.cutmix)

    def preprocess(batch: Mapping, keys: jax.Array | None) -> dict:
        batch = preprocess_batch(batch, keys, image)
        if keys is None or not any(mixes.values()) or "image" not in batch:
            return batch
        return {**batch, **mix_images(batch["image"], key_tools.fold(keys, "mix"), **mixes)}

    return preprocess


def _checked(evaluate: Callable[[Mapping], EvalResult], where: str) -> Callable[[Mapping], EvalResult]:
    """Returns an evaluation that refuses weights and metrics that are not finite, whatever the evaluator does."""

    def run(params: Mapping) -> EvalResult:
        try:
            check_params(params, "the model")
            result = evaluate(params)
            check_metrics(result.metrics)
        except NotFinite as error:
            raise NotFinite(f"{where}: {error}") from None
        return result

    return run


def open_evaluators(config: ConfigDict, model: Functional, mesh, preprocess: Callable, tokenizer: Tokenizer) -> dict:
    """Opens every evaluator of a config; returns {name: (every, params -> EvalResult)}.

    The functions raise NotFinite where weights, embeddings or metrics hold NaN or infinity.

    Raises:
      ConfigError: an entry, or its data, cannot be used with this model; the message names it.
    """
    context = EvalContext(model, mesh, preprocess, tokenizer, config.data)
    opened = {}
    for name, entry in config.evals.items():
        where = f"evals.{name}"
        evaluator = build_entry(EVALUATORS, entry, where)
        for need in sorted(evaluator.needs):
            _check_need(model.spec, need, where)
        try:
            opened[name] = (evaluator.every, _checked(evaluator.prepare(name, context), where))
        except DataError as error:
            raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    return opened
