"""The stream: the same batches for any number of processes, threads and interruptions; faults counted, never hidden."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tiny_shards import sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import training_image
from data_pipelines.io.paths import REPOSITORY
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer


def take(config, batches: int, **kwargs) -> list[dict[str, np.ndarray]]:
    with open_stream(config, **(dict(batch_size=16, seed=3) | kwargs)) as stream:
        return [next(stream) for _ in range(batches)]


def assert_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def texts(config, batches) -> list[str]:
    tokenizer = Tokenizer.load(config.inputs.text.tokenizer)
    return [tokenizer.decode(row) for batch in batches for row in batch["text"]]


@pytest.fixture(scope="module")
def straight():
    """Filled by the first test that needs it: 40 batches in one go."""
    return {}


def reference(config, straight) -> list[dict]:
    if not straight:
        straight["batches"] = take(config, 40)
    return straight["batches"]


def test_shapes_and_alignment(config):
    (batch,) = take(config, 1)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == dict(
        image=((16, 16, 16, 3), "uint8"),
        text=((16, 16), "int32"),
        text_valid=((16, 16), "bool"),
        key_id=((16, 2), "uint32"),
        caption_id=((16, 2), "uint32"),
    )
    assert all(array.ctypes.data % 64 == 0 for array in batch.values())


def test_image_and_caption_belong_together(config):
    config.inputs.image.crop, config.inputs.image.size = "squash", 24
    batches = take(config, 3)
    images = np.concatenate([batch["image"] for batch in batches])
    for caption, image in zip(texts(config, batches), images):
        number = int(caption.removeprefix("thing "))
        extension = "jpg" if number < 90 else "png" if number < 150 else "webp"
        data = sample(number, extension)[extension]
        np.testing.assert_array_equal(image, training_image(data, 24, lambda height, width: Box(0, 0, height, width)))


def test_epochs_are_exact_and_differ(config):
    with open_stream(config, batch_size=8, seed=0) as stream:
        assert stream.epoch_size == 208 and stream.summary()["samples"] == 211
        epochs = [texts(config, [next(stream) for _ in range(26)]) for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 208
    assert sum(a == b for a, b in zip(epochs[0], epochs[1])) < 20


def test_position_counts_global_samples(config):
    with open_stream(config, batch_size=16, seed=3, position=32, shard=(1, 2)) as stream:
        assert stream.position == 32
        next(stream)
        assert stream.position == 48 and len(next(stream)["text"]) == 8 and stream.position == 64


def test_seeds_differ(config, straight):
    assert texts(config, take(config, 2, seed=4)) != texts(config, reference(config, straight)[:2])


def test_templates_and_identities(config):
    config.inputs.text.templates, config.group_key = ((1.0, "{label}"), (1.0, "{label} {tags}")), "group"
    config.inputs.text.length = 32
    batches = take(config, 26)
    captions = texts(config, batches)
    assert all(text.startswith("thing ") for text in captions)
    assert 0.3 < np.mean(["red" in text or "tag" in text or "round" in text for text in captions]) < 0.7
    # Two samples share a group; captions are equal exactly where their ids are.
    keys = np.concatenate([batch["key_id"] for batch in batches])
    groups = [int(text.split()[1]) // 2 for text in captions]
    assert len(np.unique(keys, axis=0)) == len(set(groups))
    ids = np.concatenate([batch["caption_id"] for batch in batches])
    assert len(np.unique(ids, axis=0)) == len(set(captions))


def test_several_captions_of_a_sample(config):
    config.inputs.text.templates, config.inputs.text.max_list = ((1.0, "{label}"), (1.0, "{label} {tags}")), 1
    (plain,) = take(config, 1)
    config.inputs.text.num_items = 2
    (whole,) = take(config, 1)
    shapes = {name: whole[name].shape for name in ("text", "text_valid", "caption_id", "key_id")}
    assert shapes == dict(text=(16, 2, 16), text_valid=(16, 2, 16), caption_id=(16, 2, 2), key_id=(16, 2))
    for name in ("text", "text_valid", "caption_id"):
        np.testing.assert_array_equal(whole[name][:, 0], plain[name])
    assert all(np.array_equal(whole[name], plain[name]) for name in ("image", "key_id"))
    first, second = (texts(config, [dict(text=whole["text"][:, i])]) for i in range(2))
    assert all(a.split()[:2] == b.split()[:2] for a, b in zip(first, second)), "of one sample"
    assert sum(a != b for a, b in zip(first, second)) > 12
    (half,) = take(config, 1, shard=(1, 2))
    np.testing.assert_array_equal(half["text"], whole["text"][8:])
    config.inputs.text.num_items = 0
    with pytest.raises(DataError, match=r"data\.inputs\.text\.num_items is 0; a sample has at least 1"):
        take(config, 1)


def test_mixture_shares(config, shards):
    config.sources.main.urls = str(shards / "s-00.tar")
    config.sources.other = dict(urls=str(shards / "s-01.tar"), weight=3.0)
    config.sources.unused = dict(urls="missing.tar", weight=0.0)
    with open_stream(config, batch_size=32, seed=0) as stream:
        captions = texts(config, [next(stream) for _ in range(4)])
        assert stream.epoch_size == 88 + 56
        assert stream.sources(256) == [
            dict(name="main", samples=90, left_out={}, share=0.25, epochs=64 / 88),
            dict(name="other", samples=60, left_out={}, share=0.75, epochs=192 / 56),
        ]
    assert sum(int(text.split()[1]) < 90 for text in captions) == 32


def test_batches_by_source_hold_one_source_and_keep_the_shares(config, shards):
    config.batches = "by_source"
    config.sources = dict(
        a=dict(urls=str(shards / "s-00.tar"), weight=2.0), b=dict(urls=str(shards / "s-{01,02}.tar"), weight=1.0)
    )
    batches = [[int(text.split()[-1]) for text in texts(config, [batch])] for batch in take(config, 9)]
    kinds = [{number < 90 for number in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert sum(kind == {True} for kind in kinds) == 6
    assert_equal(take(config, 1, position=48), take(config, 4)[3:])


def test_a_filter_keeps_what_satisfies_it_and_counts_the_rest(config, tmp_path):
    config.sources.main.filter = 'group >= 50 and tags contains "red"'
    with open_stream(config, batch_size=8, seed=0, workdir=tmp_path) as stream:
        assert stream.summary()["samples"] == 111 and stream.summary()["skipped"] == {"filtered": 100}
        batches = [next(stream) for _ in range(13)]
    numbers = [int(text.split()[-1]) for text in texts(config, batches)]
    assert len(set(numbers)) == len(numbers) == 104 and min(numbers) >= 100
    assert sum("filtered" in line for line in (tmp_path / "skipped.jsonl").read_text().splitlines()) == 100
    config.sources.main.filter = "grup >= 50"
    with pytest.raises(DataError, match=r"data\.sources\.main.*filter.*'grup'.*did you mean 'group'"):
        open_stream(config, batch_size=8, seed=0)


def test_sources_may_have_captions_of_their_own(config, shards):
    config.sources = dict(
        a=dict(urls=str(shards / "s-00.tar"), templates=((1.0, "a picture of {label}"),)),
        b=dict(urls=str(shards / "s-{01,02}.tar"), group_key="group"),
    )
    batches = take(config, 2)
    assert {text.startswith("a picture of") for text in texts(config, batches)} == {True, False}


def damaged(tmp_path, config, bad: dict[int, bytes], total: int = 120):
    samples = {f"{i:05d}": sample(i) for i in range(total)}
    for i, content in bad.items():  # of the same length, so that the other samples stay in their places
        samples[f"{i:05d}"]["png"] = content.ljust(len(samples[f"{i:05d}"]["png"]), b"\0")
    config.sources.main.urls = str(write_tar(tmp_path / "d.tar", samples))
    return config


def test_bad_images_are_replaced_and_counted(config, tmp_path, straight):
    bad = {5: b"<html>", 40: sample(40)["png"][:60], 77: b"x" * 10}
    good = take(damaged(tmp_path, config, {}), 15, batch_size=8)
    damaged(tmp_path, config, bad)
    with open_stream(config, batch_size=8, seed=3, workdir=tmp_path / "run") as stream:
        batches = [next(stream) for _ in range(15)]
        counters = stream.counters()
    counted = {"data/replaced": 3, "data/bad_share": 3 / 120, "data/bad/not_an_image": 2, "data/bad/corrupt_png": 1}
    assert counters == counted
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    path = str(tmp_path / "d.tar")
    expected = {(path, f"{i:05d}", "corrupt png" if i == 40 else "not an image") for i in bad}
    assert {(line["shard"], line["key"], line["reason"]) for line in lines} == expected and len(lines) == 3
    # Every other row is what it would have been.
    before, after = texts(config, good), texts(config, batches)
    changed = [(a, b) for a, b in zip(before, after) if a != b]
    assert {a for a, _ in changed} == {f"thing {i}" for i in bad}
    assert not {b for _, b in changed} & {f"thing {i}" for i in bad}
    # The same for two processes, and a resumed run does not list them again.
    halves = [take(config, 15, batch_size=8, shard=(i, 2), workdir=tmp_path / "run") for i in range(2)]
    assert_equal([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves)], batches)
    take(config, 15, batch_size=8, workdir=tmp_path / "run")
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 3
    parts = [tmp_path / "run" / f"skipped-{i}.jsonl" for i in range(2)]
    assert sum(len(part.read_text().splitlines()) for part in parts if part.exists()) == 3


def test_bad_images_are_counted_by_source_and_an_account_that_broke_off_goes_on(config, tmp_path, shards):
    damaged(tmp_path, config, dict.fromkeys((5, 40), b"<html>"))
    config.sources.other = dict(urls=str(shards / "s-00.tar"))
    account = tmp_path / "run" / "skipped.jsonl"
    account.parent.mkdir()
    account.write_text('{"shard": "d.tar", "ke')
    with open_stream(config, batch_size=8, seed=3, workdir=account.parent) as stream:
        for _ in range(30):  # an epoch of d.tar, and more of the other
            next(stream)
        counters = stream.counters()
    assert counters["data/replaced"] == counters["data/replaced/main"] == 2 and counters["data/replaced/other"] == 0
    broken, *lines = account.read_text().splitlines()
    assert broken.endswith("ke") and {json.loads(line)["key"] for line in lines} == {"00005", "00040"}


def test_too_many_bad_images_end_the_run(config, tmp_path):
    damaged(tmp_path, config, dict.fromkeys(range(0, 120, 10), b"<html>"))
    config.max_bad_share = 0.08
    message = (
        r"(9|10)\.\d% of 5\d\d samples could not be read \(not an image \d+\); .*d\.tar.*data\.max_bad_share=0\.08"
    )
    with open_stream(config, batch_size=8, seed=0) as stream, pytest.raises(DataError, match=message):
        for _ in stream:
            pass
    config.max_bad_share = 0.2
    take(config, 100, batch_size=8)


def test_few_bad_samples_of_few_do_not_end_the_run(config, tmp_path):
    damaged(tmp_path, config, dict.fromkeys(range(4), b"<html>"), total=10)
    config.lanes, config.window = 2, 32
    take(config, 5, batch_size=4)


def test_a_window_without_a_readable_sample_is_an_error(config, tmp_path):
    damaged(tmp_path, config, dict.fromkeys(range(30), b"<html>"), total=30)
    with pytest.raises(DataError, match=r"none of .* samples of one shuffle window can be read.*not an image"):
        take(config, 1, batch_size=8)


def test_what_the_index_left_out_is_reported(config, tmp_path):
    samples = {f"{i:05d}": sample(i) for i in range(40)}
    samples["00007"]["txt"] = b"  "
    del samples["00009"]["png"]
    config.sources.main.urls = str(write_tar(tmp_path / "d.tar", samples))
    with open_stream(config, batch_size=8, seed=0, workdir=tmp_path / "run") as stream:
        summary, counters = stream.summary(), stream.counters()
    assert summary["skipped"] == {"empty caption": 1, "no image": 1} and summary["samples"] == 38
    assert counters["data/skipped/empty_caption"] == 1
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == ["00007", "00009"]


def test_a_shard_that_changes_or_vanishes_ends_the_run(config, tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i:05d}": sample(i) for i in range(40)})
    config.sources.main.urls = str(path)
    with open_stream(config, batch_size=8, seed=0) as stream:
        write_tar(path, {f"{i:05d}": sample(i) for i in range(100, 135)})
        with pytest.raises(DataError, match=r"stale index.*a\.tar"):
            for _ in range(20):
                next(stream)
        with pytest.raises(DataError, match="closed"):
            next(stream)
    with open_stream(config, batch_size=8, seed=0) as stream:
        path.unlink()
        with pytest.raises(DataError, match=r"a\.tar does not exist"):
            next(stream)


def test_the_fingerprint_changes_with_the_order(config, shards):
    def fingerprint(**kwargs):
        with open_stream(config, **(dict(batch_size=16, seed=0) | kwargs)) as stream:
            return stream.fingerprint

    first = fingerprint()
    assert first == fingerprint(batch_size=32, position=64, shard=(1, 2))
    others = [fingerprint(seed=1)]
    config.window = 5
    others.append(fingerprint())
    config.sources.main.urls = str(shards / "s-{00..01}.tar")
    others.append(fingerprint())
    assert len({first, *others}) == 4


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("data-")]


def test_close_leaves_no_thread_and_may_be_repeated(config):
    config.prefetch = 30
    stream = open_stream(config, batch_size=64, seed=0)
    next(stream)
    assert threads()
    start = time.monotonic()
    stream.close()
    stream.close()
    assert not threads() and time.monotonic() - start < 30
    with open_stream(config, batch_size=64, seed=0):
        pass
    assert not threads()


def test_an_abandoned_stream_does_not_hold_the_process(config):
    code = f"""
from xmodal.configs.base import get_config
from data_pipelines.io.paths import REPOSITORY
from data_pipelines.stream.stream import open_stream
data = get_config().data
data.inputs = {config.inputs.to_dict()!r}
data.sources.main = dict(urls={config.sources.main.urls!r})
stream = open_stream(data, batch_size=16, seed=0)
next(stream)
print(len(next(stream)["text"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=REPOSITORY)
    assert done.stdout == "16\n"


def test_memory_is_stated(config):
    with open_stream(config, batch_size=16, seed=0) as stream:
        summary = stream.summary()
    assert summary["lanes"] == summary["lanes_here"] == 8 and summary["shards"] == 3 and summary["blocks"] > 50
    assert 0 < summary["memory_bytes"] < 3 * summary["bytes"]


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        ({}, dict(batch_size=12), r"batch_size=12 is not a multiple of data\.lanes=8"),
        ({}, dict(position=4), r"position=4 is not a multiple of data\.lanes=8"),
        ({}, dict(shard=(0, 3)), r"3 processes cannot share data\.lanes=8"),
        ({}, dict(shard=(2, 2)), "process 2"),
        (dict(threads=-1), {}, r"data\.threads is -1"),
        (dict(window=0), {}, r"data\.window is 0"),
        (dict(lanes=1024), dict(batch_size=1024), "lower data.lanes"),
    ],
)
def test_impossible_settings(config, change, kwargs, message):
    config.update(change)
    with pytest.raises(DataError, match=message):
        open_stream(config, **(dict(batch_size=16, seed=0) | kwargs))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "names no data"),
        (dict(a=dict(url="x.tar")), "data.sources.a has no key 'url'; did you mean 'urls'"),
        (dict(a=dict(weight=1.0)), "data.sources.a needs `urls`"),
        (dict(a=dict(urls="x.tar", weight=-1.0)), r"data\.sources\.a\.weight is -1\.0"),
        (dict(a=dict(urls="missing-{0..3}.tar")), r"data\.sources\.a: no shard matches 'missing-\{0\.\.3\}\.tar'"),
    ],
)
def test_impossible_sources(config, sources, message):
    del config.sources.main
    config.sources.update(sources)
    with pytest.raises(DataError, match=message):
        open_stream(config, batch_size=16, seed=0)
