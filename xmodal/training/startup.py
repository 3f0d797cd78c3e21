"""What a run says before its first step: devices, mesh, model, data, schedule, and the loss that guessing gives."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.images.arrays import ImageArrays
from data_pipelines.images.naflex import Naflex
from data_pipelines.samples import has_images
from data_pipelines.stream.rows import OtherText
from data_pipelines.stream.source_columns import source_columns
from data_pipelines.stream.stream import Stream
from xmodal.config import ConfigError
from xmodal.distributed.sharding import format_sharding_table, sharding_table
from xmodal.interop.leaving import leaves_as, target
from xmodal.models.batch_norm import STATISTICS
from xmodal.objectives.providers.base import Provider
from xmodal.paths import flatten_paths
from xmodal.reporting.flops import count_flops
from xmodal.reporting.formatting import compact, number, percent, size
from xmodal.reporting.summary import print_summary, print_table
from xmodal.training.losses import Given
from xmodal.training.task import Task


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Parameters by tower, bytes of the state on one device, and FLOPs of training on one sample."""

    parameters: dict[str, int]
    state_bytes_per_device: int
    flops_per_sample: float


def abstract_batch(task: Task, patches: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global host batch, without data; `patches` is the room of packed ones, 0 that of the evaluation."""
    texts = {name: text for provider in task.providers.values() for name, text in provider.texts.items()}
    return host_arrays(task.config, texts, patches)


def host_arrays(
    config: ConfigDict, provider_texts: Mapping[str, OtherText], patches: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """The same of a config and the captions that its providers read."""
    rows, data = config.batch_size, config.data
    shape = lambda *s, dtype: jax.ShapeDtypeStruct((rows, *s), dtype)
    texts = (data.text.captions,) if data.text.captions > 1 else ()
    own = {"label": shape(data.label.most, dtype=np.int32)} if data.label.field else {}
    if has_images(data.modalities):
        images = ImageArrays(data.image).shapes(patches)
        own |= {name: shape(*row, dtype=kind) for name, (row, kind) in images.items()}
    for name, text in provider_texts.items():
        own |= {name: shape(text.length, dtype=np.int32), f"{name}_valid": shape(text.length, dtype=np.bool_)}
    own |= {name: shape(dtype=values.dtype) for name, values in source_columns(data.sources).items()}
    return own | {
        "text": shape(*texts, data.text.length, dtype=np.int32),
        "text_valid": shape(*texts, data.text.length, dtype=np.bool_),
        "key_id": shape(2, dtype=np.uint32),
        "caption_id": shape(*texts, 2, dtype=np.uint32),
    }


def model_facts(task: Task, abstract: dict) -> ModelFacts:
    """Counts parameters, state bytes and FLOPs from shapes alone.

    FLOPs are those of one forward and backward pass without recomputation (three forward passes), and of the forward
    passes of providers, per sample; they are what MFU is measured against. Where batches have several lengths they are
    the mean of what is drawn.
    """
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    on_device = lambda s: math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize
    packing = Naflex.of(task.config.data.image)
    lengths, weights = (packing.lengths, packing.weights) if packing else ((0,), (1.0,))
    flops = [_step_flops(task, abstract["params"], abstract_batch(task, length)) for length in lengths]
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
    export = f"python -m xmodal export --workdir {folder} --to {to} --out {shlex.quote(f'exported/{name}')}"
    search = f"python -m xmodal embed SHARDS --model {folder} --out {shlex.quote(f'indexes/{name}')}"
    aligned = any("between" in objective for objective in config.objectives.values())  # its embeddings can be compared
    return (export, search) if aligned else (export,)


def _data(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that say what is read and what of it is left out."""
    skipped = {reason: count for reason, count in summary["skipped"].items() if count}
    return {
        "data": f"{summary['samples']:,} samples ({summary['epoch_size']:,} per epoch) in {summary['shards']:,} shards "
        f"of {size(summary['bytes'])}, {summary['lanes']} lanes",
        "left out": skipped,
        "readers": f"{summary['threads']} threads, up to {size(summary['memory_bytes'])} of memory",
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
            "chance loss": {name: f"{loss:.3f}" for name, loss in task.chance_losses().items()},
            "start": f"continues from step {start}" if start else "fresh",
            "changed": tuple(changes),
        },
    )
    _print_sources(stream.sources(task.total_samples))
    print_table(
        "what is trained how",
        ["part", "rule", "arrays", "parameters", "method", "lr x", "weight decay"],
        [
            [
                r.part,
                r.rule or "(default)",
                r.arrays,
                compact(r.params),
                r.method,
                f"{r.lr[0]:.2g} to {r.lr[-1]:.2g}" if isinstance(r.lr, tuple) else f"{r.lr:.3g}",
                f"{r.weight_decay:g}",
            ]
            for r in task.plan.rows
        ],
    )
    if task.mesh.devices.size > 1:
        placed = jax.tree.map(lambda s: s.sharding, abstract["params"])
        print(format_sharding_table(sharding_table(abstract["params"], placed)))
