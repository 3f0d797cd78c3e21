"""Speed of a recipe's training step with its own data: samples/s, compile time, FLOPs, memory, data wait.

python -m xmodal bench step --config configs/demo.py
python -m xmodal bench step --config configs/clip.py:B16 --synthetic --largest --beside open_clip \
    --config.data.inputs.text.tokenizer=data_pipelines/emoji/tokenizer.json \
    --config.model.towers.text.embed.vocab_size=49408

Batches are made, moved and trained on as in a run: while one step computes, the next batch is prepared.
"""

import argparse
import time

ROUND = 64  # samples: what the largest batch is a multiple of
SHARE = 0.95  # of the memory that JAX may use, for the largest batch: fragments take the rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--steps", type=int, default=20, help="steps to time, after two that are not")
    parser.add_argument("--synthetic", action="store_true", help="made-up photographs instead of the recipe's data")
    parser.add_argument("--largest", action="store_true", help="with the largest batch that fits the device's memory")
    parser.add_argument(
        "--beside", choices=["open_clip"],
        help="also train the same CLIP in open_clip's PyTorch, compiled and in bfloat16, on an NVIDIA GPU",
    )  # fmt: skip


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Runs the step; returns (title, columns, rows)."""
    from xmodal.config import load_config
    from xmodal.distributed.runtime import Runtime

    config = load_config(args.config, args.overrides)
    for entry in config.data.inputs.values():  # one program is measured: that of the longest batches
        if "buckets" in entry:
            entry.buckets = ()
        if "naflex" in entry:
            entry.naflex.update(lengths=entry.naflex.lengths[-1:], weights=(), length=0)
    if args.synthetic:
        config.data.sources = dict(made_up=dict(type="synthetic", samples=1_000_000, scale=0.5))
    # The other goes first: once JAX has started, it holds the memory.
    other = _open_clip(config, args) if args.beside else None
    with Runtime.start():  # without a compile cache: compiling is part of what is measured
        figures = _measure(config, args.steps, args.largest)
    title, names = f"training step of {args.config}", list(figures)
    if other is None:
        return title, ["figure", "value"], [[name, figures[name]] for name in names]
    return title, ["figure", "xmodal", "open_clip"], [[name, figures[name], other.get(name, "")] for name in names]


def _measure(config, steps: int, largest: bool) -> dict[str, object]:
    import jax

    from data_pipelines.modalities import inputs_of
    from data_pipelines.stream.stream import open_stream
    from xmodal.distributed.mesh import check_batch, make_mesh, process_shard, to_global
    from xmodal.training.durations import samples_of
    from xmodal.training.providers import host_texts, open_providers
    from xmodal.training.startup import model_facts
    from xmodal.training.task import build_task

    mesh = make_mesh(config.mesh)
    inputs = inputs_of(config.data)
    with jax.set_mesh(mesh):
        providers = open_providers(config, mesh, inputs)
        if largest:
            config.batch_size = _largest_batch(config, mesh, inputs, providers)
        check_batch(config.batch_size, config.accumulation, mesh)
        shard = process_shard(mesh, config.batch_size)
        samples = lambda start, epoch_size: samples_of(start, config, epoch_size)
        texts = host_texts(providers)
        with open_stream(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            shard=shard,
            samples=samples,
            texts=texts,
            inputs=inputs,
        ) as stream:
            task = build_task(config, mesh, inputs, stream.epoch_size, providers)
            abstract = task.abstract_state()
            facts = model_facts(task, abstract)
            began = time.perf_counter()
            compiled = _compiled(task, abstract)
            compile_seconds = time.perf_counter() - began
            state, batches, waited, pending = task.init_sharded(abstract), iter(stream), 0.0, None
            for number in range(steps + 2):
                if number == 2:
                    jax.block_until_ready(state)
                    began, waited = time.perf_counter(), 0.0
                asked = time.perf_counter()
                batch = to_global(next(batches), mesh)
                waited += time.perf_counter() - asked
                state, metrics = compiled(state, batch, task.frozen)
                jax.block_until_ready(pending)  # the step before, as in a run
                pending = metrics
            jax.block_until_ready(state)
            seconds = time.perf_counter() - began
    rate = steps * config.batch_size / seconds
    return _figures(mesh, config, rate, waited / seconds, compile_seconds, facts.flops_per_sample, _peak(compiled))


def _figures(mesh, config, rate, waited, compile_seconds, flops, peak) -> dict[str, object]:
    from xmodal.reporting.flops import mfu
    from xmodal.reporting.formatting import size

    figures = {
        "devices": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "global batch": config.batch_size,
        "samples/s": round(rate, 1),
        "step ms": round(1000 * config.batch_size / rate, 1),
        "data wait share": round(waited, 4),
        "compile s": round(compile_seconds, 1),
        "MFLOPs per sample": round(flops / 1e6, 1),
        "GFLOP/s": round(rate * flops / 1e9, 1),
        "peak memory per device": size(peak),
    }
    utilisation = mfu(flops, rate)
    return figures if utilisation is None else figures | {"MFU": round(utilisation, 4)}


def _compiled(task, abstract):
    from xmodal.training.startup import abstract_batch

    return task.compile_step(abstract).lower(abstract, abstract_batch(task), task.frozen).compile()


def _peak(compiled) -> int:
    """Bytes that a device holds during a step, at most."""
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + kept


def _largest_batch(config, mesh, inputs, providers) -> int:
    """The largest batch whose step fits, from the memory of two smaller ones: it grows linearly."""
    from xmodal.config import ConfigError
    from xmodal.training.task import build_task

    limit = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        raise ConfigError("--largest: this device does not say how much memory it has; set --config.batch_size instead")
    unit, tried = ROUND * mesh.devices.size, {}
    for batch in (4 * unit, 8 * unit):
        config.batch_size = batch
        task = build_task(config, mesh, inputs, 10**6, providers)
        tried[batch] = _peak(_compiled(task, task.abstract_state()))
    return fitting(tried, int(SHARE * limit), unit)


def fitting(tried: dict[int, int], limit: int, unit: int) -> int:
    """The largest multiple of `unit` within `limit` bytes, on the line through two tried batches {samples: bytes}."""
    (small, low), (large, high) = sorted(tried.items())
    per_sample = (high - low) / (large - small)
    return max(unit, int((limit - low) / per_sample + small) // unit * unit)


def _open_clip(config, args: argparse.Namespace) -> dict[str, object]:
    """The same figures of open_clip, measured in a process of its own, which gives the device's memory back."""
    import json
    import subprocess
    import sys

    from data_pipelines.modalities import inputs_of
    from xmodal.config import ConfigError, make_spec
    from xmodal.interop import open_clip
    from xmodal.models.model import ModelSpec
    from xmodal.training.settle import resolve

    settled = resolve(config, inputs_of(config.data))
    settings = dict(
        model=open_clip.to_config(make_spec(ModelSpec, settled.model, where="model")), steps=args.steps,
        batch=0 if args.largest else config.batch_size, image_size=config.data.inputs.image.size,
        optimizer=dict(lr=config.optimizer.lr, betas=(config.optimizer.b1, config.optimizer.b2),
                       eps=config.optimizer.eps, weight_decay=config.optimizer.weight_decay),
    )  # fmt: skip
    command = [sys.executable, "-m", "xmodal.bench.step_torch", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n  ".join(done.stderr.strip().splitlines()[-5:])
        raise ConfigError(f"--beside open_clip: it failed; torch and open_clip_torch must be installed:\n  {tail}")
    return json.loads(done.stdout.strip().splitlines()[-1])
