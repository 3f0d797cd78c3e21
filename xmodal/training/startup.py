"""What a run says before its first step: devices, mesh, model, data, schedule, and the loss that guessing gives."""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.io.urls import without_secrets
from data_pipelines.modalities import Inputs, inputs_of
from data_pipelines.stream.contents import contents
from data_pipelines.stream.stream import Stream
from xmodal.config import ConfigError
from xmodal.distributed.sharding import format_sharding_table, sharding_table
from xmodal.interop.leaving import leaves_as, target
from xmodal.messages import program
from xmodal.models.batch_norm import STATISTICS
from xmodal.objectives.providers.base import Provider
from xmodal.paths import flatten_paths
from xmodal.reporting.batches import print_batch
from xmodal.reporting.flops import count_flops
from xmodal.reporting.formatting import compact, counted, number, percent, size
from xmodal.reporting.summary import print_summary, print_table
from xmodal.training.losses import Given
from xmodal.training.optimizer import Row
from xmodal.training.providers import host_inputs
from xmodal.training.task import Task

_TYPED = ("image", "caption", "root", "split")  # keys of a source that are options of data commands
_SHARP = " (a fine-tuned model begins above it: its temperature is already sharp)"
_FEW_STEPS, _FEW_EVALUATIONS = 50, 4  # of a fine-tuning run, below which it is told so


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Parameters by tower, bytes of the state on one device, and FLOPs of training on one sample."""

    parameters: dict[str, int]
    state_bytes_per_device: int
    flops_per_sample: float


def batch_inputs(task: Task) -> Inputs:
    """Returns the inputs of the batches of a run, the texts that providers ask for among them."""
    return host_inputs(task.inputs, task.providers)


def abstract_batch(task: Task, draws: Mapping[str, int] | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global host batch, without data; `draws` has the length of inputs with several, see `contents`."""
    found = contents(task.config.data, batch_inputs(task), task.batch_size, draws)
    return {array.name: jax.ShapeDtypeStruct(array.spec.shape, array.spec.dtype) for array in found}


def model_facts(task: Task, abstract: dict) -> ModelFacts:
    """Counts parameters, state bytes and FLOPs from shapes alone.

    FLOPs are those of one forward and backward pass without recomputation (three forward passes), and of the forward
    passes of providers, per sample; they are what MFU is measured against. Where batches have several lengths they are
    the mean of what is drawn.
    """
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    on_device = lambda s: math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize
    drawn = {name: modality.lengths() for name, modality in task.inputs.items()}
    draws = [dict(zip(drawn, some)) for some in itertools.product(*(lengths for lengths, _ in drawn.values()))]
    weights = [math.prod(some) for some in itertools.product(*(weights for _, weights in drawn.values()))]
    flops = [_step_flops(task, abstract["params"], abstract_batch(task, some)) for some in draws]
    return ModelFacts(
        parameters={part: count(tree) for part, tree in abstract["params"].items() if part != STATISTICS},
        state_bytes_per_device=sum(on_device(leaf) for leaf in jax.tree.leaves(abstract)),
        flops_per_sample=float(np.average(flops, weights=weights)) / task.batch_size,
    )


def _step_flops(task: Task, params: dict, batch: dict) -> float:
    losses, total = task.losses, lambda p, frozen, b: task.losses(p, b, None, Given(frozen))[0]
    frozen = {name: params if provider.follows else provider.params for name, provider in task.providers.items()}
    both = count_flops(total, params, frozen, batch)
    early = [name for name, late in losses.late.items() if not late]  # the others need passes of the model
    if not early:
        return 3.0 * both
    shown = lambda frozen, b: losses.ask(early, losses.preprocessed(b, None), {}, None, Given(frozen), {})[1]
    provided = count_flops(shown, frozen, batch)
    return 3.0 * (both - provided) + provided


def checkpoint_options(task: Task) -> dict[str, Any]:
    """The config's `checkpoint` section with its durations in steps.

    Raises:
      ConfigError: a duration is none, or no evaluator of the config gives the metric `best`.
    """
    options, sets = dict(task.config.checkpoint), [f"{e.type}/{name}/" for name, e in task.config.evals.items()]
    if options["best"] and not options["best"].startswith(tuple(sets)):
        raise ConfigError(
            f"checkpoint.best={options['best']!r} is no metric of this run's evaluations; theirs begin with "
            f"{', '.join(sets) or '(evals is empty)'}"
        )
    for key in ("every", "keep_every"):
        options[key] = task.steps(options[key], f"checkpoint.{key}")
    return options


def next_commands(config: ConfigDict, abstract: dict, workdir: Path) -> tuple[str, ...]:
    """What a user does with a finished run, a command each.

    Args:
      config: of the task: resolved.
      abstract: shapes of the state.
      workdir: the run folder.
    """
    to = target(config, flatten_paths(abstract["params"]))
    folder, name = shlex.quote(str(workdir)), workdir.resolve().name  # "." has no name
    export = f"{program()} export --workdir {folder} --to {to} --out {shlex.quote(f'exported/{name}')}"
    search = f"{program()} embed {_source_as_typed(config)} --model {folder} --out {shlex.quote(f'indexes/{name}')}"
    aligned = any("between" in objective for objective in config.objectives.values())  # its embeddings can be compared
    return (export, search) if aligned else (export,)


def _source_as_typed(config: ConfigDict) -> str:
    """The first source as arguments of a data command; SHARDS for one that those cannot name, such as a made one."""
    entry = next(iter(config.data.sources.values()), {})
    urls = entry.get("urls") or entry.get("dataset")
    if not urls:
        return "SHARDS"
    words = [urls] if isinstance(urls, str) else list(urls)
    words += ["--type", "tfds"] if "dataset" in entry else []
    for key in _TYPED:
        words += [f"--{key}", entry[key]] if entry.get(key) else []
    inputs, own = inputs_of(config.data), entry.get("templates")
    caption = inputs.caption
    if templates := own if own is not None else caption.templates if caption is not None else ():
        words += ["--template", templates[0][1]]
    return without_secrets(shlex.join([*words, *["--texts"] * (not inputs.stored)]))


def _data(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that say what is read and what of it is left out."""
    skipped = {reason: count for reason, count in summary["skipped"].items() if count}
    return {
        "data": f"{summary['samples']:,} samples ({summary['epoch_size']:,} per epoch) in "
        f"{counted(summary['shards'], 'shard')} of {size(summary['bytes'])}, {counted(summary['lanes'], 'lane')}",
        "left out": skipped,
        "readers": f"{counted(summary['threads'], 'thread')}, up to {size(summary['memory_bytes'])} of memory",
    }


def _print_sources(sources: Sequence[Mapping[str, Any]]) -> None:
    """Prints how several sources are mixed, and how often the run sees the samples of each."""
    rows = [
        [
            s["name"], f"{s['samples']:,}", f"{sum(s['left_out'].values()):,}", percent(s["share"]),
            number(s["epochs"]),
        ]
        for s in sources
    ]  # fmt: skip
    if len(sources) > 1:
        print_table("sources", ["source", "samples", "left out", "share at first", "times seen in this run"], rows)


def _provider(provider: Provider) -> str:
    """What a provider is, and the memory that its parameters take on one device."""
    leaves = jax.tree.leaves(provider.params)
    local = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)
    return f"{provider.summary}, {size(local)} per device" if leaves else provider.summary


def trained_how(rows: Sequence[Row]) -> list[list[object]]:
    """Returns a table of what is trained how; rows that would look alike are one."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        first, last = (float(np.atleast_1d(row.lr)[i]) for i in (0, -1))
        rate = f"{first:.3g}" if first == last else f"{first:.2g} to {last:.2g}"
        looks = (row.part, row.rule or "(default)", row.method, rate, f"{row.weight_decay:g}")
        counts = found.setdefault(looks, [0, 0])
        counts[0] += row.arrays
        counts[1] += row.params
    return [[part, rule, arrays, compact(size), *rest] for (part, rule, *rest), (arrays, size) in found.items()]


def _chance(task: Task) -> dict[str, str]:
    """The loss of guessing, by objective; of weights with a temperature the first loss is higher."""
    tuned, scaled = bool(task.config.init_from), task.max_logit_scales()
    losses = task.chance_losses().items()
    return {name: f"{loss:.3f}{_SHARP * (tuned and name in scaled)}" for name, loss in losses}


def _few_steps(task: Task) -> str:
    """Says that a fine-tuning run is too short to learn, or evaluated after nearly every step; "" of others."""
    config, total = task.config, task.total_steps
    if not config.init_from:
        return ""
    every = [task.steps(entry.get("every", "25%"), f"evals.{name}.every") for name, entry in config.evals.items()]
    often = total > _FEW_EVALUATIONS and any(0 < steps <= 2 for steps in every)
    if total >= _FEW_STEPS and not often:
        return ""
    evaluated = ", and an evaluation after nearly every one" if often else ""
    return (
        f"only {counted(total, 'step')}{evaluated}: lower batch_size (now {config.batch_size}) or lengthen "
        f"schedule.total (now {config.schedule.total})"
    )


def print_startup(
    task: Task,
    workdir: Path,
    stream: Stream,
    abstract: dict,
    facts: ModelFacts,
    start: int,
    changes: Sequence[str],
) -> None:
    """Prints the start-up summary, with what changed since the checkpoint, and what is trained and sharded how."""
    if jax.process_index():
        return
    config, devices = task.config, task.mesh.devices.flat
    epochs = task.total_samples / task.epoch_size
    kinds = f"{task.mesh.devices.size} x {devices[0].device_kind} ({devices[0].platform})"
    mesh = " x ".join(f"{axis} {size}" for axis, size in task.mesh.shape.items())
    towers = {name: compact(count) for name, count in facts.parameters.items()}
    rows = f"{task.batch_size}" + (f" in {config.accumulation} micro-batches" if config.accumulation > 1 else "")
    print_summary(
        f"xmodal · {workdir}",
        {
            "devices": f"{kinds}, {jax.process_count()} process{'es' if jax.process_count() > 1 else ''}",
            "mesh": mesh,
            "model": f"{compact(sum(facts.parameters.values()))} parameters, {config.model.dtype}",
            "towers": towers,
            "state": f"{size(facts.state_bytes_per_device)} per device",
            **_data(stream.summary()),
            "batch": rows,
            "providers": {name: _provider(provider) for name, provider in task.providers.items()},
            "schedule": f"{task.total_steps} steps = {number(epochs)} epochs = "
            f"{number(task.total_samples)} samples, {config.schedule.decay}",
            "optimizer": f"{config.optimizer.name}, peak learning rate {config.optimizer.lr:g}",
            "leaves as": leaves_as(config, flatten_paths(abstract["params"])),
            "chance loss": _chance(task),
            "note": _few_steps(task),
            "start": f"continues from step {start}" if start else "fresh",
            "changed": tuple(changes),
        },
    )
    print_batch(contents(config.data, batch_inputs(task), task.batch_size))
    _print_sources(stream.sources(task.total_samples))
    print_table(
        "what is trained how",
        ["part", "rule", "arrays", "parameters", "method", "lr x", "weight decay"],
        trained_how(task.plan.rows),
    )
    if task.mesh.devices.size > 1:
        placed = jax.tree.map(lambda s: s.sharding, abstract["params"])
        print(format_sharding_table(sharding_table(abstract["params"], placed)))
