"""A task: everything that a config decides about a run, built and checked before any device time is spent."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.modalities import Image, Inputs, Label
from xmodal.building import build_model, build_objectives, parameter_shapes
from xmodal.config import ConfigError, did_you_mean
from xmodal.distributed.mesh import num_batch_shards
from xmodal.distributed.sharding import shardings
from xmodal.evaluation import EvalResult
from xmodal.evaluation.opening import open_evaluators
from xmodal.live import Live
from xmodal.models.model import ModelSpec
from xmodal.objectives import Objective
from xmodal.objectives.providers.base import NOTHING, Provider
from xmodal.paths import flatten_paths
from xmodal.reporting.bootstrap import METHODS
from xmodal.reporting.weights_and_biases import library
from xmodal.training.durations import Pace, to_steps
from xmodal.training.losses import Losses
from xmodal.training.optimizer import OptimizerPlan, check_pattern, further_optimizers, make_optimizer
from xmodal.training.schedules import learning_rate
from xmodal.training.settle import resolve, settle_objectives
from xmodal.training.step import init_state, make_step


@dataclasses.dataclass(frozen=True)
class Task:
    """A run's model, objectives, optimizer and evaluators on one mesh.

    Attributes:
      config: the config with everything that it left to the data or the tokenizer filled in.
      mesh: devices.
      inputs: of the samples, each text with its tokenizer.
      losses: model, objectives and providers.
      plan: optimizer.
      schedule: learning rate by step.
      total_steps: length of the run.
      epoch_size: training samples of one epoch.
      pace: samples of its steps.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    inputs: Inputs
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

    @property
    def parameters(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of all parameters, by path."""
        return flatten_paths(parameter_shapes(self.losses.model, self.losses.objectives))

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
        several = dict(captions=max((text.num_items for text in self.inputs.texts.values()), default=1))
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
                self.config, Live(self.losses.model, self.config, self.mesh, self.inputs)
            ).items()
        }


def build_task(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    inputs: Inputs,
    epoch_size: int,
    providers: Mapping[str, Provider] = NOTHING,
    pace: Pace | None = None,
) -> Task:
    """Builds a task; every error of a setting is raised here, but for those that `open_providers` raises.

    Args:
      config: a checked config.
      mesh: devices.
      inputs: of the samples, each text with its tokenizer.
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
    config, losses, params = abstract_params(config, mesh, inputs, providers)
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
    return Task(config, mesh, inputs, losses, plan, schedule, total, epoch_size, pace)


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
    inputs: Inputs,
    providers: Mapping[str, Provider] = NOTHING,
) -> tuple[ConfigDict, Losses, dict]:
    """Returns the resolved config, model and objectives, and the shapes of their parameters; nothing is allocated.

    Raises:
      ConfigError: as `build_task`, as far as data and optimizer are not asked.
    """
    config = resolve(config, inputs)
    facts = {name: fact for provider in providers.values() for name, fact in provider.facts.items()}
    settle_objectives(config, lambda cls, entry: cls.settle_facts(entry, facts))
    losses = dataclasses.replace(build_losses(config, mesh, inputs), providers=providers)
    params = parameter_shapes(losses.model, losses.objectives)
    for name, objective in losses.objectives.items():
        check_pattern(objective.trains, list(flatten_paths(params)), f"objectives.{name}.trains")
    return config, losses, params


def build_losses(config: ConfigDict, mesh: jax.sharding.Mesh, inputs: Inputs) -> Losses:
    """Builds model and objectives of a resolved config, and checks that a run can train them together."""
    _check_inputs(inputs)
    model = build_model(config)
    objectives = build_objectives(config, model.spec)
    if not objectives:
        raise ConfigError("objectives: a run needs at least one, such as dict(type='softmax')")
    for name, objective in objectives.items():
        if objective.needs_labels:
            _check_labels(inputs, model.spec, objective.tower, f"objectives.{name}")
    _check_mixing(config, inputs, objectives, mesh)
    _check_items(inputs, model.spec, objectives)
    return Losses(model, objectives, inputs.on_device, mesh)


def _check_inputs(inputs: Inputs) -> None:
    try:
        for modality in inputs.values():
            modality.check(device=True)
    except DataError as error:
        raise ConfigError(str(error)) from None


def _check_labels(inputs: Inputs, spec: ModelSpec, tower: str, where: str) -> None:
    label = next(iter(inputs.of_type(Label.type).values()), None)
    if label is None:
        raise ConfigError(f"{where} needs the classes of the samples: add one to data.inputs, such as "
                          "label=dict(type='label', field='kind', classes=('cat', 'dog'))")  # fmt: skip
    width = spec.towers[tower].embed_dim
    if width != label.number:
        raise ConfigError(f"{where}: {label.where} has {label.number} classes, and model.towers.{tower}.heads.pooled."
                          f"embed_dim is {width}; make them agree")  # fmt: skip


def _check_mixing(
    config: ConfigDict, inputs: Inputs, objectives: Mapping[str, Objective], mesh: jax.sharding.Mesh
) -> None:
    mixed = next((image for image in inputs.of_type(Image.type).values() if image.mixup or image.cutmix), None)
    if mixed is None:
        return
    for name, objective in objectives.items():
        if not objective.takes_mixed:
            raise ConfigError(
                f"objectives.{name} needs images that show one sample each, and {mixed.where}.mixup={mixed.mixup}, "
                f"cutmix={mixed.cutmix} mix two; set both to 0"
            )
    rows = config.batch_size // (config.accumulation * num_batch_shards(mesh))
    if rows % 2:
        raise ConfigError(
            f"{mixed.where}.mixup and cutmix mix neighbours, so each device needs an even number of rows of a "
            f"micro-batch, not {rows} (batch_size={config.batch_size}, accumulation={config.accumulation})"
        )


def _check_items(inputs: Inputs, spec: ModelSpec, objectives: Mapping[str, Objective]) -> None:
    """Several items of a sample are rows of their own, so their input has more rows than the others."""
    several = next((modality for modality in inputs.values() if modality.num_items > 1), None)
    if several is None:
        return
    where = f"{several.where}.num_items={several.num_items}"
    if one := [name for name, objective in objectives.items() if not objective.takes_captions]:
        raise ConfigError(f"objectives.{one[0]} takes one caption of a sample, and {where}; set it to 1")
    for name, objective in objectives.items():
        first, second = (getattr(spec.towers[tower].embed, "input", "") for tower in objective.between)
        if first == several.name or second != several.name:
            raise ConfigError(f"objectives.{name}.between={objective.between}: with {where} the tower that reads "
                              f"{several.name!r} comes second")  # fmt: skip
    if wired := [name for name, tower in spec.towers.items() if tower.wired]:
        raise ConfigError(
            f"{where} needs towers without wiring, and model.towers.{wired[0]} reads or attends to others"
        )
