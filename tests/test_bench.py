"""The benchmarks of the input pipeline, each at a tiny size: what they compute, and the tables they leave behind."""

import argparse
import json
import random

import numpy as np
import pytest
import webdataset

from xmodal.__main__ import main
from xmodal.bench import loss as bench_loss
from xmodal.bench import shuffle as bench_shuffle
from xmodal.bench import step as bench_step
from xmodal.bench.data import Round, table_rows
from xmodal.bench.data_sets import SETS, caption, jpeg
from xmodal.objectives import fine_grained


def run(tmp_path, *arguments: str) -> dict:
    file = tmp_path / "table.json"
    assert not main(["bench", *arguments, "--json", str(file)])
    return json.loads(file.read_text())


def test_data(tmp_path):
    made = run(
        tmp_path, "data", "--image", "small", "--rounds", "1", "--samples", "64", "--batch", "8", "--workers", "1"
    )
    rows = {row["loader"]: row for row in made["table"]}
    assert {"raw decoder", "raw decoder, 1 thread", "our stream", "webdataset + Pillow"} <= rows.keys()
    assert all(row["CPU ms/sample"] > 0 and row["samples/s"] > 0 for row in rows.values())
    assert made["environment"]["python"]


def test_data_ratios_are_those_of_the_rounds():
    rounds = {
        "raw decoder": [Round(2.0, 2.0), Round(1.0, 1.0), Round(1.0, 4.0)],
        "our stream": [Round(2.2, 1.0), Round(1.3, 1.0), Round(1.2, 2.0)],
        "open_clip": [Round(6.6, 1.0), Round(2.6, 1.0), Round(3.6, 1.0)],
    }
    rows = {row[1]: row[2:] for row in table_rows("big", rounds)}
    assert rows["our stream"] == [1300.0, 1, 3.0, 20.0]
    assert rows["raw decoder"] == [1000.0, 0, 3.3, ""]
    assert rows["open_clip"][2] == 1.0
    assert [row[4] for row in table_rows("big", {k: v for k, v in rounds.items() if k != "open_clip"})] == ["", ""]


@pytest.mark.parametrize("arguments", [["--samples", "100"], ["--rounds", "0"], ["--batch", "0"]])
def test_data_refuses_sizes_that_give_no_table(capsys, arguments):
    with pytest.raises(SystemExit):
        main(["bench", "data", *arguments])
    assert "--samples a multiple of --batch" in capsys.readouterr().err


@pytest.mark.parametrize(("spec", "short_side", "kilobytes"), [(SETS[0], 375, 110), (SETS[1], 256, 41)])
def test_images_have_the_size_of_real_ones(spec, short_side, kilobytes):
    data = [jpeg(spec, number) for number in range(6)]
    assert np.mean([len(image) for image in data]) == pytest.approx(1000 * kilobytes, rel=0.15)
    assert jpeg(spec, 3) == data[3] and len(set(data)) == 6
    assert 4 <= len(caption(0).split()) <= 15 and caption(0) != caption(1)


def test_shuffle(tmp_path):
    made = run(
        tmp_path, "shuffle", "--shards", "40", "--shard-samples", "200", "--sample-bytes", "1000000", "--workers", "2",
        "--block-bytes", "20000000", "--windows", "2", "20", "--buffers", "100", "--batch", "64", "--batches", "24",
    )  # fmt: skip
    small, large, buffered, ideal = made["table"]
    assert small["shards in a batch"] < large["shards in a batch"] <= ideal["shards in a batch"]
    assert buffered["shards in a batch"] < small["shards in a batch"]
    assert buffered["pairs of one shard"] > small["pairs of one shard"] > large["pairs of one shard"]
    assert small["memory GB"] < large["memory GB"] < ideal["memory GB"]


def test_quality_of_batches():
    distinct, pairs = bench_shuffle.quality(np.array([[1, 1, 2, 3], [5, 5, 5, 5]]))
    assert distinct == 2.0 and pairs == pytest.approx((1 / 6 + 1) / 2)


@pytest.mark.parametrize(("buffer", "initial"), [(50, 20), (20, 50), (1, 1), (300, 100)])
def test_simulated_buffers_are_those_of_webdataset(buffer, initial):
    ours = bench_shuffle.drawn(iter(range(200)), buffer, random.Random(4), initial)
    theirs = webdataset.filters._shuffle(iter(range(200)), buffer, initial, rng=random.Random(4))
    assert list(ours) == list(theirs)


def test_plan(tmp_path):
    sizes = ["--shards", "20", "--shard-samples", "300", "--sample-bytes", "40000", "--batch", "16"]
    made = run(tmp_path, "plan", *sizes)
    assert made["title"].startswith("6,000 samples in 20 shards, ")
    steps = {row["step"]: row for row in made["table"]}
    total = next(row for name, row in steps.items() if name.endswith("in all"))
    assert 0 < total["seconds"] < 60
    assert 0 < total["memory GiB"] <= total["peak GiB"] < 8


def test_memory_of_fine_grained_losses():
    """Doubling the batch doubles ours and quadruples what holds all similarities; nothing is run."""
    sizes = dict(fine=True, devices=8, dim=16, patches=49, words=16, batches=[256, 512])
    title, columns, (small, large) = bench_loss.compiled(argparse.Namespace(**sizes))
    assert title.endswith("8 devices, width 16, 49 patches, 16 words") and len(columns) == len(large) == 11
    grown = {name.removesuffix(" MiB"): b / a for name, a, b in zip(columns, small, large) if name.endswith("MiB")}
    assert grown["filip naive"] > 3.5 and grown["flair naive"] > 3.5
    assert grown["filip ring"] < 2.5 and grown["flair ring"] < 2.5 and grown["sparc"] < 2.5
    found = dict(zip(columns, large))
    assert found["filip naive MiB"] > 512 / 8 * 512 * 49 * 16 * 4 / 2**20 > 2 * found["filip ring MiB"]
    assert fine_grained.SLICE == 2**22, "the naive form leaves nothing behind"


def test_the_largest_batch_is_on_the_line_through_two():
    tried = {256: 10_000, 512: 18_000}  # 2,000 and 31.25 a sample
    assert bench_step.fitting(tried, 34_100, 64) == 1024
    assert bench_step.fitting(tried, 33_900, 64) == 960
    assert bench_step.fitting(tried, 100, 64) == 64
