"""The training loop: one job per line; everything else lives in its own room."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.io.storage import stalled_reads
from data_pipelines.modalities import Inputs, inputs_of
from data_pipelines.modalities.inputs import tokenizer_files
from data_pipelines.stream.stream import Stream, open_stream
from xmodal.checkpoints.writing import Checkpoints
from xmodal.config import save_config, to_json
from xmodal.distributed.mesh import (
    assert_same_data,
    assert_same_rows,
    check_batch,
    make_mesh,
    process_shard,
    to_global,
)
from xmodal.distributed.runtime import Runtime
from xmodal.distributed.watchdog import Watchdog
from xmodal.errors import TrainingError
from xmodal.finite import NotFinite
from xmodal.reporting.environment import write_environment
from xmodal.reporting.files import write_text
from xmodal.reporting.recorder import Recorder
from xmodal.training.durations import Pace, samples_of
from xmodal.training.folder import make_folder, remove_left
from xmodal.training.init_from import Kept
from xmodal.training.lock import RunLock, hold
from xmodal.training.providers import Providers, fingerprints, host_texts, open_providers
from xmodal.training.resuming import changes_since, check_changes, newest_document, restore_or_init
from xmodal.training.startup import ModelFacts, checkpoint_options, model_facts, next_commands, print_startup
from xmodal.training.task import Task, build_task


def train(config: ConfigDict, workdir: Path, runtime: Runtime, *, accept_changes: bool = False) -> dict[str, Any]:
    """Runs a recipe to its last step, or continues the run that `workdir` holds.

    Args:
      config: a checked config (`xmodal.config.load_config`).
      workdir: the run folder, made if it does not exist.
      runtime: an initialised process.
      accept_changes: continue a run with settings that change what it learns.

    Returns:
      The final results, nested as in results.json; without evaluations when the run was interrupted (`{"step": n}`).
    """
    make_folder(workdir)
    with hold(workdir) as lock:
        if lock is not None:
            remove_left(workdir)
        return _train(config, workdir, runtime, lock, accept_changes)


def _train(config: ConfigDict, workdir: Path, runtime: Runtime, lock: RunLock | None, accept_changes: bool) -> dict:
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.accumulation, mesh)
    inputs = inputs_of(config.data)
    _ = inputs.tokenizers  # a tokenizer that cannot be read is an error before anything else is
    limits = (config.watchdog.step, config.watchdog.slow)
    with jax.set_mesh(mesh), runtime.watchdog(*limits, evidence=stalled_reads) as watchdog:
        with watchdog.slow("opening the data"):
            providers = open_providers(config, mesh, inputs)
            begun = newest_document(workdir)
            pace = Pace.of(config.batch_size, begun)
            stream = _open(config, mesh, inputs, workdir, providers, pace)
            task = build_task(config, mesh, inputs, stream.epoch_size, providers, pace)
            check_changes(task, stream, begun, workdir, accept_changes)
            evaluators = task.evaluators()
        checkpoints = Checkpoints(workdir, **checkpoint_options(task))
        with watchdog.slow("restoring or creating the state"):
            abstract = task.abstract_state()
            state, meta, kept = restore_or_init(task, abstract, checkpoints)
            if (pace := Pace.of(config.batch_size, meta)) != task.pace:  # an older step than the newest was taken
                task = build_task(config, mesh, inputs, stream.epoch_size, providers, pace)
            if meta["position"]:
                stream.close()
                stream = _open(config, mesh, inputs, workdir, providers, pace, meta["position"])
        start, changes = int(state["step"]), changes_since(task, stream, meta)
        facts = model_facts(task, abstract)
        _write_start(task, workdir, facts)
        print_startup(task, workdir, stream, abstract, facts, start, changes)
        recorder = Recorder(
            workdir, config.log, batch_size=config.batch_size, epoch_size=task.epoch_size,
            total_steps=task.total_steps, start_step=start, chance_losses=task.chance_losses(),
            max_logit_scales=task.max_logit_scales(), flops_per_sample=facts.flops_per_sample,
            best=(config.checkpoint.best, config.checkpoint.best_mode),
            commands=next_commands(task.config, abstract, workdir),
        )  # fmt: skip
        run = Loop(task, stream, checkpoints, evaluators, recorder, watchdog, lock, kept)
        with stream, checkpoints, recorder:
            state = run.steps(state, task.compile_step(abstract), start, runtime)
            return run.finish(state)


def _open(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    inputs: Inputs,
    workdir: Path,
    providers: Providers,
    pace: Pace,
    position: int = 0,
) -> Stream:
    stream = open_stream(
        config.data, batch_size=config.batch_size, seed=config.seed, position=position,
        shard=process_shard(mesh, config.batch_size), workdir=workdir,
        samples=lambda start, epoch_size: samples_of(start, config, epoch_size, pace),
        texts=host_texts(providers), inputs=inputs,
    )  # fmt: skip
    try:
        assert_same_data("data.sources", stream.fingerprint)
    except DataError:
        stream.close()
        raise
    return stream


def _write_start(task: Task, workdir: Path, facts: ModelFacts) -> None:
    """Puts into the run folder what one needs to understand it later."""
    if jax.process_index() == 0:
        save_config(task.config, workdir / "config.json")
        tokenizers = task.inputs.tokenizers
        for name, file in tokenizer_files(tokenizers).items():
            write_text(workdir / file, tokenizers[name].json)
        run = {"total_steps": task.total_steps, "chance_loss": task.chance_losses(), "parameters": facts.parameters}
        write_environment(workdir, run)


class Loop:
    """Steps, checkpoints and evaluations in the order in which they happen."""

    def __init__(
        self,
        task: Task,
        stream: Stream,
        checkpoints: Checkpoints,
        evaluators: Mapping,
        recorder: Recorder,
        watchdog: Watchdog,
        lock: RunLock | None,
        kept: Kept,
    ):
        self.task, self.stream, self.checkpoints = task, stream, checkpoints
        self.evaluators, self.recorder, self.watchdog, self.lock = evaluators, recorder, watchdog, lock
        self.kept = kept  # out of checkpoints
        self._measured_at, self._measured = -1, {}  # a step, and {evaluator: metrics} of its weights

    def steps(self, state: dict, step_fn, start: int, runtime: Runtime) -> dict:
        """Runs from `start` to the last step or an interruption; returns the last state."""
        total, pending, compiled = self.task.total_steps, None, set()
        batches = iter(self.stream)
        step = start
        if step >= total:
            self.recorder.message(
                f"nothing is left to train: {step} of {total} steps are done. To go on, raise schedule.total "
                f"(now {self.task.config.schedule.total})"
            )
        if step == 0 and self.task.config.init_from:  # what the weights could do before
            self.evaluate(state, step, list(self.evaluators))
        while step < total and not runtime.preempted(step):
            if self.lock is not None:
                self.lock.check()
            waiting = time.perf_counter()
            rows = next(batches)
            if step == start and jax.process_count() > 1:  # nothing in JAX notices replicas that read different rows
                assert_same_rows(rows, self.task.mesh, self.task.config.batch_size)
            batch = to_global(rows, self.task.mesh)
            self.recorder.waited(time.perf_counter() - waiting)
            shapes = tuple(sorted((name, array.shape) for name, array in batch.items()))
            if shapes in compiled:
                state, metrics = step_fn(state, batch, self.task.frozen)
            else:  # the first batch, or the first of another length of texts or images
                with self.watchdog.slow("compiling the step"):
                    state, metrics = step_fn(state, batch, self.task.frozen)
                    jax.block_until_ready(metrics)
                compiled.add(shapes)
                self.recorder.pause()
            step += 1
            self._push(pending)  # the step before: the host never waits for the one it just started
            pending = (step, self.stream.position, metrics)
            self.watchdog.beat()
            due = [n for n, (every, _) in self.evaluators.items() if step == total or (every and step % every == 0)]
            if due or self.checkpoints.due(step) or step == total:
                self._push(pending)
                pending = None
                self.evaluate(state, step, due)
                self.save(state, step)  # before the report: what costs hours to win goes first
                if due:
                    self.recorder.report()
        self._push(pending)
        if step < total:
            self.recorder.close_row()
            self.save(state, step, wait=True)
            self.recorder.message(f"interrupted: saved step {step}; run the same command to continue")
        return state

    def _push(self, pending: tuple | None) -> None:
        if pending is None:
            return
        step, samples, metrics = pending
        metrics = jax.device_get(metrics)
        self.recorder.push(step, samples, metrics, self.stream.counters())
        limit = self.task.config.optimizer.max_nonfinite
        if metrics["health/nonfinite"] >= limit:
            raise TrainingError(
                f"step {step}: the loss or gradient was not finite {limit} steps in a row. The weights are those of "
                f"before; the last checkpoint is intact. Lower optimizer.lr (now {self.task.config.optimizer.lr}), "
                "lengthen schedule.warmup, set optimizer.clip_norm, or look for broken inputs."
            )

    def evaluate(self, state: dict, step: int, names: list[str]) -> None:
        """Runs evaluators with the averaged weights where the run keeps them, else with the trained ones."""
        params = state.get("ema", state["params"])
        if step != self._measured_at:
            self._measured_at, self._measured = step, {}
        for name in names:
            if name in self._measured:
                continue
            self._measured[name] = {}
            try:
                with self.watchdog.slow(f"evaluating {name}"):
                    result = self.evaluators[name][1](params)
            except NotFinite as error:  # without its metric a step is never the best
                self.recorder.without_result(step, name, error)
            else:
                self._measured[name] = result.metrics
                self.recorder.evaluated(step, self.stream.position, result)
            self.recorder.pause()

    def save(self, state: dict, step: int, wait: bool = False) -> None:
        """Saves a checkpoint where one is due or `checkpoint.best` was just measured; at once when `wait` is set."""
        measured = self._measured.values() if step == self._measured_at else ()  # never those of other weights
        metrics = {key: value for result in measured for key, value in result.items()}
        due = self.checkpoints.due(step) or self.task.config.checkpoint.best in metrics
        if not (wait or due or step == self.task.total_steps):
            return
        with self.watchdog.slow("saving a checkpoint"):
            extra = {
                "config": to_json(self.task.config),
                "tokenizers": {name: t.json for name, t in self.task.inputs.tokenizers.items()},
                "data": self.stream.fingerprint,
                "batches": self.task.pace.phases,
                "providers": fingerprints(self.task.providers),
            }
            self.checkpoints.save(
                step, self.kept.lean(state), position=self.stream.position, metrics=metrics,
                extra=extra | self.kept.document, wait=wait,
            )  # fmt: skip
        self.recorder.pause()

    def finish(self, state: dict) -> dict[str, Any]:
        """Evaluates the final weights and writes results and report; an interrupted run only writes its report."""
        step = int(state["step"])
        if step < self.task.total_steps:
            self.recorder.report()
            return {"step": step}
        self.evaluate(state, step, list(self.evaluators))
        return self.recorder.finish(step, self.stream.position)
