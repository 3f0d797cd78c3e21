"""The recorder: takes what a run produces and keeps files, progress line and alarms up to date."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from xmodal.reporting.during import PREFIX, Evaluations, closing, evaluation_lines, missing_metric
from xmodal.reporting.files import write_json
from xmodal.reporting.flops import mfu
from xmodal.reporting.health import Alarms
from xmodal.reporting.metrics import MetricsWriter, read_metrics
from xmodal.reporting.progress import Progress
from xmodal.reporting.report import build_report
from xmodal.reporting.results import results_of, write_results
from xmodal.reporting.scores import Scores
from xmodal.reporting.summary import print_evaluation, print_summary


class Recorder:
    """Collects step metrics into rows (means over the steps between rows) and writes them; process 0 only.

    Args:
      workdir: the run folder.
      log: the config's `log` section.
      batch_size: samples per step.
      epoch_size: samples of a pass over the data.
      total_steps: length of the run.
      start_step: step that this process continues from.
      chance_losses: by objective, for the alarms.
      max_logit_scales: bounds of the inverse temperatures, by objective, for the alarms.
      flops_per_sample: of a training step, for MFU; None leaves it out.
      best: metric and mode (max or min) whose best step is named at the end; "" names none.
      commands: what a user does with the finished run, a line each; printed at the end.
    """

    def __init__(
        self, workdir: Path, log: Any, *, batch_size: int, epoch_size: int, total_steps: int, start_step: int,
        chance_losses: Mapping[str, float], max_logit_scales: Mapping[str, float], flops_per_sample: float | None,
        best: tuple[str, str] = ("", "max"), commands: Sequence[str] = (),
    ):  # fmt: skip
        self.workdir, self._every, self._total = workdir, max(1, log.every), total_steps
        self._batch_size, self._epoch_size = batch_size, epoch_size
        self._best, self._commands = best, commands
        self._main = jax.process_index() == 0
        open_writer = lambda: MetricsWriter(workdir, log.tensorboard, start_step, log.get("wandb", ""))
        self._writer = open_writer() if self._main else None
        self._progress = Progress(total_steps, enabled=self._main, start_step=start_step)
        self._alarms = Alarms(chance_losses, total_steps, max_logit_scales)
        self._flops, self._rows, self._last = flops_per_sample, [], (0, 0, {})
        self._mark, self._wait, self._timed = None, 0.0, 0
        self._history = Evaluations(read_metrics(workdir) if self._main else ())
        self._evaluations: dict[str, float] = {}
        self._galleries: dict[str, Any] = {}
        self._scores: dict[str, Scores] = {}
        self._details: dict[str, Any] = {}
        self._intervals = log.intervals

    def __enter__(self) -> "Recorder":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)
        if self._writer is not None:
            self._writer.close()

    def message(self, text: str) -> None:
        """Prints a line above the progress line."""
        self._progress.message(text)

    def waited(self, seconds: float) -> None:
        """Adds time in which the devices had nothing to do because data was not there."""
        self._wait += seconds

    def pause(self) -> None:
        """Leaves what follows (an evaluation, a checkpoint) out of the throughput of the current row."""
        self._mark, self._timed = None, 0

    def push(self, step: int, samples: int, metrics: Mapping[str, Any], counters: Mapping[str, float]) -> None:
        """Takes the metrics of a finished step.

        Args:
          step: steps done, this one included.
          samples: position of the data after it.
          metrics: scalars.
          counters: of the data stream.
        """
        now = time.perf_counter()
        if self._mark is None:  # the first step after a pause: compilation or evaluation lie before it
            self._mark, self._wait, self._timed = now, 0.0, 0
        else:
            self._timed += 1
        self._rows.append({key: float(value) for key, value in metrics.items()})
        self._last = (step, samples, counters)
        if step % self._every == 0 or step == self._total:
            self.close_row()

    def close_row(self) -> None:
        """Writes the row that is being collected, if there is one; before its time when the run is interrupted."""
        if not self._rows:
            return
        step, samples, counters = self._last
        now = time.perf_counter()
        row = {key: sum(r[key] for r in self._rows) / len(self._rows) for key in self._rows[-1]}
        row |= {key: self._rows[-1][key] for key in row if key == "lr" or key.endswith("_total")}
        row |= {key: float(value) for key, value in counters.items()}
        if self._timed:
            row |= self._throughput(now - self._mark)
        self._rows, self._mark, self._wait, self._timed = [], now, 0.0, 0
        self._record(step, samples, row)

    def _throughput(self, seconds: float) -> dict[str, float]:
        rate = self._timed * self._batch_size / seconds
        figures = {"throughput/samples_per_s": rate, "throughput/data_wait": min(1.0, self._wait / seconds)}
        utilisation = mfu(self._flops, rate) if self._flops else None
        return figures if utilisation is None else figures | {"throughput/mfu": utilisation}

    def _record(self, step: int, samples: int, row: dict[str, float]) -> None:
        self._progress.update(
            step, epoch=samples / self._epoch_size, loss=row.get("train/loss"), lr=row.get("lr"),
            samples_per_s=row.get("throughput/samples_per_s"),
            data_wait=row.get("throughput/data_wait"), mfu=row.get("throughput/mfu"),
        )  # fmt: skip
        alarms = self._alarms.check(step, row)
        for alarm in alarms:
            self.message(f"! {alarm}")
        if self._writer is not None:
            self._writer.write(step, samples, row, alarms)

    def evaluated(self, step: int, samples: int, result: Any) -> None:
        """Takes an `EvalResult`: prints it and adds a row of metrics, unless the run has it, and keeps material of the
        report.
        """
        self._evaluations |= result.metrics
        self._galleries |= result.gallery
        self._scores |= result.scores
        self._details |= result.details
        if self._writer is not None:
            if not self._history.has(step, result.metrics):  # a finished run that is run again has its rows
                for line in evaluation_lines(step, result.metrics, self._history.before(step, result.metrics)):
                    self.message(line)
                self._writer.write(step, samples, {PREFIX + key: value for key, value in result.metrics.items()})
            self._history.add(step, result.metrics)
            if problem := missing_metric(self._best[0], result.metrics):
                self.message(f"! {problem}")
            write_json(self.workdir / "gallery.json", self._galleries)

    def without_result(self, step: int, evaluation: str, why: object) -> None:
        """Says why an evaluation has no result, and forgets its earlier ones, which are those of other weights."""
        self.message(f"! step {step}: no result of {evaluation}: {why}")
        for kept in (self._evaluations, self._galleries, self._scores, self._details):
            for name in [name for name in kept if name.split("/")[1] == evaluation]:  # <type>/<name>/...
                del kept[name]

    def finish(self, step: int, samples: int) -> dict[str, Any]:
        """Writes results.json and report.html, prints tables and what comes next, returns the nested results."""
        head = dict(step=step, samples=samples)
        if not self._main:
            return results_of(head, self._evaluations)
        results = results_of(head, self._evaluations, self._scores, self._details, self._intervals)
        write_results(self.workdir, results, self._scores)
        print_evaluation(results)
        self.report()
        found = self._history.best(*self._best)
        best = (self._best[0], *found) if found else None
        print_summary(f"xmodal · {self.workdir}", closing(self.workdir, step, samples, best, self._commands))
        return results

    def report(self) -> None:
        """Rebuilds report.html from the files of the run folder."""
        if self._main:
            self._writer.flush()
            try:
                build_report(self.workdir)
            except ValueError as error:  # a damaged file of an earlier start must not end a run
                self.message(f"! report.html was not written: {error}")
