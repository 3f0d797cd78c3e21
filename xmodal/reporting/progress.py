"""The live line of a running training, or plain lines now and then where nobody watches a terminal."""

import datetime
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xmodal.reporting.formatting import duration, number
from xmodal.reporting.terminal import Output

BUSY = 0.1  # share of data wait above which the figure is coloured


class Progress:
    """Shows step, epoch, loss, learning rate, samples per second, data wait, time left and MFU.

    In a terminal it is one line that stays at the bottom; prints and warnings appear above it. Anywhere else (a
    pipe, a log file, CI) it prints a plain line with the time of day every 10 seconds at first, every minute in a long
    run, and at every 5 % of the run. Use it as a context manager.
    """

    def __init__(
        self,
        total_steps: int,
        enabled: bool = True,
        *,
        start_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ):
        """Prepares the display.

        Args:
          total_steps: last step of the run.
          enabled: False shows nothing at all (every process but the first).
          start_step: step that this process continues from; steps before it do not count for the time left.
          console: where to print; standard error in a terminal, so that standard output stays clean.
          clock: seconds, injected by tests.
          now: the time of day of plain lines, injected by tests.
        """
        self._total, self._step, self._enabled = total_steps, start_step, enabled
        self._console = console or Output()
        self._clock, self._now = clock, now
        self._began: tuple[float, int] | None = None  # time and step of the first update: after compilation
        self._last = (-float("inf"), start_step)  # time and step of the last plain line
        self._values: dict[str, float | None] = {}
        live = enabled and self._console.is_terminal
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._line) if live else None

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(
        self,
        step: int,
        *,
        epoch: float | None = None,
        loss: float | None = None,
        lr: float | None = None,
        samples_per_s: float | None = None,
        data_wait: float | None = None,
        mfu: float | None = None,
    ) -> None:
        """Tells that `step` steps are done; values left out keep their last one.

        Args:
          step: optimizer steps done.
          epoch: passes over the data so far.
          loss: total loss.
          lr: learning rate of the step.
          samples_per_s: samples per second over all devices.
          data_wait: share 0..1 of the time in which the devices waited for data.
          mfu: model FLOP utilisation 0..1; never given where the device's peak is unknown.
        """
        told = {
            "epoch": epoch, "loss": loss, "lr": lr, "samples_per_s": samples_per_s, "data_wait": data_wait, "mfu": mfu
        }  # fmt: skip
        self._values |= {name: value for name, value in told.items() if value is not None}
        self._step = step
        now = self._clock()
        if self._began is None:
            self._began = (now, step)
        if self._enabled and self._live is None and self._due(now):
            self._last = (now, step)
            self._print(Text.assemble((f"{self._now():%H:%M:%S}  ", "dim"), self._text()))

    def message(self, text: str) -> None:
        """Prints a line of its own, above the live line."""
        if self._enabled:
            self._print(Text(text))

    def seconds_left(self) -> float | None:
        """Estimate from the mean pace so far, evaluations and checkpoints included; None before it is known."""
        if self._began is None or self._step <= self._began[1]:
            return None
        pace = (self._clock() - self._began[0]) / (self._step - self._began[1])
        return pace * (self._total - self._step)

    def _print(self, text: Text) -> None:
        # A log line is one line however long it is; in a terminal it wraps at words.
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def _due(self, now: float) -> bool:
        since = now - self._last[0]
        began = self._began[0] if self._began else now
        enough = min(60.0, max(10.0, (now - began) / 60))
        jump = self._step - self._last[1] >= 0.05 * self._total
        return since >= enough or (since >= 1 and jump) or self._step >= self._total > self._last[1]

    def _parts(self) -> list[tuple[str, str, str]]:
        """(label, value, style) of every value that is known."""
        values = self._values
        parts = [("epoch", f"{values['epoch']:.3g}", "")] if "epoch" in values else []
        if "loss" in values:
            parts.append(("loss", f"{values['loss']:#.4g}", "bold"))
        if "lr" in values:
            parts.append(("lr", f"{values['lr']:.2e}", ""))
        if (rate := values.get("samples_per_s")) is not None:
            parts.append(("", f"{number(float(f'{rate:.3g}'))} samples/s", ""))
        if (wait := values.get("data_wait")) is not None:
            parts.append(("wait", f"{100 * wait:.0f} %", "yellow" if wait > BUSY else ""))
        if (mfu := values.get("mfu")) is not None:
            parts.append(("MFU", f"{100 * mfu:.0f} %", ""))
        left = self.seconds_left()
        if left is not None:
            parts.append(("left", duration(left), "cyan"))
        return parts

    def _text(self, without: tuple[str, ...] = ()) -> Text:
        width = len(str(self._total))
        text = Text(f"step {self._step:>{width}}/{self._total}")
        for label, value, style in self._parts():
            if label not in without:
                text.append("  ")
                text.append(f"{label} " if label else "", style="dim")
                text.append(value, style=style)
        return text

    def _line(self) -> Table:
        """The live line: in a narrow terminal the bar goes first, then learning rate, epoch, MFU and data wait."""
        room, leave_out = self._console.width, ("lr", "epoch", "MFU", "wait")
        texts = [self._text(leave_out[:count]) for count in range(len(leave_out) + 1)]
        text = next((t for t in texts if t.cell_len <= room), texts[-1])
        line = Table.grid(padding=(0, 1))
        line.add_column()
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = min(24, room - text.cell_len - 1)
        if bar >= 8:
            done = {"completed": self._step, "complete_style": "cyan", "finished_style": "green"}
            line.add_row(ProgressBar(total=self._total, width=bar, **done), text)
        else:
            line.add_row(text)
        return line
