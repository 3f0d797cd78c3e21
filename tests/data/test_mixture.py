"""The whole stream keeps the shares of its sources within one sample at every position, and so does every lane."""

import random
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.order.interleave import Interleave
from data_pipelines.order.lanes import Deal
from data_pipelines.order.mixture import Mixture
from data_pipelines.order.order import Order
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer

SOURCES = "abcdef"


def draw_weights(choice: random.Random, steps: tuple[int, ...] = ()) -> list:
    """Random weights of 2 to 6 sources; with steps every second one changes at them, on the way to 0, too."""
    numbers = (
        lambda: choice.randint(1, 40),
        lambda: round(choice.uniform(0.01, 3), 2),
        lambda: choice.choice((1, 0.1)),
    )
    number = lambda: choice.choice(numbers)()
    weights = []
    for i in range(choice.randint(2, 6)):
        later = [(step, 0.0 if i and choice.random() < 0.2 else number()) for step in steps]
        weights.append(((0, number()), *later) if i % 2 == 0 and steps else number())
    return weights


def exact(weights: list, first: int) -> list[Fraction]:
    """Returns the shares from sample `first` of the stream on."""
    now = [Fraction(str(w if not isinstance(w, tuple) else [x for s, x in w if s <= first][-1])) for w in weights]
    return [weight / sum(now) for weight in now]


def grid(mixture: Mixture, lanes: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns source and turn of every sample, both [slots, lanes]."""
    found = [mixture.locate(lane, np.arange(slots)) for lane in range(lanes)]
    return np.stack([source for source, _ in found], 1), np.stack([turn for _, turn in found], 1)


def counted(source: np.ndarray, sources: int) -> np.ndarray:
    """Returns how many samples of each source the first 0, 1, ... slots hold; [slots + 1, lanes, sources]."""
    taken = np.cumsum(source[..., None] == np.arange(sources), axis=0)
    return np.concatenate([np.zeros_like(taken[:1]), taken])


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 12, 64])
@pytest.mark.parametrize("seed", range(5))
def test_the_stream_and_every_lane_keep_the_shares(seed, lanes):
    choice = random.Random(f"{seed} {lanes}")
    weights = draw_weights(choice)
    shares, k = exact(weights, 0), len(weights)
    slots = 3000 // lanes + 20
    mixture = Mixture(weights, SOURCES[:k], lanes)
    source, turn = grid(mixture, lanes, slots)
    by_lane = counted(source, k)
    bound = 1 - Fraction(1, 2 * k - 2)  # Tijdeman's
    for slot, taken in enumerate(by_lane.sum(1).tolist()):
        deviation = max(abs(count - slot * lanes * share) for count, share in zip(taken, shares))
        assert deviation <= bound, (weights, slot)
    # A source is dealt to all lanes evenly: none is two samples ahead, and so within 1 + 1 / lanes of its own share.
    assert (by_lane.max(1) - by_lane.min(1)).max() <= 1
    for lane in range(lanes):
        for which in range(k):
            here = source[:, lane] == which
            np.testing.assert_array_equal(turn[here, lane], np.arange(here.sum()))


@pytest.mark.parametrize("lanes", [1, 3, 8, 16])
@pytest.mark.parametrize("seed", range(4))
def test_the_shares_change_where_a_curriculum_says(seed, lanes):
    choice = random.Random(f"{seed} {lanes} steps")
    steps = tuple(sorted(choice.sample(range(1, 1500), 3)))
    weights, slots = draw_weights(choice, steps), 2400 // lanes
    k = len(weights)
    source, turn = grid(Mixture(weights, SOURCES[:k], lanes), lanes, slots)
    by_lane = counted(source, k)
    total = by_lane.sum(1)
    edges = [0, *sorted({-(-step // lanes) for step in steps}), slots]
    for first, last in zip(edges, edges[1:]):
        shares = exact(weights, first * lanes)
        for slot in range(first, last + 1):
            for which, share in enumerate(shares):
                taken = int(total[slot, which] - total[first, which])
                assert abs(taken - (slot - first) * lanes * share) < 1, (weights, slot, which)
    assert (by_lane.max(1) - by_lane.min(1)).max() <= len(edges) - 1  # one for each stretch
    for lane in range(lanes):
        for which in range(k):
            here = source[:, lane] == which
            np.testing.assert_array_equal(turn[here, lane], np.arange(here.sum()))


@pytest.mark.parametrize("steps", [(), (50, 217), (7, 8, 9, 10, 300)])
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_what_is_known_of_the_past_is_what_happened(lanes, steps):
    """Far positions, totals and the lanes' parts of them need no history."""
    choice = random.Random(f"{lanes} {steps}")
    weights = draw_weights(choice, steps)
    k, slots = len(weights), 900 // lanes
    mixture, other = (Mixture(weights, SOURCES[:k], lanes) for _ in range(2))
    source, turn = grid(mixture, lanes, slots)
    by_lane = counted(source, k)
    for first in choice.sample(range(slots), 10):
        for lane in choice.sample(range(lanes), min(3, lanes)):
            found = other.locate(lane, np.arange(first, slots))
            np.testing.assert_array_equal(found, (source[first:, lane], turn[first:, lane]))
        np.testing.assert_array_equal(mixture.taken(first), by_lane[first].sum(0))
    for which in range(k):
        parts = np.array([mixture.turns(which, n) for n in range(by_lane[-1, :, which].sum())])
        np.testing.assert_array_equal(parts.sum(1), np.arange(len(parts)))
        assert ((np.diff(parts, axis=0) >= 0).all()) and set(np.diff(parts, axis=0).sum(1)) <= {1}
        for slot in range(slots):  # what a lane has after so many samples is what it has when they are taken
            if (total := by_lane[slot, :, which].sum()) < len(parts):
                np.testing.assert_array_equal(parts[total], by_lane[slot, :, which])


def test_far_positions():
    mixture, slot = Mixture([5, 3, 2], "abc", 8), 10**12 + 7
    taken = mixture.taken(slot)
    assert taken.sum() == slot * 8 and (np.abs(taken - slot * 8 * np.array([0.5, 0.3, 0.2])) < 1).all()
    for lane in range(8):
        (source,), (turn,) = mixture.locate(lane, np.array([slot]))
        assert abs(turn - slot * (0.5, 0.3, 0.2)[source]) < 1.2


@pytest.mark.parametrize("weights", [(1,), (1, 1), (2, 1), (3, 3, 1), (9, 5, 3, 2, 1, 1)])
@pytest.mark.parametrize("lanes", [1, 2, 5, 8])
def test_every_lane_has_one_sample_of_every_round(weights, lanes):
    """A round: as many consecutive samples of a source as there are lanes. A period is a whole number of them."""
    interleave = Interleave(weights)
    deal = Deal(interleave, lanes)
    period = len(interleave.pattern)
    found = [deal.locate(lane, np.arange(2 * period)) for lane in range(lanes)]
    for which, weight in enumerate(weights):
        for slot in range(2 * period + 1):
            turns = np.array([(source[:slot] == which).sum() for source, _ in found])
            taken = int(interleave.taken(slot * lanes)[which])
            assert turns.sum() == taken and set(turns) <= {taken // lanes, -(-taken // lanes)}
        assert all((source[:period] == which).sum() == weight for source, _ in found)


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_one_source_keep_the_shares_within_one_batch(seed, lanes):
    choice = random.Random(f"{seed} {lanes} together")
    per_lane, steps = choice.randint(1, 6), tuple(sorted(choice.sample(range(1, 900), 2)))
    weights, batches = draw_weights(choice, steps), 1500 // (lanes * per_lane)
    k, batch = len(weights), per_lane * lanes
    source, turn = grid(Mixture(weights, SOURCES[:k], lanes, per_lane), lanes, batches * per_lane)
    chosen = source.reshape(batches, batch)
    assert (chosen == chosen[:, :1]).all() and (turn == turn[:, :1]).all()
    edges = [0, *sorted({-(-step // batch) for step in steps}), batches]
    for first, last in zip(edges, edges[1:]):
        shares = exact(weights, first * batch)
        taken = np.cumsum(chosen[first:last, :1] == np.arange(k), axis=0)
        for count, row in enumerate(taken.tolist(), 1):
            assert all(abs(n - count * share) < 1 for n, share in zip(row, shares)), (weights, first, count)


def test_weights_that_no_short_pattern_fits_are_nearly_exact():
    """Of all patterns that are not too long the best: sizes of data sets as weights are off by less than 1e-6."""
    for weights in ((12_423_374, 3_318_333), (12_423_374, 3_318_333, 996_301), (0.7 * 2**0.5, 1, 0.123456789)):
        shares = np.array(weights) / sum(weights)
        for longest in (2**14, 2**16):
            interleave = Interleave(weights, longest)
            assert len(interleave.pattern) <= longest
            assert np.abs(interleave.shares - shares).max() < 1e-6
    assert len(Interleave((1 / 3, 1 / 6, 0.5), 2**14).pattern) == 6
    tiny = Interleave((1.0, 1e-9), 2**10)
    assert tiny.shares[1] == 2**-10 and len(tiny.pattern) == 2**10


def epochs_of(order: Order, slots: int) -> list[dict[tuple[int, int], list[int]]]:
    """Returns the samples that each slot takes of (source, epoch), over all lanes."""
    found = [{} for _ in range(slots)]
    for lane in range(order.lanes):
        for key, places, samples in order.locate(lane, 0, slots):
            plan = order.plan(key)
            ids = plan.blocks[plan.block[samples]] * 1000 + plan.sample[samples]
            for place, sample_id in zip(places.tolist(), ids.tolist()):
                found[place].setdefault((key.source, key.epoch), []).append(sample_id)
    return found


@pytest.mark.parametrize("lanes", [1, 4, 6])
@pytest.mark.parametrize("steps", [(), (31, 100, 101, 102, 290)])
@pytest.mark.parametrize("seed", range(2))
def test_epochs_of_mixed_sources_are_exact(lanes, steps, seed):
    """An epoch begins when the one before is complete, with curricula, too, and however small a source is."""
    choice = random.Random(f"{lanes} {steps} {seed}")
    weights = draw_weights(choice, steps)
    k = len(weights)
    sizes = [lanes, lanes + 1, *(choice.randint(10, 90) for _ in range(k - 2))]
    counts = [np.array([size // 3, size - size // 3]) for size in sizes]
    order = Order(counts, SOURCES[:k], weights, lanes=lanes, window=2, seed=seed)
    taken, seen = np.zeros(k, int), {}
    for slot, found in enumerate(epochs_of(order, 600 // lanes)):
        for (source, epoch), ids in found.items():
            taken[source] += len(ids)
            seen.setdefault((source, epoch), []).extend(ids)
        np.testing.assert_allclose(order.epochs((slot + 1) * lanes), taken / [size // lanes * lanes for size in sizes])
        for source, size in enumerate(sizes):
            quota = size // lanes * lanes
            for epoch in range(taken[source] // quota + 2):
                had = len(seen.get((source, epoch), ()))
                assert had == min(max(taken[source] - epoch * quota, 0), quota)
    assert all(len(set(ids)) == len(ids) for ids in seen.values())


def test_windows_follow_each_other_where_lanes_have_nothing_of_an_epoch():
    """Sources of one sample a lane, and a change of weights after every other slot: some lanes skip an epoch."""
    weights = [((0, 1.0), *((8 * i, 1.0 + i % 2) for i in range(1, 40))), 1.0, 0.5]
    order = Order([np.array([4, 3])] * 3, "abc", weights, lanes=4, window=2, seed=0)
    skipped = 0
    for lane in range(4):
        keys = {}
        for key, places, _ in order.locate(lane, 0, 90):
            keys.setdefault(key.source, []).append((int(places.min()), key))
        for found in keys.values():
            found = [key for _, key in sorted(found)]
            assert [order.following(key) for key in found[:-1]] == found[1:]
            skipped += sum(b.epoch - a.epoch > 1 for a, b in zip(found, found[1:]))
    assert skipped


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_batches_of_any_size_keep_the_shares(config, shards, hosts):
    """Those of a run, counted after each batch, whatever the hosts; it goes on twice with batches of another size."""
    ends, weights = (90, 150, 211), (5, 3, 2)
    config.sources = {f"s{i}": dict(urls=str(shards / f"s-{i:02d}.tar"), weight=weights[i]) for i in range(3)}
    config.inputs.image.size, tokenizer = 2, Tokenizer.load(config.inputs.text.tokenizer)
    position, taken = 0, np.zeros(3)
    for batch_size, batches in ((8, 11), (16, 4), (40, 3)):
        parts = []
        for host in range(hosts):
            with open_stream(config, batch_size=batch_size, seed=1, position=position, shard=(host, hosts)) as stream:
                parts.append([next(stream)["text"] for _ in range(batches)])
        for texts in zip(*parts):
            numbers = [int(tokenizer.decode(row).split()[-1]) for row in np.concatenate(texts)]
            taken += np.bincount(np.searchsorted(ends, numbers, side="right"), minlength=3)
            position += batch_size
            assert (np.abs(taken - position * np.array(weights) / 10) < 1).all(), position
    assert position == taken.sum() == 272
