"""Builds: the same bytes for any number of workers and interruptions, and an account of every row of the input."""

import argparse
import io
import json
import os
import queue
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image
from servers import FaultyServer, serving
from tiny_inputs import data_section, make_rules
from tiny_shards import encode

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files, join
from data_pipelines.prepare.building import Limits, build, build_shard, plan
from data_pipelines.prepare.hold_out import linked
from data_pipelines.prepare.writer import ImageRule
from data_pipelines.sources import open_source
from data_pipelines.workers import interrupts_to
from xmodal.__main__ import main
from xmodal.commands.data_inputs import add_engine_arguments, beam_arguments

LIMITS = Limits(bytes=40_000, samples=20)


@pytest.fixture
def files():
    with Files() as files:
        yield files


@pytest.fixture
def listed(tmp_path):
    """A list of 70 images: one is missing, one has no caption, and two turn out to be damaged when they are read."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = ["file_name,caption,width"]
    for i in range(70):
        damaged = {30: b"<html>", 31: encode(31, "jpg")[:-40]}
        (folder / f"{i}.jpg").write_bytes(damaged.get(i) or encode(i, "jpg"))
        lines.append(f"{i}.jpg,{'' if i == 9 else f'Thing {i}'},{i}")
    (folder / "6.jpg").unlink()
    path = folder / "list.csv"
    path.write_text("\n".join(lines))
    return path


def job_of(files, listed, out, limits=LIMITS):
    config = data_section()
    config.inputs.text.lower = False
    source = open_source("input", dict(type="files", urls=str(listed)), config, files, every_field=True)
    return plan(source, str(out), limits, ImageRule(), make_rules(text=dict(lower=False)), files)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def built_source(files, out, every_field=False):
    """Opens built shards as a run does, and looks at none of them: their index must be there."""
    config, scanned = data_section(), []
    config.inputs.text.lower = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipelines.sources.index.examine", lambda entry, *_: scanned.append(entry.path))
        source = open_source("built", dict(urls=join(str(out), "*.tar")), config, files, every_field=every_field)
    assert not scanned
    return source


def read_back(files, out):
    """Returns caption -> (key, image, fields) of all samples of built shards."""
    source = built_source(files, out, every_field=True)
    blocks = source.blocks(10**6)
    samples = [sample for i in range(len(blocks)) for sample in source.read(blocks, i)]
    assert len({sample.key for sample in samples}) == len(samples)
    return {sample.record.text: (sample.key, bytes(sample.content), sample.record.fields) for sample in samples}


def test_every_row_is_in_a_shard_or_in_the_account(files, listed, tmp_path):
    out = tmp_path / "out"
    manifest = build(job_of(files, listed, out), dict(a=1))
    assert manifest == json.loads((out / "manifest.json").read_text())
    names = {shard["name"] for shard in manifest["shards"]}
    assert {path.name for path in out.iterdir()} == {*names, "manifest.json", "skipped.jsonl", ".index"}
    assert manifest["complete"]
    assert manifest["skipped"] == {"corrupt jpeg": 1, "empty caption": 1, "no image": 1, "not an image": 1}
    assert manifest["samples"] == 66 == sum(shard["samples"] for shard in manifest["shards"])
    assert len(manifest["shards"]) >= 4
    rows = [row for shard in manifest["shards"] for _, start, end in shard["rows"] for row in range(start, end)]
    assert rows == list(range(70))
    for shard in manifest["shards"]:
        assert shard["samples"] <= LIMITS.samples
        assert shard["bytes"] == os.path.getsize(out / shard["name"])
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        "row 7": "no image",
        "row 10": "empty caption",
        "row 31": "not an image",
        "row 32": "corrupt jpeg",
    }
    found = read_back(files, out)
    assert set(found) == {f"Thing {i}" for i in range(70) if i not in (6, 9, 30, 31)}
    fields = dict(file_name="50.jpg", caption="Thing 50", width="50", source_path="50.jpg")
    assert found["Thing 50"][1:] == (encode(50, "jpg"), fields)


def test_workers_interruptions_and_buckets_change_nothing(files, listed, tmp_path):
    build(job_of(files, listed, tmp_path / "one"), {})
    build(job_of(files, listed, tmp_path / "two"), {}, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def only_some(job, missing):
        for shard in missing[1::2]:
            build_shard(job, shard)
        raise KeyboardInterrupt

    third, bucket = tmp_path / "three", "memory://bucket/built"
    for out in (third, bucket):
        with pytest.raises(KeyboardInterrupt):
            build(job_of(files, listed, out), {}, run=only_some)
    (third / "000000.tar.0123.part").write_bytes(b"left by a worker that was killed")
    written = {path.name: path.stat().st_mtime_ns for path in third.glob("*.tar")}
    assert written
    build(job_of(files, listed, third), {})
    build(job_of(files, listed, bucket), {})
    assert contents(third) == contents(tmp_path / "one")
    assert {name: (third / name).stat().st_mtime_ns for name in written} == written
    for name, content in contents(third).items():
        assert files.read_all(f"{bucket}/{name}") == content
    assert read_back(files, bucket) == read_back(files, third) == read_back(files, tmp_path / "two")


def test_the_index_is_that_of_a_scan(files, listed, tmp_path):
    build(job_of(files, listed, tmp_path / "out"), {})
    written = built_source(files, tmp_path / "out")
    (kept,) = (tmp_path / "out" / ".index").iterdir()
    kept.unlink()
    config = data_section()
    scanned = open_source("scanned", dict(urls=str(tmp_path / "out" / "*.tar")), config, files)
    assert kept.exists()
    assert written.blocks(1).digest() == scanned.blocks(1).digest()
    assert written.identity() == scanned.identity() and written.samples == scanned.samples == 66


def test_another_build_in_the_same_folder_is_refused(files, listed, tmp_path):
    out = tmp_path / "out"
    build(job_of(files, listed, out), dict(max_side=10, same=1))
    before = contents(out)
    assert build(job_of(files, listed, out), dict(max_side=10, same=1))["complete"]
    with pytest.raises(DataError, match=r"other options \(max_side: 10 then, 20 now\)"):
        build(job_of(files, listed, out), dict(max_side=20, same=1))
    listed.write_text(listed.read_text() + "\n1.jpg,once more,1")
    with pytest.raises(DataError, match="the input changed"):
        build(job_of(files, listed, out), dict(max_side=10, same=1))
    assert contents(out) == before
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="shards that this build did not write"):
        build(job_of(files, listed, out), dict(max_side=10, same=1))


@pytest.mark.parametrize("limits", [Limits(samples=7), Limits(bytes=5_000), Limits(1, 1)])
def test_shards_keep_to_their_size(files, listed, tmp_path, limits):
    job = job_of(files, listed, tmp_path / "out", limits)
    sizes = [slice(first, last) for first, last in zip(job.firsts[:-1], job.firsts[1:])]
    assert sum(job.samples(shard) for shard in range(len(job))) == 68
    for shard, part in enumerate(sizes):
        one = part.stop - part.start == 1  # a block is not divided
        assert one or job.blocks.bytes[part].sum() <= limits.bytes
        assert one or job.samples(shard) <= limits.samples


def test_the_command_builds_from_class_folders_lists_and_numbers(files, tmp_path, capsys):
    for i in range(6):
        path = tmp_path / "classes" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(i, size=(60, 40)))
    command = ["data", "build", str(tmp_path / "classes"), "--out", str(tmp_path / "a"), "--template", "a {label}"]
    assert main([*command, "--max-side", "30", "--workers", "1"]) == 0
    assert "6 samples in 1 shard (" in capsys.readouterr().out
    assert set(read_back(files, tmp_path / "a")) == {"a cat", "a dog"}
    made = ["data", "build", "40", "--type", "synthetic", "--scale", "0.1", "--out", str(tmp_path / "b")]
    assert main([*made, "--shard-samples", "15", "--workers", "1"]) == 0
    assert len(read_back(files, tmp_path / "b")) == 40
    again = ["data", "build", str(tmp_path / "b" / "*.tar"), "--type", "tar", "--out", str(tmp_path / "c")]
    assert main([*again, "--filter", 'label == "dog"', "--workers", "1"]) == 0
    assert {fields["label"] for _, _, fields in read_back(files, tmp_path / "c").values()} == {"dog"}


@pytest.fixture
def copied(tmp_path):
    """A list of 60 images in three files each: a PNG, a JPEG of it, and one of half its size."""
    folder, lines = tmp_path / "in", ["image,caption"]
    folder.mkdir()
    for i in range(60):
        image = Image.open(io.BytesIO(encode(i, size=(96, 80))))
        for kind, options, size in (("png", {}, (96, 80)), ("jpg", dict(quality=80), (96, 80)), ("webp", {}, (48, 40))):
            image.resize(size).save(folder / f"{i}.{kind}", **options)
            lines.append(f"{i}.{kind},thing {i}")
    (folder / "empty.png").touch()
    (folder / "list.csv").write_text("\n".join([*lines, "empty.png,nothing"]))
    return folder / "list.csv"


def test_copies_are_on_one_side_of_what_is_held_out(files, copied, tmp_path, capsys):
    command = ["data", "build", str(copied), "--hold-out", "25%", "--shard-samples", "20"]
    main([*command, "--workers", "1", "--out", str(tmp_path / "a")])
    said = capsys.readouterr()
    assert f"--config.data.sources.train.urls='{tmp_path}/a/train/*.tar' \\\n" in said.out
    assert f"--config.evals.held_out.source.urls='{tmp_path}/a/held_out/*.tar'\n" in said.out
    assert said.err.count("left out: empty image: 1") == 1
    main([*command, "--workers", "2", "--out", str(tmp_path / "b")])
    sides = {}
    for part in ("train", "held_out"):
        assert contents(tmp_path / "a" / part) == contents(tmp_path / "b" / part)
        manifest = json.loads((tmp_path / "a" / part / "manifest.json").read_text())
        assert all(shard["samples"] <= 20 for shard in manifest["shards"])
        source = built_source(files, tmp_path / "a" / part, every_field=True)
        blocks = source.blocks(10**6)
        for record in (sample.record for i in range(len(blocks)) for sample in source.read(blocks, i)):
            sides.setdefault(record.text, []).append(part)
    assert len(sides) == 60 and all(len(found) == 3 for found in sides.values())
    assert all(len(set(found)) == 1 for found in sides.values())
    assert 5 <= sum(found[0] == "held_out" for found in sides.values()) <= 26


def test_hashes_of_few_other_bits_are_linked():
    numbers = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64)
    near = numbers[:100] ^ np.uint64(0b1000_0000_0001_0000_0000_0000_0000_0001)
    far = numbers[100:200] ^ np.uint64(0b1111)
    groups = linked(np.concatenate([numbers, near, far, near[:50] ^ np.uint64(2**63)]))
    assert (groups[:100] == groups[300:400]).all() and len(set(groups[:300].tolist())) == 300
    assert not (groups[100:200] == groups[400:500]).any()
    assert (groups[:50] == groups[500:]).all(), "through another"


def test_texts_are_held_out_by_what_they_say(files, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(caption=f"Thing {i % 40}")) + "\n" for i in range(120)))
    main(["data", "build", str(tmp_path / "a.jsonl"), "--texts", "--hold-out", "0.3", "--out", str(tmp_path / "o")])
    counts = {}
    for part in ("train", "held_out"):
        config = data_section()
        config.inputs = dict(text=dict(type="text"))
        source = open_source("built", dict(urls=str(tmp_path / "o" / part / "*.tar")), config, files)
        blocks = source.blocks(10**6)
        counts[part] = {sample.record.text for i in range(len(blocks)) for sample in source.read(blocks, i)}
        assert source.samples == 3 * len(counts[part])
    assert not counts["train"] & counts["held_out"] and 4 <= len(counts["held_out"]) <= 20


def test_what_cannot_be_fetched_is_in_the_account(tmp_path, capsys):
    with serving(FaultyServer()) as server:
        server.files |= {f"{i}.png": encode(i) for i in range(5)}
        server.faults["3.png"] = ("503", 99)
        names = [f"{i}.png" for i in range(6)]
        rows = [f"{server.address}/{name}?token=secret\tthing {name}" for name in names]
        (tmp_path / "list.tsv").write_text("\n".join(rows))
        command = ["data", "build", str(tmp_path / "list.tsv"), "--columns", "url,caption", "--attempts", "1"]
        main([*command, "--workers", "1", "--out", str(tmp_path / "out")])
    assert "left out: fetch failed: 1, no image: 1; see" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [("row 4", "fetch failed"), ("row 6", "no image")]


def test_beam_that_is_missing_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(SystemExit):
        main(["data", "build", "9", "--type", "synthetic", "--engine", "beam", "--out", str(tmp_path / "out")])
    assert "pip install -e '.[beam]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [["--project=a", "'--region=b c'"], ["--project=a '--region=b c'"]])
def test_options_of_beam_come_last_quoted_together_or_not(given):
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    args = parser.parse_args(["--engine", "beam", "--runner", "FlinkRunner", "--beam-options", *given])
    assert beam_arguments(args) == ["--runner=FlinkRunner", "--project=a", "--region=b c"]


@pytest.mark.parametrize("out", ["file", "file/inner"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["data", "build", "9", "--type", "synthetic", "--out", str(tmp_path / out)])
    assert stopped.value.code == 1
    assert f"{out} cannot be built (" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.csv"], 1, "nowhere.csv"),
        (["x.csv", "--split", "train"], 1, "no key 'split'"),
        (["x.csv", "--quality", "101"], 1, "quality 101"),
        (["many", "--type", "synthetic"], 2, "the number of samples"),
        (["a", "b", "--type", "tfds"], 2, "one input and not 2"),
        (["x", "--type", "file"], 1, "did you mean 'files'"),
        (["x.csv", "--runner", "DirectRunner"], 2, "--engine beam"),
        (["3", "--type", "synthetic", "--scale", "0.1", "--hold-out", "1%"], 1, "of 3 samples none is held out"),
        (["x.csv", "--hold-out", "110%"], 2, "'110%' is not a share such as 10% or 0.1"),
        (["x.csv", "--workers", "0"], 2, "must be above 0"),
        (["9", "--type", "synthetic", "--out", "shards-{a,b}"], 1, "makes it a pattern"),
    ],
)
def test_wrong_commands_say_what_is_wrong(tmp_path, capsys, arguments, code, message):
    with pytest.raises(SystemExit) as stopped:
        main(["data", "build", "--out", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_waits_for_a_safe_place():
    before, results = signal.getsignal(signal.SIGINT), queue.SimpleQueue()
    with interrupts_to(results):
        signal.raise_signal(signal.SIGINT)  # raised here, it could break the pool's locks
        assert results.get(timeout=5) is None
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_behind_and_the_build_goes_on(files, tmp_path, how):
    command = ["data", "build", "3000", "--type", "synthetic", "--scale", "0.3", "--shard-samples", "50"]
    command += ["--quality", "80", "--workers", "2", "--out", str(tmp_path / "out")]
    running = subprocess.Popen(
        [sys.executable, "-m", "xmodal", *command], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/*.tar")) and time.monotonic() < deadline:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.02)
        children = psutil.Process(running.pid).children(recursive=True)
        assert children
        os.killpg(running.pid, how) if how == signal.SIGINT else running.kill()
        _, said = running.communicate(timeout=30)
        assert not psutil.wait_procs(children, timeout=30)[1]
    finally:
        running.kill()
    if how == signal.SIGINT:
        assert running.returncode == 130
        assert said == b"interrupted; the same command goes on from here\n"
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]
    done = len(list(tmp_path.glob("out/*.tar")))
    assert 0 < done < 60
