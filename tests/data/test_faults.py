"""A campaign of injected faults: each is counted under its reason, and every other sample arrives unchanged."""

import faulthandler
import gc
import gzip
import json
import sys
import threading
from collections import Counter
from pathlib import Path

import faults
import numpy as np
import pytest
from faults import BLOCK, EITHER, FINE, SampleFault
from servers import FaultyServer, serving
from tiny_shards import sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import training_image
from data_pipelines.sources import sidecar
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.rows import hash64
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer

SAMPLE_FAULTS = [*faults.image_faults(), *faults.text_faults(), *faults.name_faults()]
JSON_FAULTS = list(faults.json_faults())
ARCHIVES = [
    faults.truncated, faults.zeroed, faults.damaged_headers, faults.malformed_extensions, faults.repeated_members
]  # fmt: skip
ROWS = list(faults.rows())
PER_ARCHIVE = 5  # samples
IN_PLACE = 30
GZIPPED = 14
PATIENCE = 5.0  # seconds for a request that is not to hang: a busy machine takes its time


@pytest.fixture(autouse=True)
def no_hang():
    """A test that hangs ends the whole run, with the stacks of all threads."""
    assert not _threads()
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert not _threads()


def _threads() -> list[str]:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(("data-", "storage"))]

    if names():  # evaluation sets keep their connections for as long as they live, and may be part of a cycle
        gc.collect()
    return names()


@pytest.fixture
def plain(config, tmp_path, monkeypatch):
    """One lane and no chance in what a sample looks like: a batch as large as an epoch shows each sample once."""
    monkeypatch.setattr(sidecar, "_CACHE", tmp_path / "cache")
    config.inputs.image.crop, config.lanes, config.prefetch, config.max_bad_share = "squash", 1, 0, 1.0
    config.remote.update(attempts=2, timeout=PATIENCE, backoff=0.001)
    return config


class Outcome:
    """One epoch of a data set, and what was reported of it.

    Attributes:
        batch: all rows.
        skipped: what the index left out, by reason.
        counters: of the stream.
        listed: lines of skipped.jsonl: (file name of the shard, key, reason).
    """

    def __init__(self, config, expected: int, workdir: Path, **options):
        with open_stream(config, **(dict(batch_size=expected, seed=1, workdir=workdir) | options)) as stream:
            self.batch, self.counters, summary = next(stream), stream.counters(), stream.summary()
        assert summary["samples"] == expected
        self.skipped = summary["skipped"]
        file = workdir / "skipped.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        self.listed = [(Path(line["shard"]).name, line["key"], line["reason"]) for line in lines]

    def assert_arrived(self, truth: dict[str, tuple[bytes, str]], config, replaced: int) -> None:
        """Every sample of `truth`, name -> (image, caption), arrived unchanged, each once but for substitutes."""
        names = {hash64([name]).tobytes(): name for name in truth}
        found = [names[key.tobytes()] for key in self.batch["key_id"]]
        assert set(found) == truth.keys()
        assert len(found) - len(truth) == replaced == self.counters["data/replaced"]
        tokens, valid = Tokenizer.load(config.inputs.text.tokenizer).encode(
            [truth[name][1] for name in found], config.inputs.text.length
        )
        np.testing.assert_array_equal(self.batch["text"], tokens)
        np.testing.assert_array_equal(self.batch["text_valid"], valid)
        pixels = {name: _shown(image, config.inputs.image.size) for name, (image, _) in truth.items()}
        for i, name in enumerate(found):
            np.testing.assert_array_equal(self.batch["image"][i], pixels[name], err_msg=name)
            np.testing.assert_array_equal(self.batch["caption_id"][i], hash64([truth[name][1]])[0], err_msg=name)


def _shown(image: bytes, size: int) -> np.ndarray:
    return training_image(image, size, lambda height, width: Box(0, 0, height, width))


def _with_faults(path: Path, cases: list[SampleFault], caption: str) -> tuple[dict, dict]:
    """Writes an archive of faulty samples among good ones; returns the truth, and (key, reason) of what is wrong."""
    content, truth, wrong, number = b"", {}, {}, 0
    for case in cases:
        for fault in (case, None):
            name = fault.name if fault and fault.name else f"{'f' if fault else 'g'}{number:05d}"
            text = f"thing {number}"
            members = {
                "png": sample(number)["png"],
                caption: b"{caption}" if caption == "txt" else b'{"label": "{caption}"}',
            }
            if fault:
                alone = caption in fault.members or fault.reason in ("no caption", "no image")
                members = fault.members if alone else {**fault.members, caption: members[caption]}
            members = {extension: data.replace(b"{caption}", text.encode()) for extension, data in members.items()}
            content += b"".join(faults.member(f"{name}.{extension}", data) for extension, data in members.items())
            if fault is None or fault.reason in (FINE, EITHER):
                truth[f"{path.name}/{name}"] = (next(iter(members.values())), text)
            if fault and fault.reason:
                wrong[name] = fault
            number += 1
    path.write_bytes(content + faults.harmless_members() + bytes(2 * BLOCK))
    return truth, wrong


@pytest.mark.parametrize(("cases", "caption"), [(SAMPLE_FAULTS, "txt"), (JSON_FAULTS, "json")], ids=["txt", "json"])
def test_faulty_samples(plain, tmp_path, cases, caption):
    path = tmp_path / "d.tar"
    truth, wrong = _with_faults(path, cases, caption)
    if caption == "json":
        plain.inputs.text.templates = ((1.0, "{label}"),)
    plain.sources.main.urls = str(path)
    indexed = {name: fault for name, fault in wrong.items() if fault.indexed}
    expected = len(truth) + sum(fault.reason != EITHER for fault in wrong.values()) - len(indexed)
    outcome = Outcome(plain, expected, tmp_path / "run")
    assert outcome.skipped == Counter(fault.reason for fault in indexed.values())
    listed = {key: reason for _, key, reason in outcome.listed}
    for name, fault in wrong.items():
        if fault.reason == EITHER and name in listed:  # it shows other pixels, or has a reason
            del truth[f"d.tar/{name}"]
            assert listed.pop(name).startswith("corrupt ")
    assert listed == {name: fault.reason for name, fault in wrong.items() if fault.reason != EITHER}
    assert len(outcome.listed) == len({key for _, key, _ in outcome.listed}) and {s for s, _, _ in outcome.listed} <= {
        "d.tar"
    }
    bad = Counter(reason for _, key, reason in outcome.listed if key not in indexed)
    outcome.assert_arrived(truth, plain, bad.total())
    counted = {f"data/bad/{reason.replace(' ', '_')}": n for reason, n in bad.items()}
    assert {name: n for name, n in outcome.counters.items() if name.startswith("data/bad/")} == counted


@pytest.mark.parametrize("make", ARCHIVES, ids=lambda make: make.__name__)
def test_damaged_archives(plain, tmp_path, make):
    cases, truth = list(make(range(PER_ARCHIVE))), {}
    for number, case in enumerate(cases):
        shard = f"a-{number:04d}.tar"
        (tmp_path / shard).write_bytes(case.content)
        truth |= {f"{shard}/{i:05d}": (sample(i)["png"], f"thing {i}") for i in case.usable}
    plain.sources.main.urls = str(tmp_path / "a-*.tar")
    outcome = Outcome(plain, len(truth), tmp_path / "run")
    found, expected = {}, {}
    for shard, key, reason in outcome.listed:
        place = "" if key.startswith("from byte ") else key
        found.setdefault(shard, []).append((reason, bool(place)))
    for number, case in enumerate(cases):
        lines = [(reason, True) for reason in case.skipped] + [(case.reason, False)] * bool(case.reason)
        if lines:
            expected[f"a-{number:04d}.tar"] = lines
    assert found == expected
    outcome.assert_arrived(truth, plain, 0)


def test_a_key_that_comes_again_is_another_sample(plain, tmp_path):
    """Joined archives repeat their keys; only neighbours belong together. `unique="key"` keeps the first."""
    numbered = [(i % 3, faults.member(f"{i % 3:05d}.png", sample(i)["png"]), f"thing {i}") for i in range(7)]
    content = [image + faults.member(f"{key:05d}.txt", text.encode()) for key, image, text in numbered]
    (tmp_path / "d.tar").write_bytes(b"".join(content) + bytes(2 * BLOCK))
    plain.sources.main.urls = str(tmp_path / "d.tar")
    outcome = Outcome(plain, 7, tmp_path / "run")
    assert not outcome.skipped and not outcome.listed
    texts = Counter(map(bytes, outcome.batch["caption_id"]))
    assert texts == Counter(hash64([text]).tobytes() for _, _, text in numbered)
    names = Counter(map(bytes, outcome.batch["key_id"]))
    assert names == Counter({hash64([f"d.tar/{key:05d}"]).tobytes(): n for key, n in ((0, 3), (1, 2), (2, 2))})
    plain.sources.main.unique = "key"
    assert Outcome(plain, 3, tmp_path / "run2").skipped == {"duplicate": 4}


def test_evaluation_counts_the_same_faults(plain, tmp_path):
    truth, wrong = _with_faults(tmp_path / "d.tar", SAMPLE_FAULTS[::3], "txt")
    found = EvalSet(str(tmp_path / "d.tar"), plain)
    sure = Counter(fault.reason for fault in wrong.values() if fault.reason != EITHER)
    unsure = sum(fault.reason == EITHER for fault in wrong.values())
    assert sure <= found.skipped and (found.skipped - sure).total() <= unsure
    kept = {f"d.tar/{record.key}": record.captions for record in found.records}
    certain = {name for name in truth if wrong.get(name.removeprefix("d.tar/")) is None}
    assert certain <= kept.keys() <= truth.keys()
    assert all(captions == [truth[name][1]] for name, captions in kept.items())


def test_damage_in_place_moves_nothing(config, tmp_path):
    """What the index cannot see is replaced; all other rows of the stream are bit for bit what they would have been."""
    samples = {f"{i:05d}": sample(i) for i in range(120)}
    config.sources.main.urls, config.max_bad_share = str(write_tar(tmp_path / "d.tar", samples)), 1.0
    with open_stream(config, batch_size=40, seed=3) as stream:
        clean = [next(stream) for _ in range(6)]
    damages = [lambda data: b"<html>", lambda data: data[: len(data) // 2], lambda data: data[:-30] + b"x" * 30]
    for i in range(0, 120, 4):
        data = samples[f"{i:05d}"]["png"]
        samples[f"{i:05d}"]["png"] = damages[i // 4 % 3](data).ljust(len(data), b"\0")
    write_tar(tmp_path / "d.tar", samples)
    with open_stream(config, batch_size=40, seed=3) as stream:
        damaged = [next(stream) for _ in range(6)]
        assert stream.counters()["data/replaced"] == 60 == IN_PLACE * 2
    bad = {hash64([f"d.tar/{i:05d}"]).tobytes() for i in range(0, 120, 4)}
    for before, after in zip(clean, damaged):
        replaced = np.array([key.tobytes() in bad for key in before["key_id"]])
        assert not {key.tobytes() for key in after["key_id"]} & bad
        for name in before:
            np.testing.assert_array_equal(before[name][~replaced], after[name][~replaced], err_msg=name)


def test_lists_with_wrong_rows(plain, tmp_path):
    folder, good = tmp_path / "list", faults.small(1)
    (folder / "folder").mkdir(parents=True)
    (folder / "loop.png").symlink_to("loop.png")
    for name, content in (("good", good), ("empty", b""), ("page", b"<html>"), ("cut", good[:90])):
        (folder / f"{name}.png").write_bytes(content)
    lines, wrong, truth = [], {}, {}
    for value, reason in ROWS:
        wrong[len(lines)] = reason
        lines += [faults.line(value, "thing"), faults.line("good.png", f"thing {len(lines) + 1}")]
        truth[f"list.jsonl/row {len(lines)}"] = (good, f"thing {len(lines) - 1}")
    for content, reason in faults.LINES:
        wrong[len(lines)] = reason
        lines += [content, faults.line("good.png", f"thing {len(lines) + 1}")]
        truth[f"list.jsonl/row {len(lines)}"] = (good, f"thing {len(lines) - 1}")
    (folder / "list.jsonl").write_bytes(b"\n".join(lines))
    plain.sources.main = dict(type="files", urls=str(folder / "list.jsonl"))
    decoded = ("not an image", "corrupt png")
    outcome = Outcome(plain, len(truth) + sum(reason in decoded for reason in wrong.values()), tmp_path / "run")
    assert {key: reason for _, key, reason in outcome.listed} == {f"row {n + 1}": reason for n, reason in wrong.items()}
    outcome.assert_arrived(truth, plain, 2)


def test_images_that_a_server_does_not_give(plain, tmp_path):
    with serving(FaultyServer()) as server:
        lines, wrong, truth = [], {}, {}
        cases = [(kind, 10**6, reason) for kind, reason in faults.REMOTE.items()]
        cases += [(kind, 1, FINE) for kind in faults.PASSING]
        contents = [(b"<html>", "not an image"), (b"", "empty image"), (faults.small(1)[:99], "corrupt png")]
        for kind, times, reason in [*cases, *((content, 0, reason) for content, reason in contents)]:
            for faulty in (True, False):
                number = len(lines)
                content = kind if faulty and not times else faults.small(number)
                server.files[f"img/{number} ä.png"] = content
                lines.append(faults.line(f"{server.address}/img/{number} ä.png", f"thing {number}"))
                if faulty and times:
                    server.faults[f"img/{number} ä.png"] = (kind, times)
                if faulty and reason:
                    wrong[f"row {number + 1}"] = reason
                else:
                    truth[f"list.jsonl/row {number + 1}"] = (content, f"thing {number}")
        (tmp_path / "list.jsonl").write_bytes(b"\n".join(lines))
        plain.sources.main, plain.readers = dict(type="files", urls=str(tmp_path / "list.jsonl")), 6
        plain.remote.timeout = 3.0
        outcome = Outcome(plain, len(lines), tmp_path / "run")
    assert {key: reason for _, key, reason in outcome.listed} == wrong
    outcome.assert_arrived(truth, plain, len(wrong))


@pytest.fixture
def web(plain, shards):
    with serving(FaultyServer()) as server:
        server.files = {f"set/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
        server.tags = dict.fromkeys(server.files, '"first"')
        plain.sources.main.urls = f"{server.address}/set/s-{{00..02}}.tar"
        plain.lanes, plain.readers = 2, 6
        yield server


CHANGES = dict(
    tag=lambda server, name: server.tags.update({name: '"second"'}),
    shorter=lambda server, name: server.files.update({name: server.files[name][:3000]}),
    other=lambda server, name: server.files.update({name: server.files[name][BLOCK:] + bytes(BLOCK)}),
    zeros=lambda server, name: server.files.update({name: bytes(len(server.files[name]))}),
)


@pytest.mark.parametrize(
    ("change", "message"), [*faults.MID_RUN.items(), *((change, "stale index") for change in CHANGES)]
)
def test_a_shard_that_fails_in_the_run_ends_it_with_its_name(plain, web, change, message):
    name = "set/s-01.tar"
    if change in ("hang", "drip"):
        plain.remote.timeout = 1.0
    with open_stream(plain, batch_size=16, seed=5) as stream:
        next(stream)
        if change in CHANGES:
            CHANGES[change](web, name)
        else:
            web.faults[name] = (change, 10**6)
        with pytest.raises(DataError, match=rf"{message}.*s-01\.tar|s-01\.tar.*{message}"):
            for _ in range(40):
                next(stream)


@pytest.mark.parametrize("fault", faults.PASSING)
def test_trouble_in_the_run_that_passes_changes_nothing(plain, web, shards, fault):
    if fault == "hang":
        plain.remote.timeout = 1.0
    with open_stream(plain, batch_size=32, seed=5) as stream:
        batches = [next(stream)]
        web.forget()
        web.faults = dict.fromkeys(web.files, (fault, 1))
        batches += [next(stream) for _ in range(6)]
        assert not stream.counters()["data/replaced"] and web.requests
    plain.sources.main.urls = str(shards / "s-{00..02}.tar")
    with open_stream(plain, batch_size=32, seed=5) as stream:
        for batch in batches:
            for key, value in next(stream).items():
                np.testing.assert_array_equal(batch[key], value)


def test_a_shard_on_disk_that_is_written_again_ends_the_run(plain, tmp_path):
    """Even where sizes and samples fit: other pixels under the same position would be a silent difference."""
    path = write_tar(tmp_path / "d.tar", {f"{i:05d}": dict(txt=b"a", png=faults.small(1)) for i in range(200)})
    plain.sources.main.urls, plain.window = str(path), 1
    with open_stream(plain, batch_size=8, seed=0) as stream:
        next(stream)
        path.write_bytes(path.read_bytes().replace(faults.small(1), faults.small(1)[::-1]))
        with pytest.raises(DataError, match=r"stale index: .*d\.tar changed during the run"):
            for _ in range(40):
                next(stream)


NO_TARS = (b"<!DOCTYPE html>".ljust(2000), b"\x1f\x8b\x08" + bytes(3000), b"x" * 512, sample(1)["png"] * 3)


@pytest.mark.parametrize("content", NO_TARS, ids=["page", "gzip", "text", "image"])
def test_a_file_that_is_no_tar_ends_the_start_with_its_name(plain, tmp_path, content):
    write_tar(tmp_path / "a-0.tar", {"0": sample(0)})
    (tmp_path / "a-1.tar").write_bytes(content)
    plain.sources.main.urls = str(tmp_path / "a-{0,1}.tar")
    with pytest.raises(DataError, match=r"a-1\.tar is not a tar archive"):
        open_stream(plain, batch_size=1, seed=0)


def test_a_damaged_compressed_shard_ends_the_start_with_its_name(plain, tmp_path):
    whole = gzip.compress(faults.archive(range(PER_ARCHIVE))[0] + bytes(2 * BLOCK), mtime=0)
    plain.sources.main.urls = str(tmp_path / "a.tar.gz")
    half = len(whole) // 2
    damages = [whole[:cut] for cut in (0, 1, 5, 10, half, len(whole) - 9, len(whole) - 1)]
    damages += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in (0, 2, half, -6, -2)]
    damages += [whole + b"junk", b"<html>"]
    assert len(damages) == GZIPPED
    for damage in damages:
        (tmp_path / "a.tar.gz").write_bytes(damage)
        with pytest.raises(
            DataError, match=r"a\.tar\.gz is damaged and cannot be unpacked|no usable sample .*a\.tar\.gz"
        ):
            open_stream(plain, batch_size=1, seed=0)
        assert not list(tmp_path.glob(".unpacked/*.part"))
    (tmp_path / "a.tar.gz").write_bytes(whole)
    assert len(Outcome(plain, PER_ARCHIVE, tmp_path / "run").batch["text"]) == PER_ARCHIVE


def test_the_campaign_is_large_enough():
    archives = sum(len(list(make(range(PER_ARCHIVE)))) for make in ARCHIVES)
    remote = len(faults.REMOTE) + 2 * len(faults.PASSING) + 3 + len(faults.MID_RUN) + len(CHANGES)
    rows = len(ROWS) + len(faults.LINES)
    total = len(SAMPLE_FAULTS) + len(JSON_FAULTS) + archives + remote + rows + IN_PLACE + len(NO_TARS) + GZIPPED + 1
    assert total >= 500
