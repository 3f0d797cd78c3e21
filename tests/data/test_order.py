"""The order is a pure, exact, host-free function of (seed, position), and mixes well."""

import numpy as np
import pytest

from data_pipelines import rng
from data_pipelines.errors import DataError
from data_pipelines.order.interleave import Interleave
from data_pipelines.order.mixture import Mixture, curriculum
from data_pipelines.order.order import Order, epoch_size

COUNTS = np.append(np.random.default_rng(0).integers(1, 9, 100), 5)  # 469 samples, 5 more than 8 lanes share evenly


def make(counts=(COUNTS,), weights=(1.0,), lanes=8, window=4, seed=0, names="abc") -> Order:
    return Order(counts, names[: len(counts)], weights, lanes=lanes, window=window, seed=seed)


def rows(order: Order, first: int, count: int) -> np.ndarray:
    """Returns (source, block, sample) of the slots [first, first + count) of all lanes, [lanes, count, 3]."""
    found = np.full((order.lanes, count, 3), -1)
    for lane in range(order.lanes):
        for key, places, samples in order.locate(lane, first, count):
            plan = order.plan(key)
            found[lane, places, 0] = key.source
            found[lane, places, 1] = plan.blocks[plan.block[samples]]
            found[lane, places, 2] = plan.sample[samples]
    return found


def identities(found: np.ndarray) -> np.ndarray:
    return (found * [10**6, 10**3, 1]).sum(-1)


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("counts", [COUNTS, [211], [1] * 40, [50, 1, 1, 1, 1]])
def test_every_epoch_is_exact(lanes, counts):
    counts = np.array(counts)
    order = make([counts], lanes=lanes)
    quota = counts.sum() // lanes
    assert epoch_size([counts], lanes) == quota * lanes
    for epoch in range(3):
        seen = identities(rows(order, epoch * quota, quota)).ravel()
        assert len(np.unique(seen)) == len(seen) == epoch_size([counts], lanes) > counts.sum() - lanes
        found = rows(order, epoch * quota, quota)
        assert (found[..., 2] < counts[found[..., 1]]).all() and (found >= 0).all()


def test_the_sample_left_out_of_an_epoch_is_not_always_the_same():
    order = make(lanes=8)
    quota, total = COUNTS.sum() // 8, COUNTS.sum()
    assert total % 8
    missing = [total - len(np.unique(identities(rows(order, e * quota, quota)))) for e in range(2)]
    assert missing == [total % 8] * 2
    both = np.unique([identities(rows(order, e * quota, quota)) for e in range(2)])
    assert len(both) == total


def test_any_slice_is_the_same_whoever_asks_and_when():
    order, straight = make(), rows(make(), 0, 200)
    for first, count in ((150, 50), (0, 1), (57, 43), (199, 1), (3, 120)):
        np.testing.assert_array_equal(rows(order, first, count), straight[:, first : first + count])
        np.testing.assert_array_equal(rows(make(), first, count), straight[:, first : first + count])


def test_the_order_of_one_source_is_pinned():
    """A run that was saved goes on in the same order with any later version."""
    found = rows(make([np.array([3, 5, 2, 4, 6, 1, 3])], lanes=3, window=2, seed=7), 0, 10)
    assert (found[..., 1] * 10 + found[..., 2]).tolist() == [
        [14, 13, 11, 12, 10, 20, 50, 21, 14, 41],
        [32, 31, 40, 33, 42, 30, 41, 43, 43, 50],
        [44, 45, 1, 61, 60, 62, 0, 2, 33, 31],
    ]


def test_seeds_epochs_and_lanes_differ():
    quota = COUNTS.sum() // 8
    first, second = rows(make(), 0, quota), rows(make(), quota, quota)
    other = rows(make(seed=1), 0, quota)
    assert (identities(first) != identities(second)).mean() > 0.9
    assert (identities(first) != identities(other)).mean() > 0.9


def test_a_source_keeps_its_order_when_others_join():
    alone = rows(make([COUNTS]), 0, 20)
    mixed = rows(make([COUNTS, COUNTS[::-1]], weights=(1, 1)), 0, 40)
    for lane in range(8):
        found = mixed[lane][mixed[lane, :, 0] == 0][:19]
        assert len(found) == 19
        np.testing.assert_array_equal(found, alone[lane][:19])


def test_windows_bound_the_blocks_in_memory_and_follow_each_other():
    order = make(window=4)
    key = next(order.locate(3, 0, 1))[0]
    total = 0
    while key.epoch == 0:
        plan = order.plan(key)
        assert 1 <= len(plan.blocks) <= 4 and len(plan.block) == len(plan.sample)
        total += len(plan.block)
        key = order.following(key)
    assert total == COUNTS.sum() // 8 and key.window == 0 and key.epoch == 1


def test_small_data_are_shuffled_far():
    order = make([np.full(64, 20)], window=32)
    first = rows(order, 0, 32)[..., 1].ravel()  # one batch of 256 from 64 blocks
    assert len(np.unique(first)) > 50
    place = identities(rows(order, 0, 160)).ravel()
    assert abs(np.corrcoef(place, np.arange(len(place)))[0, 1]) < 0.1


def test_too_few_samples():
    with pytest.raises(DataError, match=r"sources\.a has 5 usable samples.*lanes=8"):
        make([np.array([5])])


def test_shuffles_do_not_depend_on_the_numpy_version():
    words = [3428728086651911437, 13317220673473829876, 14529384804445633431, 15485887206183254163]
    assert rng.permutation(8, 0, "blocks", "a", 0).tolist() == [1, 3, 6, 5, 0, 7, 2, 4]
    assert rng.row_words(5, 1, 4, 0, "crop")[0].tolist() == words


def test_row_words_belong_to_the_row():
    whole = rng.row_words(0, 50, 8, 7, "x")
    np.testing.assert_array_equal(rng.row_words(20, 5, 8, 7, "x"), whole[20:25])
    assert len(np.unique(whole)) == whole.size
    u = rng.uniform(rng.row_words(0, 5000, 4, 7, "x"))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.01


@pytest.mark.parametrize(
    "weights", [(1,), (1, 1), (0.7, 0.2, 0.1), (1e6, 3, 1), (5, 1, 1, 1, 1, 1, 1), (1 / 3, 0.5, 1e-4)]
)
def test_mixtures_stay_within_one_sample_of_their_shares(weights):
    mix = Interleave(weights)
    np.testing.assert_allclose(mix.shares, np.array(weights) / sum(weights), atol=4e-5)
    for samples in (*range(3000), 10**12):
        taken = mix.taken(samples)
        assert taken.sum() == samples and np.abs(taken - samples * mix.shares).max() < 1 + samples * 1e-15


def test_mixture_of_random_weights():
    generator = np.random.default_rng(0)
    for _ in range(20):
        weights = generator.integers(1, 40, generator.integers(2, 9))
        mix = Interleave([float(w) for w in weights])
        for samples in range(2 * weights.sum()):
            assert np.abs(mix.taken(samples) - samples * weights / weights.sum()).max() < 1


@pytest.mark.parametrize("together", [1, 3, 8])
def test_batches_of_one_source_are_located_as_they_were_counted(together):
    mixture = Mixture([1.0, ((0, 2.0), (100, 0.5)), 0.3], "abc", lanes=2, together=together)
    (source, turn), other = (mixture.locate(lane, np.arange(200)) for lane in range(2))
    np.testing.assert_array_equal((source, turn), other)
    for slots in (0, 1, 7, 50, 51, 130, 199):
        np.testing.assert_array_equal(mixture.taken(slots), 2 * np.bincount(source[:slots], minlength=3))
    for which in range(3):
        np.testing.assert_array_equal(turn[source == which], np.arange((source == which).sum()))
    whole = source[: 200 // together * together].reshape(-1, together)
    assert (whole == whole[:, :1]).all()


def test_any_part_of_a_curriculum_is_the_same_whoever_asks():
    mixture = Mixture([((0, 1.0), (60, 0.2)), 0.7], "ab", lanes=2, together=2)
    straight = np.stack(mixture.locate(1, np.arange(100)))
    for first in (0, 1, 29, 31, 77):
        np.testing.assert_array_equal(np.stack(mixture.locate(1, np.arange(first, 100))), straight[:, first:])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1, "weight is -1; expected a number from 0"),
        ("1", "expected a number from 0"),
        (True, "expected a number from 0"),
        (((5, 1.0),), "must rise from 0"),
        (((0, 1.0), (0, 2.0)), "must rise from 0"),
        (((0, 1.0), (4, float("nan"))), "nan from 4 on; expected a number"),
        ((), "expected a number, or"),
        ((0, 1.0), "expected a number, or"),
    ],
)
def test_malformed_weights(weight, message):
    with pytest.raises(DataError, match=message):
        curriculum(weight, "a")


def test_a_stretch_without_a_source_is_an_error():
    with pytest.raises(DataError, match="weight from sample 80 of the stream on"):
        Mixture([((0, 1.0), (80, 0.0))], "a", lanes=8)
