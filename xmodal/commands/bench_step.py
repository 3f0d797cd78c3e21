"""Speed of a recipe's training step with its own data: samples/s, compile time, FLOPs, memory, data wait."""

import argparse
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--steps", type=int, default=20, help="steps to time, after two that are not")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Runs the step; returns (title, columns, rows)."""
    from xmodal.config import load_config
    from xmodal.distributed.runtime import Runtime

    config = load_config(args.config, args.overrides)
    with Runtime.start():  # without a compile cache: compiling is part of what is measured
        return f"training step of {args.config}", ["figure", "value"], _measure(config, args.steps)


def _measure(config, steps: int) -> list[list]:
    import jax

    from data_pipelines.stream import open_stream
    from data_pipelines.text.tokenizers import Tokenizer
    from xmodal.distributed.mesh import check_batch, make_mesh, process_shard, to_global
    from xmodal.reporting.flops import mfu
    from xmodal.reporting.formatting import size
    from xmodal.training.durations import samples_of
    from xmodal.training.startup import abstract_batch, model_facts
    from xmodal.training.task import build_task
    from xmodal.training.teacher import open_teacher

    config.data.text.buckets = ()  # one program is measured: that of the longest batches
    config.data.image.naflex.update(lengths=config.data.image.naflex.lengths[-1:], weights=(), length=0)
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.accumulation, mesh)
    tokenizer = Tokenizer.load(config.data.text.tokenizer)
    shard = process_shard(mesh, config.batch_size)
    with jax.set_mesh(mesh):
        teacher = open_teacher(config, mesh, tokenizer)
    with (
        jax.set_mesh(mesh),
        open_stream(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            shard=shard,
            samples=lambda start, epoch_size: samples_of(start, config, epoch_size),
            texts=teacher.texts if teacher else {},
        ) as stream,
    ):
        task = build_task(config, mesh, tokenizer, stream.epoch_size, teacher)
        abstract = task.abstract_state()
        facts = model_facts(task, abstract)
        batches = iter(stream)
        began = time.perf_counter()
        compiled = task.compile_step(abstract).lower(abstract, abstract_batch(task), *task.lessons).compile()
        compile_seconds = time.perf_counter() - began
        memory = compiled.memory_analysis()
        state = task.init_sharded(abstract)
        waited = 0.0
        for number in range(steps + 2):
            if number == 2:
                jax.block_until_ready(state)
                began, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            batch = to_global(next(batches), mesh)
            waited += time.perf_counter() - asked
            state, metrics = compiled(state, batch, *task.lessons)
            jax.block_until_ready(metrics)  # the wait for data is then not hidden behind the step
        seconds = time.perf_counter() - began
    rate = steps * config.batch_size / seconds
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    utilisation = mfu(facts.flops_per_sample, rate)
    rows = [
        ["devices", f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"],
        ["global batch", config.batch_size],
        ["samples/s", round(rate, 1)],
        ["step ms", round(1000 * seconds / steps, 1)],
        ["data wait share", round(waited / seconds, 4)],
        ["compile s", round(compile_seconds, 1)],
        ["MFLOPs per sample", round(facts.flops_per_sample / 1e6, 1)],
        ["GFLOP/s", round(rate * facts.flops_per_sample / 1e9, 1)],
        ["peak memory per device", size(peak)],
    ]
    return rows if utilisation is None else [*rows, ["MFU", round(utilisation, 4)]]
