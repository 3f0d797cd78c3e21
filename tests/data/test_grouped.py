"""Batches of groups: members side by side, exact epochs, and the same stream from any position and on any hosts."""

import numpy as np
import pytest
from test_stream import assert_equal, take, texts

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.order.grouped import write_groups
from data_pipelines.stream.stream import open_stream

SIZE, BATCH = 3, 24
SHARD = lambda number: f"s-0{0 if number < 90 else 1 if number < 150 else 2}.tar"


def write(path, groups):
    with Files() as files:
        write_groups(str(path), [[(SHARD(n), f"{n:05d}") for n in group] for group in groups], files)
    return str(path)


@pytest.fixture
def made(config, tmp_path):
    """211 samples in 68 groups whose members lie anywhere, and one of which a sample is missing."""
    groups = np.random.default_rng(0).permutation(211)[:204].reshape(-1, SIZE)
    config.sources.main.groups = write(tmp_path / "groups.npy", [*groups.tolist(), [300, 301, 302]])
    return config, {int(n): tuple(group) for group in groups.tolist() for n in group}


def numbers(config, batches):
    return np.array([int(text.split()[-1]) for text in texts(config, batches)])


def test_members_stand_side_by_side_and_an_epoch_has_each_group_once(made, tmp_path):
    config, group_of = made
    with open_stream(config, batch_size=BATCH, seed=0, workdir=tmp_path) as stream:
        assert stream.epoch_size == 68 // 8 * 8 * SIZE
        assert stream.summary()["skipped"] == {"in no whole group": 7}
        epochs = [numbers(config, [next(stream) for _ in range(8)]) for _ in range(3)]
        assert stream.counters()["data/skipped/in_no_whole_group"] == 7
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 192
        for group in epoch.reshape(-1, SIZE):
            assert tuple(group) == group_of[group[0]]
    assert len(set(epochs[0]) ^ set(epochs[1])) <= 2 * 12 and not np.array_equal(epochs[0], epochs[1])
    other = numbers(config, take(config, 8, batch_size=BATCH, seed=1))
    assert not np.array_equal(other, epochs[0])


@pytest.mark.parametrize("position,hosts", [(96, 2), (48, 4), (216, 1)])
def test_the_stream_is_a_function_of_the_position(made, position, hosts):
    config, _ = made
    config.sources.main.temperature = 2.0  # goes with the samples of every source
    whole = take(config, 11, batch_size=BATCH)
    config.threads, config.prefetch, config.readers = 1, 0, 4
    parts = [take(config, 2, batch_size=BATCH, position=position, shard=(i, hosts)) for i in range(hosts)]
    found = [{k: np.concatenate([part[i][k] for part in parts]) for k in parts[0][i]} for i in range(2)]
    assert_equal(found, whole[position // BATCH :][:2])


def test_groups_of_several_sources_are_mixed_and_kept_apart(config, shards, tmp_path):
    first, second = np.arange(90).reshape(-1, SIZE), np.arange(90, 210).reshape(-1, SIZE)
    config.sources = dict(
        a=dict(urls=str(shards / "s-00.tar"), groups=write(tmp_path / "a.npy", first.tolist())),
        b=dict(urls=str(shards / "s-0[12].tar"), groups=write(tmp_path / "b.npy", second.tolist()), weight=3.0),
    )
    config.sources.b.urls = str(shards / "s-{01,02}.tar")
    batches = [numbers(config, [batch]).reshape(-1, SIZE) for batch in take(config, 8, batch_size=48)]
    for groups in batches:
        assert (groups[:, 0] % SIZE == 0).all() and (np.diff(groups) == 1).all()
    assert np.mean(np.concatenate(batches) < 90) == pytest.approx(0.25)
    config.batches = "by_source"
    kinds = [set(numbers(config, [batch]) < 90) for batch in take(config, 8, batch_size=48)]
    assert all(len(kind) == 1 for kind in kinds) and kinds.count({True}) == 2


def test_pictures_go_with_their_captions(made):
    config, _ = made
    config.inputs.image.crop, config.inputs.image.size = "squash", 24
    (batch,) = take(config, 1, batch_size=BATCH)
    grouped = dict(zip(numbers(config, [batch]).tolist(), batch["image"]))
    config.sources.main.groups = ""
    plain = [
        (n, image) for b in take(config, 8, batch_size=BATCH) for n, image in zip(numbers(config, [b]), b["image"])
    ]
    seen = [n for n, _ in plain if int(n) in grouped]
    assert len(seen) > 12
    for number, image in plain:
        if int(number) in grouped:
            np.testing.assert_array_equal(image, grouped[int(number)])


def test_what_cannot_be_grouped_is_refused(made, shards, tmp_path):
    config, _ = made
    groups = config.sources.main.groups

    def refused(message, batch_size=BATCH, **options):
        with pytest.raises(DataError, match=message):
            take(config, 1, batch_size=batch_size, **options)

    refused("batch_size=16 is not a multiple of 24: data.lanes=8 take whole groups of 3", batch_size=16)
    refused("position=8 is not a multiple of 24", position=8)
    config.inputs.text.buckets = (6,)
    refused("data.inputs.text.buckets cuts sources")
    config.inputs.text.buckets = ()
    config.sources.other = dict(urls=str(shards / "s-00.tar"))
    refused("all must have `groups` of one size, or none; they are {'main': 3, 'other': 1}")
    del config.sources.other
    config.sources.main.groups = write(tmp_path / "few.npy", np.arange(12).reshape(-1, SIZE).tolist())
    refused("has 4 whole groups of 3 samples, fewer than data.lanes=8")
    config.sources.main.groups = write(tmp_path / "others.npy", [[300, 301]])
    refused("no whole group of it; it was made for other data")
    config.sources.main.groups = write(tmp_path / "twice.npy", [[0, 1], [1, 2]])
    refused("a sample is in several groups")
    np.save(tmp_path / "names.npy", np.arange(6, dtype=np.uint64))
    config.sources.main.groups = str(tmp_path / "names.npy")
    refused(r"holds uint64 \(6,\); expected hashes of names")
    config.sources.main.groups = str(tmp_path / "nowhere.npy")
    refused("nowhere.npy")
    config.sources.main.groups = groups
    assert len(take(config, 1, batch_size=BATCH)) == 1
