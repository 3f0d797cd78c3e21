"""The run's time series: one flat JSON object a line in `metrics.jsonl`, and TensorBoard and W&B beside it."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal.reporting.files import clear_disk_errors, plain, read_json_lines, write_text
from xmodal.reporting.weights_and_biases import WandbRun

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends metric rows to the run folder; one process of a run owns it.

    A resumed run continues from a checkpoint that may be older than the last row. Rows after the checkpoint are
    dropped first, so a run that was killed any number of times leaves the series of an unbroken one.
    """

    def __init__(self, workdir: str | os.PathLike, tensorboard: bool, resume_step: int, wandb: str = ""):
        """Opens the series of `workdir`.

        Args:
          workdir: the run folder; made if it does not exist.
          tensorboard: also write event files under `workdir/tensorboard`.
          resume_step: step of the state that training continues from; 0 for a new run.
          wandb: project of Weights & Biases that gets the rows, too; "" for none.

        Raises:
          ConfigError: `wandb` names a project, and the library is not installed.
        """
        self.path = Path(workdir) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        keep_rows_until(self.path, resume_step or -1)  # what was measured at step 0 is measured again
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._board = _Board(self.path.parent / "tensorboard", resume_step) if tensorboard else None
        self._wandb = WandbRun(wandb, self.path.parent) if wandb else None

    def write(self, step: int, samples: int, scalars: Mapping[str, float], alarms: Sequence[str] = ()) -> None:
        """Appends one row, flushed to the operating system: a killed process loses nothing.

        Args:
          step: optimizer steps done.
          samples: samples of the global stream consumed (the position).
          scalars: name -> value; NaN and infinities are written as null.
          alarms: messages of `health.Alarms` raised at this step.

        Raises:
          OSError: the disk is full; the message names the file and what to do.
        """
        now = round(time.time(), 3)
        scalars = {name: float(value) for name, value in scalars.items()}
        row: dict[str, Any] = {"step": int(step), "samples": int(samples), "time": now} | scalars
        if alarms:
            row["alarms"] = list(alarms)
        with clear_disk_errors(self.path):
            self._file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        if self._board is not None:
            self._board.write(int(step), now, scalars, alarms)
        if self._wandb is not None:
            self._wandb.write(int(step), int(samples), scalars, alarms)

    def flush(self) -> None:
        """Puts every row on the disk itself, for the moment before a checkpoint counts as saved."""
        with clear_disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the series; writing afterwards is an error."""
        try:
            with clear_disk_errors(self.path):
                self._file.close()
        finally:
            if self._wandb is not None:
                self._wandb.close()
            if self._board is not None:
                self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Board:
    """TensorBoard events, written by the calling thread.

    tensorboardX's SummaryWriter writes from a thread behind a bounded queue; when that thread dies (full disk), the
    next rows block for ever. A row is one small event, so the plain writer below it is simpler and fails loudly.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._event, self._summary = folder, event_pb2, summary_pb2
        # The suffix keeps two runs of one second in two files.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        if resume_step:  # a session start hides the events after the checkpoint, as keep_rows_until does
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=resume_step + 1, wall_time=time.time(), session_log=start))

    def write(self, step: int, now: float, scalars: Mapping[str, float], alarms: Sequence[str]) -> None:
        from tensorboardX.summary import text

        make = self._summary.Summary.Value
        values = [make(tag=name, simple_value=value) for name, value in scalars.items() if math.isfinite(value)]
        for message in alarms:
            values += text("alarms", message).value
        self._write(self._event.Event(step=step, wall_time=now, summary=self._summary.Summary(value=values)))

    def _write(self, event: Any) -> None:
        with clear_disk_errors(self._folder):
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        with clear_disk_errors(self._folder):
            self._writer.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a run, in order, each with `step`, `samples`, `time` and its scalars (null reads as NaN).

    A run folder without a series gives an empty list; a line cut by a crash is left out.
    """
    rows = _rows(Path(workdir) / FILE)
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def keep_rows_until(path: Path, step: int) -> None:
    """Rewrites the series without rows after `step` and without a half-written line, atomically."""
    if not path.exists():
        return
    rows = [row for row in _rows(path) if row["step"] <= step]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if text.encode() != path.read_bytes():
        write_text(path, text)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in read_json_lines(path) if isinstance(row.get("step"), int)]
