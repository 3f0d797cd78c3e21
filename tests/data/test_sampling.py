"""Choices of samples, summaries of bounded size, and work in processes."""

import contextlib
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipelines.examine.distributions import Distribution, Repeats
from data_pipelines.examine.sampling import choose
from data_pipelines.sources.blocks import Blocks
from data_pipelines.workers import in_processes, results_of

COUNTS = ([5, 1, 30, 2], [64, 7])


def tables():
    column = lambda counts: np.array(counts, np.int64)
    return [Blocks(*[column(counts)] * 3, count=column(counts), bytes=column(counts)) for counts in COUNTS]


def chosen(wanted, seed=0):
    return [
        (part.source, part.block, place)
        for part in choose(tables(), wanted, seed)
        for place in range(part.first, part.first + part.count)
    ]


def test_a_choice_is_exact_and_even():
    everything = [(s, b, i) for s, counts in enumerate(COUNTS) for b, n in enumerate(counts) for i in range(n)]
    assert chosen(0) == everything == chosen(109) == chosen(500)
    for wanted in (1, 2, 63, 64, 65, 100, 108):
        found = chosen(wanted)
        assert len(found) == len(set(found)) == wanted == choose(tables(), wanted).samples
        assert set(found) <= set(everything)
    assert chosen(20) == chosen(20) != chosen(20, seed=1)
    often = np.zeros(len(everything))
    for seed in range(600):
        for sample in chosen(11, seed):
            often[everything.index(sample)] += 1
    assert often.min() / often.mean() > 0.5 and often.max() / often.mean() < 1.6


def test_large_choices_take_neighbours_together():
    table = Blocks(*[np.full(10_000, 100)] * 5)
    choice = choose([table], 20_000)
    assert choice.samples == 20_000
    assert len(choice) < 2 * 20_000 // 64  # and not one block for each sample


def test_distribution():
    random = np.random.default_rng(0)
    words, sizes = random.integers(1, 120, 5000), random.lognormal(10, 1, 5000)
    for values in (words, sizes):
        whole, parts = Distribution(), [Distribution() for _ in range(3)]
        whole.add(values)
        for i, part in enumerate(parts):
            part.add(values[i::3])
        for part in parts[1:]:
            parts[0].merge(part)
        for found in (whole, parts[0]):
            assert (found.count, found.low, found.high) == (5000, values.min(), values.max())
            assert found.mean == pytest.approx(values.mean())
            for share in (0.01, 0.5, 0.99):
                exact = np.quantile(values, share, method="inverted_cdf")
                assert found.quantile(share) == (exact if values is words else pytest.approx(exact, rel=0.006))
    whole = Distribution()
    whole.add(words)
    edges = np.arange(10, 101)
    counts = whole.histogram(edges)
    assert counts.sum() == 5000
    assert counts[20] == (words == 30).sum()
    assert counts[0] == (words <= 10).sum() and counts[-1] == (words >= 99).sum()
    assert Distribution().summary() == dict(count=0)


def test_repeats_are_exact_and_then_estimated():
    numbers = np.concatenate([np.arange(3000), np.arange(1000), np.arange(500)])  # 1,500 of 4,500 are copies
    exact, small, other = Repeats(), Repeats(limit=300), Repeats(limit=100)
    for number in numbers.tolist():
        exact.add(number, f"n{number}")
        (small if number % 2 else other).add(number, "")
    assert exact.share == pytest.approx(1 / 3) and exact.kept == 1
    assert exact.most(1) == [(3, "n0")]
    small.merge(other)
    assert small.kept <= 1 / 16
    assert small.share == pytest.approx(1 / 3, abs=0.08)


def work(item, offset, slow=0.0):
    time.sleep(slow)
    if item == 13:
        raise ValueError("thirteen")
    return item + offset


def test_processes_give_results_in_order_and_end_when_told():
    assert (
        list(in_processes(work, range(12), 2, 100))
        == list(range(100, 112))
        == list(in_processes(work, range(12), 1, 100))
    )
    with pytest.raises(ValueError, match="thirteen"):
        list(in_processes(work, range(11, 15), 2, 0))
    results = in_processes(work, iter(range(1_000_000)), 2, 0, 0.01)  # items are taken as they are needed
    assert next(results) == 0
    results.close()
    assert not multiprocessing.active_children()


def test_work_under_way_is_ended_when_results_are_not_wanted():
    stop = threading.Event()
    results = results_of(ThreadPoolExecutor(2), lambda i: i or stop.wait(60), ((i,) for i in (1, 0, 0, 0)), 2, stop.set)
    with contextlib.closing(results):
        assert next(results) == 1
    assert stop.is_set()
