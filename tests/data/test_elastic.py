"""The global stream is the same, pixels included, for any hosts, threads, prefetch, readers and interruptions."""

import json
import random

import numpy as np
import pytest
from tiny_inputs import data_section
from tiny_shards import encode

from data_pipelines.stream.stream import open_stream

LANES, BATCH, BATCHES = 8, 16, 40
KINDS = ("mixed", "by_source", "buckets")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A list of 70 images, of which 61 have a caption of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in range(70):
        (folder / f"{i}.png").write_bytes(encode(1000 + i, "png", (22, 26)))
        caption = f"picture {i} {'of something ' * (i % 3)}" if i % 8 else "the same"
        lines.append(json.dumps(dict(image=f"{i}.png", caption=caption)))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


@pytest.fixture(scope="module")
def make(shards, pictures, tokenizer_file):
    """Makes configs of three sources: tars with a filter, a list without duplicates, made-up images; two curricula."""

    def build(kind: str = "mixed"):
        data = data_section()
        data.sources.tars = dict(
            urls=str(shards / "s-{00..02}.tar"),
            weight=((0, 2.0), (304, 0.7)),
            filter='group >= 20 and tags contains "red"',
        )
        data.sources.pictures = dict(type="files", urls=str(pictures), unique="caption")
        data.sources.made_up = dict(type="synthetic", samples=53, scale=0.05, weight=((0, 0.0), (192, 1.3)))
        data.inputs.image.size, data.inputs.image.scale = 12, (0.3, 1.0)
        data.inputs.text.tokenizer, data.inputs.text.length = str(tokenizer_file), 16
        data.lanes, data.window = LANES, 4
        if kind != "mixed":
            data.batches = "by_source"
        if kind == "buckets":
            data.lanes, data.inputs.text.buckets = 4, (12,)
        return data

    return build


def take(config, batches: int, hosts: int = 1, batch_size: int = BATCH, position: int = 0) -> list[dict]:
    """Returns global batches, put together from those of the hosts."""
    parts = []
    for host in range(hosts):
        with open_stream(config, batch_size=batch_size, seed=9, position=position, shard=(host, hosts)) as stream:
            parts.append([next(stream) for _ in range(batches)])
    return [{name: np.concatenate([part[name] for part in batch]) for name in batch[0]} for batch in zip(*parts)]


def in_lanes(batches: list[dict], lanes: int = LANES) -> dict[str, np.ndarray]:
    """Returns the rows of batches of one size by lane and slot: [lanes, slots, ...]."""
    rows = lambda array: array.reshape(lanes, len(array) // lanes, *array.shape[1:])
    return {name: np.concatenate([rows(batch[name]) for batch in batches], axis=1) for name in batches[0]}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope="module")
def straight(make):
    """The stream in one go, by kind."""
    return {kind: take(make(kind), BATCHES) for kind in KINDS}


def vary(config, choice: random.Random) -> None:
    config.threads, config.prefetch = choice.choice((1, 2, 5)), choice.choice((0, 1, 4))
    config.readers = choice.choice((1, 4))


def test_all_three_sources_take_part(make, straight):
    """Of 640 samples: the curricula change the shares at 192 and 304, and every source is used up more than once."""
    with open_stream(make(), batch_size=BATCH, seed=9) as stream:
        summary = stream.summary()
        assert summary["skipped"] == {"filtered": 40, "duplicate": 8} and summary["samples"] == 171 + 62 + 53
        for _ in range(BATCHES):
            next(stream)
        epochs = stream.counters()
    taken = {name: epochs[f"data/epochs/{name}"] for name in ("tars", "pictures", "made_up")}
    assert min(taken.values()) > 1.5
    assert len(np.unique(np.concatenate([batch["image"] for batch in straight["mixed"]]), axis=0)) > 600


@pytest.mark.parametrize("turn", range(10))
def test_fifty_random_resumes(make, straight, turn):
    """Position, batch size, threads, prefetch and readers are drawn; positions are samples, whoever left them."""
    choice, whole = random.Random(turn), in_lanes(straight["mixed"])
    for hosts in (1, 2, 4, 8, 1):
        config, batch_size = make(), choice.choice((8, 16, 16, 32, 48))
        vary(config, choice)
        slots = 2 * batch_size // LANES
        first = choice.randrange(BATCHES * BATCH // LANES - slots)
        found = in_lanes(take(config, 2, hosts, batch_size, first * LANES))
        assert_same(found, {name: array[:, first : first + slots] for name, array in whole.items()})


@pytest.mark.parametrize("kind", KINDS[1:])
def test_batches_of_one_source_or_length_are_the_same_after_any_resume(make, straight, kind):
    choice = random.Random(kind)
    for hosts in (1, 2, 4, 4, 2, 1):
        config, first = make(kind), choice.randrange(BATCHES - 2)
        vary(config, choice)
        for found, expected in zip(take(config, 2, hosts, position=first * BATCH), straight[kind][first:]):
            assert_same(found, expected)


def test_a_run_interrupted_again_and_again_is_the_straight_run(make, straight):
    """Each part with other hosts and another batch size."""
    choice, position, parts = random.Random(0), 0, []
    while position < 400:
        config, batch_size = make(), choice.choice((8, 16, 24, 40))
        vary(config, choice)
        parts.append(in_lanes(take(config, 2, choice.choice((1, 2, 4)), batch_size, position)))
        position += 2 * batch_size
    found = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    whole = in_lanes(straight["mixed"])
    assert_same(found, {name: array[:, : position // LANES] for name, array in whole.items()})


@pytest.mark.parametrize("source", ["tars", "pictures", "made_up"])
@pytest.mark.parametrize(("lanes", "hosts"), [(1, 1), (3, 3), (8, 2), (12, 4)])
def test_epochs_are_exact_for_every_type_on_any_hosts(make, source, lanes, hosts):
    config = make()
    config.sources = {source: {**config.sources[source], "weight": 1.0}}
    config.lanes, config.inputs.image.size = lanes, 2
    with open_stream(config, batch_size=lanes, seed=2) as stream:
        samples, epoch = stream.summary()["samples"], stream.epoch_size
    assert samples - lanes < epoch == samples // lanes * lanes
    batches = take(config, 3 * epoch // lanes, hosts, batch_size=lanes)
    keys = in_lanes(batches, lanes)["key_id"].copy().view("<u8").reshape(lanes, 3, epoch // lanes)
    for number in range(3):
        assert len(np.unique(keys[:, number])) == epoch
    assert len(np.unique(keys)) == samples or epoch < samples
