"""Accounts of the samples that were not used: counters for the metrics, one line each in `skipped.jsonl`."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipelines.errors import DataError, Fault, Replaced
from data_pipelines.sources.base import Source

_MIN_SAMPLES = 512  # before the share of bad samples says anything


class Accounts:
    """Counts what was left out at indexing and what was replaced in the run.

    Args:
        max_share: of replaced samples; above it the data are not what the run was meant for.
        file: receives a line {"shard", "key", "reason"} for each sample, once; None writes nothing.
    """

    def __init__(self, max_share: float, file: Path | None):
        self._max_share, self._file = max_share, file
        self._yielded = 0
        self._replaced: Counter[str] = Counter()
        self._by_source: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._written = set()
        if file is not None and file.exists():  # a resumed run does not list its samples again
            text = file.read_text()
            self._written = {hash(line) for line in text.splitlines()}
            if text and not text.endswith("\n"):  # the run before broke off in the middle of a line
                with file.open("a") as end:
                    end.write("\n")

    def source(self, source: Source) -> None:
        """Notes what a source leaves out."""
        self._skipped.update(source.skipped)
        self._write(source.faults())

    def batch(self, rows: int, replaced: Sequence[Replaced]) -> None:
        """Notes a batch that is handed out.

        Args:
            rows: its samples.
            replaced: those of which another one is shown.

        Raises:
            DataError: more samples were replaced than `max_share`.
        """
        self._yielded += rows
        self._replaced.update(row.faults[0].reason for row in replaced)
        self._by_source.update(row.source for row in replaced)
        self._write([fault for row in replaced for fault in row.faults])
        if self._yielded >= _MIN_SAMPLES and self._share > self._max_share:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in self._replaced.most_common())
            fault = replaced[-1].faults[0] if replaced else None
            last = f"the last one is {fault.key} of {fault.shard}. " if fault else ""
            listed = f"All are listed in {self._file}. " if self._file else ""
            raise DataError(
                f"{self._share:.1%} of {self._yielded:,} samples could not be read ({reasons}); {last}{listed}"
                f"The run stops above data.max_bad_share={self._max_share}"
            )

    def counters(self) -> dict[str, float]:
        """Returns the counts since the start of the process, as metrics."""
        counters = {"data/replaced": self._replaced.total(), "data/bad_share": self._share}
        counters |= {f"data/bad/{_name(reason)}": n for reason, n in self._replaced.items()}
        return counters | {f"data/skipped/{_name(reason)}": n for reason, n in self._skipped.items()}

    def replaced(self, source: str) -> int:
        """Returns how many samples of a source were replaced since the start of the process."""
        return self._by_source[source]

    @property
    def _share(self) -> float:
        return self._replaced.total() / max(self._yielded, 1)

    def _write(self, faults: Iterable[Fault]) -> None:
        if self._file is None:  # and naming what a source leaves out reads thousands of its samples
            return
        lines = dict.fromkeys(json.dumps(fault._asdict()) for fault in faults)
        new = [line for line in lines if hash(line) not in self._written]
        if not new:
            return
        self._written.update(map(hash, new))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.writelines(f"{line}\n" for line in new)


def _name(reason: str) -> str:
    return reason.replace(" ", "_")
