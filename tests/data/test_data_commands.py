"""`python -m xmodal data index | verify | stats | preview | bench`, on small real data."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from tiny_inputs import data_section, make_rules
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.examine.throughput import Speed
from data_pipelines.examine.verify import UNREADABLE, spot_check, verify
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import training_image
from data_pipelines.io.storage import Files
from data_pipelines.sources import index, index_source, open_source
from data_pipelines.sources.index import NotIndexed
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.__main__ import main
from xmodal.commands.data_bench import judge

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def faulty(tmp_path):
    """Two shards of 20 samples: one without a caption, one cut image, one that is no image, one caption twice."""
    first = {f"{i:03d}": sample(i, "jpg") for i in range(10)}
    second = {f"{i:03d}": sample(i) for i in range(10, 20)}
    del first["002"]["txt"]
    first["005"]["jpg"] = first["005"]["jpg"][:-40]
    second["012"]["png"] = b"<html>"
    second["013"]["txt"] = second["014"]["txt"] = EVIL.encode()
    second["019"] = dict(png=encode(19, size=(60, 30)), txt=b"thing 19", json=json.dumps(dict(label="wide")).encode())
    write_tar(tmp_path / "a.tar", first)
    write_tar(tmp_path / "b.tar", second)
    return str(tmp_path / "*.tar")


def run(*arguments):
    main(["data", *map(str, arguments)])


def refused(capsys, *arguments, code=1):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == code
    return capsys.readouterr().err


@pytest.mark.parametrize("action", ["index", "verify", "stats", "preview", "bench"])
def test_data_must_be_named_once_and_exist(action, capsys, tmp_path):
    assert "no data are named" in refused(capsys, action, code=2)
    assert "give one of them" in refused(capsys, action, "x.tar", "--config", "configs/demo.py", code=2)
    assert "--filter describes data that have no recipe" in refused(
        capsys, action, "--config", "configs/demo.py", "--filter", "a > 1", code=2
    )
    assert "no shard matches" in refused(capsys, action, tmp_path / "none-*.tar")
    (tmp_path / "no.tar").write_bytes(b"x" * 2048)
    assert "is not a tar archive" in refused(capsys, action, tmp_path / "no.tar")
    write_tar(tmp_path / "empty.tar", {})
    assert "no usable sample" in refused(capsys, action, tmp_path / "empty.tar")


def test_recipes_and_plain_names_are_the_same(faulty, tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    lines = ["from xmodal.configs import base", "def get_config():", "    c = base.get_config()"]
    entry = dict(urls=faulty, templates=((1.0, "{label}"),), filter="group >= 3")
    lines += ["    c.data.inputs = dict(image=dict(type='image'), text=dict(type='text'))"]
    recipe.write_text("\n".join([*lines, f"    c.data.sources = dict(data={entry})", "    return c"]))
    plain = [faulty, "--caption", "label", "--filter", "group >= 3"]
    for named, out in (plain, "plain"), (["--config", recipe], "recipe"):
        run("stats", *named, "--workers", 1, "--out", tmp_path / out)
    capsys.readouterr()
    found = [json.loads((tmp_path / out / "stats.json").read_text()) for out in ("plain", "recipe")]
    assert found[0].pop("data") != found[1].pop("data")
    assert found[0] == found[1]
    assert found[0]["samples"] == 13  # those of group 3 and more, the one without a group left out
    assert found[0]["sources"]["data"]["skipped"] == {"filtered": 7}


def test_options_may_hold_spaces(shards, tmp_path):
    """A condition, a template: argparse takes what starts with -- and holds a space for the name of a file."""
    options = ["--config.data.inputs.text.templates=((1.0, 'a picture of {label}'),)", "--config.seed=3"]
    assert main(["data", "stats", *options, str(shards / "s-00.tar"), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "stats.json").read_text())["together"]["characters"]["min"] > len("a picture of ")


def test_index_says_what_there_is_and_scans_only_what_is_new(faulty, tmp_path, capsys):
    run("index", faulty)
    out = capsys.readouterr().out
    assert re.search(r"data\s+2\s+19\s+[\d.]+ KiB\s+1", out)
    assert re.search(r"no caption\s+1", out)
    assert "2 shards scanned" in out and "0 were indexed already" in out
    write_tar(tmp_path / "c.tar", {"x": sample(1)})
    run("index", faulty)
    assert "1 shard scanned" in (out := capsys.readouterr().out) and "2 were indexed already" in out
    run("index", 40, "--type", "synthetic")
    assert "'synthetic' need no index" in capsys.readouterr().out


def test_index_has_no_limit_and_keeps_what_an_interruption_left(faulty):
    config, entry = data_section(), dict(urls=faulty)

    def interrupted(stats, *rest):
        yield from list(index.scan_all(stats[:1], *rest))
        raise KeyboardInterrupt

    scanned = []

    def noted(stats, *rest):
        scanned.extend(Path(stat.path).name for stat in stats)
        return index.scan_all(stats, *rest)

    with Files() as files:
        with pytest.raises(NotIndexed, match="python -m xmodal data index"):
            index.load(faulty, make_rules(), files, at_most=100)
        with pytest.raises(KeyboardInterrupt):
            index_source("main", entry, config, files, engine=interrupted)
        found = index_source("main", entry, config, files, engine=noted)
        assert scanned == ["b.tar"]
        assert found.samples == 19
        assert index.load(faulty, make_rules(), files, at_most=0).digest() == found.digest()
        assert index_source("main", dict(type="synthetic", samples=3), config, files) is None


def test_an_index_that_cannot_be_kept_is_an_error(faulty, monkeypatch):
    monkeypatch.setattr("data_pipelines.sources.sidecar.Sidecars.save", lambda self: None)
    with Files() as files, pytest.raises(DataError, match="the index that was just made is not there"):
        index_source("main", dict(urls=faulty), data_section(), files)


def test_indexing_in_processes_is_the_same(faulty, monkeypatch):
    stats = None
    with Files() as files:
        captions = make_rules()
        stats = list(files.stat_many(sorted(map(str, Path(faulty).parent.glob("*.tar")))).values())
        here = sorted(index.scan_all(stats, captions, files, ()), key=lambda entry: entry.path)
        monkeypatch.setattr(index, "_PROCESSES_FROM", 1)
        there = list(index.scan_all(stats, captions, files, (), 2))
    assert index.Index(tuple(here)).digest() == index.Index(tuple(there)).digest()


def test_verify_names_every_fault(faulty, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run("verify", faulty, "--workers", 2, "--json", tmp_path / "found.json")
    assert end.value.code == 1
    out = capsys.readouterr().out
    for shard, key, reason in (
        ("a.tar", "005", "corrupt jpeg"),
        ("b.tar", "012", "not an image"),
        ("a.tar", "002", r"no caption \(known\)"),
    ):
        assert len(re.findall(f"{shard}\t{key}\t{reason}\n", out)) == 1
    report = json.loads((tmp_path / "found.json").read_text())
    assert report["samples"] == report["of"] == 19
    assert report["found"] == {"data": {"corrupt jpeg": 1, "not an image": 1}}
    assert report["known"] == {"data": {"no caption": 1}}
    assert [fault["key"] for fault in report["faults"]] == ["005", "012"]


def test_verify_is_content_with_what_the_index_knows(shards, capsys):
    run("verify", shards / "s-{00..02}.tar", "--sample", 50)
    assert "50 of 211 samples read and decoded" in capsys.readouterr().out
    run("verify", shards / "s-00.tar", "--workers", 1)
    assert "all can be used" in capsys.readouterr().out


def test_what_the_index_does_not_describe_is_found(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}": sample(i) for i in range(30)})
    with Files() as files:
        source = open_source("main", dict(urls=str(path)), data_section(), files)
        spot_check(source)
        path.write_bytes(path.read_bytes().replace(b"7.txt", b"7.tax"))  # headers whose checksums are wrong
        with pytest.raises(DataError, match="stale index"):
            spot_check(source)
        found = []
        findings = verify([source], lambda *fault: found.append(fault))
    assert findings.samples == 30
    assert 1 <= findings.faults[UNREADABLE] <= 30
    assert all(name == "main" and str(path) in fault.key for name, fault in found)


class Page(HTMLParser):
    """Collects the tags of a page and what it says."""

    def __init__(self, path):
        super().__init__()
        self.source, self.tags, self.text = Path(path).read_text(), [], ""
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += f"{data}\n"

    def check(self):
        """Nothing is loaded, nothing but our script runs."""
        sources = [v for _, attributes in self.tags for k, v in attributes.items() if k in ("src", "href")]
        assert all(source.startswith(("data:image/", "#")) for source in sources)
        assert [tag for tag, _ in self.tags].count("script") == 1
        return self

    def pictures(self):
        uris = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for uri in uris]


def test_stats_measure_and_plot(faulty, tmp_path, tokenizer_file, capsys):
    arguments = (
        faulty,
        "--tokenizer",
        tokenizer_file,
        "--config.data.inputs.text.length=6",
        "--config.data.inputs.image.size=22",
    )
    run("stats", *arguments, "--workers", 2, "--out", tmp_path / "two")
    out = capsys.readouterr().out
    run("stats", *arguments, "--workers", 1, "--out", tmp_path / "one")
    text = (tmp_path / "one" / "stats.json").read_text()
    assert text == (tmp_path / "two" / "stats.json").read_text()
    found = json.loads(text)
    whole, source = found["together"], found["sources"]["data"]
    assert (found["samples"], source["looked_at"], source["samples"], source["share"]) == (19, 19, 19, 1.0)
    assert source["skipped"] == {"no caption": 1} and whole["bad"] == {"not an image": 1}
    assert whole["formats"] == {"jpeg": 9, "png": 9}
    texts = [f"thing {i}" for i in range(20) if i not in (2, 13, 14)] + [EVIL, EVIL]
    lengths = [len(tokens) + 2 for tokens in Tokenizer.load(tokenizer_file).tokens(texts)]
    assert whole["characters"]["mean"] == pytest.approx(np.mean([len(text) for text in texts]))
    assert (whole["tokens"]["min"], whole["tokens"]["max"]) == (min(lengths), max(lengths))
    assert whole["captions_cut"] == sum(length > 6 for length in lengths) >= 1
    assert (whole["width"]["p50"], whole["height"]["p50"], whole["width"]["max"]) == (24, 20, 60)
    assert whole["aspect"]["p50"] == pytest.approx(1.2, rel=0.01)
    assert whole["images_smaller"] == 17
    assert whole["duplicates"]["caption"]["most"] == [[2, EVIL]]
    assert whole["duplicates"]["key"]["share"] == 0
    assert whole["fields"]["labels.de"]["filled"] == pytest.approx(18 / 19)
    assert whole["fields"]["group"]["types"] == {"int": 18}
    assert "are longer than data.inputs.text.length=6" in out
    page = Page(tmp_path / "one" / "stats.html").check()
    for word in ("Tokens of a caption", "Aspect ratio", "labels.de", EVIL, "no caption"):
        assert word.lower() in page.text.lower()


def test_stats_look_at_a_share(shards, tmp_path):
    run("stats", shards / "*.tar", "--sample", 30, "--workers", 1, "--out", tmp_path)
    found = json.loads((tmp_path / "stats.json").read_text())
    assert (found["samples"], found["together"]["samples"], found["together"]["tokens"]) == (211, 30, {"count": 0})


def test_preview_shows_what_the_model_sees(faulty, tmp_path, tokenizer_file, capsys):
    out = tmp_path / "page.html"
    size = ("--config.data.inputs.image.size=16", "--config.data.inputs.image.crop=squash")
    tokens = ("--tokenizer", tokenizer_file, "--config.data.inputs.text.length=6")
    run("preview", faulty, "--samples", 19, "--views", 1, "--out", out, *size, *tokens)
    assert capsys.readouterr().out.strip() == str(out)
    page = Page(out).check()
    assert page.text.count("not used: ") == 2 and "corrupt jpeg" in page.text
    assert EVIL in page.text and "✂" in page.text and "b.tar" in page.text
    pictures = page.pictures()
    assert len(pictures) == 2 * 17  # an original and a view each
    seen = training_image(encode(0, "jpg"), 16, lambda height, width: Box(0, 0, height, width))
    assert np.array_equal(pictures[1], seen)


def test_preview_augments_and_mixes(shards, tmp_path):
    looks = {}
    for name, options in dict(
        plain=(), again=(), mixed=("--config.data.inputs.image.mixup=1.0",), other=("--config.seed=1",),
        changed=("--config.data.inputs.image.jitter=0.9", "--config.data.inputs.image.policy=trivial"),
    ).items():  # fmt: skip
        out = tmp_path / f"{name}.html"
        run(
            "preview",
            shards / "*.tar",
            "--samples",
            3,
            "--views",
            3,
            "--out",
            out,
            "--config.data.inputs.image.size=16",
            *options,
        )
        looks[name] = Page(out).check().pictures()
    same = lambda a, b: all(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(looks[a], looks[b]))
    assert len(looks["plain"]) == 3 * 4
    assert same("plain", "again")
    assert not np.array_equal(looks["plain"][1], looks["plain"][2])  # two views of one sample
    assert not any(same("plain", other) for other in ("mixed", "other", "changed"))


def test_bench_measures_and_counts_accelerators(shards, tmp_path, tokenizer_file, capsys):
    arguments = ("--seconds", 0.1, "--json", tmp_path / "speed.json", "--config.batch_size=16")
    given = ("--accelerator", 1500, "--accelerator", "mine=4000", "--config.data.inputs.image.size=16")
    run("bench", shards / "*.tar", "--tokenizer", tokenizer_file, *arguments, *given)
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["samples"] >= 32 and found["limit"] in ("reading", "decoding")
    assert found["samples_per_s"] == pytest.approx(found["samples"] / found["seconds"])
    assert [entry["accelerator"] for entry in found["accelerators"]] == ["of 1500 samples/s", "mine"]
    assert found["accelerators"][1]["feeds"] == pytest.approx(found["samples_per_s"] / 4000)
    assert "the data were read" in out  # more than once: they are tiny
    assert "expected samples per second" in refused(capsys, "bench", "x.tar", "--accelerator", "fast", code=2)


def test_bench_says_what_to_change(monkeypatch):
    monkeypatch.setattr("data_pipelines.examine.throughput.cores", lambda: 8)
    monkeypatch.setattr("data_pipelines.host.cores", lambda: 8)
    speed = lambda rate, threads: Speed(
        samples=rate,
        seconds=1.0,
        first_batch=0.1,
        cpu=0.002,
        bytes=1e5,
        epochs=0.5,
        memory=0,
        threads=threads,
        readers=2,
    )
    assert speed(3600, 8).decoding == 4000
    assert judge(speed(900, 8), reading=1000)[0] == "reading" and "data.readers=4" in judge(speed(900, 8), 1000)[1]
    assert judge(speed(1900, 4), reading=9000) == ("decoding", "decode in more threads: data.threads=8 (now 4)")
    assert "all 8 cores" in judge(speed(3900, 8), reading=9000)[1]
    assert "50% of its processors" in judge(speed(2000, 8), reading=9000)[1]


def test_ctrl_c_ends_all_processes(tmp_path):
    command = [sys.executable, "-m", "xmodal", "data", "verify", "1000000", "--type", "synthetic", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    workers = lambda: [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    try:
        while len(started := workers()) < 2 or min(sum(c.cpu_times()[:2]) for c in started) < 0.5:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "interrupted\n"
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_a_reader_that_has_seen_enough_is_no_fault(shards):
    """As with `| head`."""
    command = [sys.executable, "-m", "xmodal", "data", "index", str(shards / "s-00.tar")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(60) == 1 and process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("action", ["stats", "preview"])
def test_a_page_that_cannot_be_written_is_named(shards, tmp_path, capsys, action):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["data", action, str(shards / "s-00.tar"), "--out", str(tmp_path / "file" / "x.html")])
    assert stopped.value.code == 1
    assert re.search(r"error: (File exists|Not a directory): .*file", capsys.readouterr().err)
