"""Reads samples completely and decodes what files hold: everything that training could stumble on, found beforehand."""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.examine.sampling import Part, choose, read_part
from data_pipelines.progress import progress
from data_pipelines.sources.base import Source
from data_pipelines.sources.blocks import Blocks
from data_pipelines.workers import in_processes

UNREADABLE = "unreadable block"
_BLOCK_BYTES = 8 * 2**20  # what a process holds at a time, about
_SPOT_CHECKS = 64  # samples that are read again to see that a new index is right


@dataclass
class Findings:
    """What was looked at, and what is wrong with it.

    Attributes:
        samples: looked at.
        bytes: of their files; of texts alone 0.
        faults: reason -> samples that cannot be used, although the index says that they can.
        sources: source -> reason -> the same.
    """

    samples: int = 0
    bytes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)


class _Checked(NamedTuple):
    """What was found in a part; a fault goes with the number of samples that it costs."""

    part: Part
    bytes: int
    faults: list[tuple[Fault, int]]


def verify(
    sources: Sequence[Source],
    found: Callable[[str, Fault], None],
    *,
    wanted: int = 0,
    seed: int = 0,
    workers: int = 1,
) -> Findings:
    """Reads and decodes samples, in processes.

    Args:
        sources: what to read.
        found: called with the name of the source and each fault that its index did not know, as soon as it is found.
        wanted: as many samples, chosen by `seed`; 0 takes all.
        seed: of the choice.
        workers: processes.

    Raises:
        DataError: a process died.
    """
    tables = [source.blocks(_BLOCK_BYTES) for source in sources]
    choice = choose(tables, wanted, seed)
    findings = Findings(sources={source.name: Counter() for source in sources})
    parts = in_processes(check_part, choice, max(1, min(workers, len(choice))), sources, tables)
    with progress(choice.samples, "verifying", "samples") as advance, contextlib.closing(parts):
        for part, size, faults in parts:
            findings.samples += part.count
            findings.bytes += size
            for fault, count in faults:
                name = sources[part.source].name
                findings.faults[fault.reason] += count
                findings.sources[name][fault.reason] += count
                found(name, fault)
            advance(part.count)
    return findings


def check_part(part: Part, sources: Sequence[Source], tables: Sequence[Blocks]) -> _Checked:
    """Reads and decodes the samples of a part."""
    try:
        samples = read_part(part, sources, tables)
    except DataError as error:  # of all its samples; its text names the place
        return _Checked(part, 0, [(Fault(sources[part.source].name, str(error), UNREADABLE), part.count)])
    faults = []
    for sample in samples:
        try:
            if sample.fault:
                raise BadSample(sample.fault)
            for name, content in sample.parts.items():
                sources[part.source].rules.inputs[name].verify(content, whole=True)
        except BadSample as bad:
            faults.append((Fault(sample.shard, sample.key, bad.reason), 1))
    return _Checked(part, sum(sample.bytes for sample in samples), faults)


def spot_check(source: Source) -> None:
    """Reads some samples all over a source. Raises DataError where its index does not describe what is there."""
    tables = [source.blocks(1)]
    for part in choose(tables, _SPOT_CHECKS):
        read_part(part, [source], tables)
