"""The index counts exactly, says what it left out, and is never silently out of date."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import make_rules
from tiny_shards import sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io import paths
from data_pipelines.io.storage import Files
from data_pipelines.rules import Rules
from data_pipelines.sources import index, sidecar
from data_pipelines.sources.tars import parse_block


def captions(group_key: str = "", **text) -> Rules:
    return make_rules(group_key, text=text)


FILES = Files()


def load(urls, rule: Rules, **options) -> index.Index:
    return index.load(urls, rule, FILES, **options)


def expand(urls) -> list[str]:
    return paths.expand(urls, FILES)


def test_counts_and_reasons(tmp_path):
    good = sample(0)
    image, text = good["png"], good["txt"]
    samples = {
        "ok1": good,
        "no_caption": dict(png=image),
        "empty_caption": dict(png=image, txt=b" \n "),
        "no_image": dict(txt=text),
        "empty_image": dict(png=b"", txt=text),
        "bad_text": dict(png=image, txt=b"\xff\xfe\xfa"),
        "ok2": sample(1),
    }
    path = write_tar(tmp_path / "a.tar", samples)
    found = load(str(path), captions())
    assert found.samples == 2
    assert found.skipped == dict.fromkeys(("no caption", "empty caption", "no image", "empty image", "bad text"), 1)
    assert found.shards[0].skipped_keys["no image"] == ["no_image"]


def test_bad_json_counts_only_where_captions_need_it(tmp_path):
    samples = {"a": sample(0), "b": {**sample(1), "json": b"{broken"}, "c": {**sample(2), "json": b"[1]"}}
    path = str(write_tar(tmp_path / "a.tar", samples))
    assert load(path, captions()).samples == 3
    found = load(path, captions(templates=((1.0, "{label}"),)))
    assert (found.samples, found.skipped) == (1, {"bad json": 2})
    assert load(path, captions(group_key="group")).samples == 1


def test_truncated_tail_keeps_what_is_whole(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {f"{i}": sample(i) for i in range(9)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 7])
    found = load(str(path), captions())
    assert 3 <= found.samples < 9
    assert found.skipped == {"truncated tail": 1}
    assert "truncated tail" in caplog.text and str(path) in caplog.text


def test_a_cut_in_the_padding_loses_nothing(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}": sample(i) for i in range(4)})
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"}") + 20])
    blocks = load(str(path), captions()).blocks(1)
    assert blocks.count.sum() == 4 and blocks.end[-1] == path.stat().st_size
    last = FILES.read(str(path), int(blocks.start[-1]), int(blocks.end[-1]))
    assert [s.key for s in parse_block(str(path), last, int(blocks.start[-1]), captions())] == ["3"]


def test_a_cut_between_members_is_noticed(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {f"{i}": sample(i) for i in range(4)})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"2.png")])
    assert load(str(path), captions()).samples == 2
    assert "no end mark" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("target", [1, 3000, 20_000, 10**9])
def test_blocks_hold_every_usable_sample_once(shards, target):
    rule = captions()
    found = load(str(shards / "s-*.tar"), rule)
    blocks = found.blocks(target)
    keys = []
    for shard, start, end, count in zip(blocks.shard, blocks.start, blocks.end, blocks.count):
        path = found.shards[shard].path
        block = parse_block(path, FILES.read(path, int(start), int(end)), int(start), rule)
        assert len(block) == count
        keys += [s.key for s in block]
    assert keys == [f"{i:05d}" for i in range(211)]
    if target == 10**9:
        assert len(blocks.count) == 3
    else:
        assert np.median(blocks.end - blocks.start) < max(2 * target, 8000)


def test_sidecar_is_used_and_moves_with_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "one"
    folder.mkdir()
    write_tar(folder / "a.tar", {f"{i}": sample(i) for i in range(5)})
    first = load(str(folder / "a.tar"), captions())
    moved = folder.rename(tmp_path / "two")
    monkeypatch.setattr(index, "scan", lambda *_: pytest.fail("scanned again"))
    second = load(str(moved / "a.tar"), captions())
    assert second.samples == first.samples == 5
    assert second.shards[0].path == str(moved / "a.tar")


def test_a_changed_shard_is_indexed_again_and_said_so(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {"0": sample(0)})
    assert load(str(path), captions()).samples == 1
    write_tar(path, {f"{i}": sample(i) for i in range(4)})
    assert load(str(path), captions()).samples == 4
    assert "stale index" in caplog.text and str(path) in caplog.text


def test_much_new_or_stale_data_need_a_decision(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0": sample(0)})
    load(str(path), captions())
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"stale index.*a\.tar.*xmodal data index"):
        load(str(path), captions(), at_most=10)
    assert load(str(path), captions(), at_most=10**6).samples == 1


def test_a_folder_may_be_indexed_in_parts_at_the_same_time(tmp_path, monkeypatch):
    paths = [str(write_tar(tmp_path / f"{name}.tar", {"0": sample(0)})) for name in "ab"]

    def meanwhile(stats, captions, files, *rest):
        load(paths[1], captions)
        return index.scan_all(stats, captions, files, *rest)

    with Files() as files:
        index.load(paths[0], captions(), files, engine=meanwhile)
    monkeypatch.setattr(index, "scan", lambda *_: pytest.fail("scanned again"))
    assert load(str(tmp_path / "*.tar"), captions()).samples == 2


def test_a_damaged_sidecar_is_made_anew(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {"0": sample(0)})
    load(str(path), captions())
    (kept,) = (tmp_path / ".index").iterdir()
    for content in (b"", b"{", kept.read_bytes()[:-200], kept.read_bytes()[:100]):
        kept.write_bytes(content)
        assert load(str(path), captions()).samples == 1
    assert "cannot be read" in caplog.text


def test_read_only_folder_uses_the_cache(tmp_path, monkeypatch, caplog):
    data = tmp_path / "data"
    data.mkdir()
    path = write_tar(data / "a.tar", {"0": sample(0)})
    (data / ".index").write_text("a file where the folder should be")
    monkeypatch.setattr(sidecar, "_CACHE", tmp_path / "cache")
    with caplog.at_level(logging.INFO):
        load(str(path), captions())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(index, "scan", lambda *_: pytest.fail("scanned again"))
    assert load(str(path), captions()).samples == 1


def test_unusable_shards_are_errors(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"not a tar" * 1000)
    with pytest.raises(DataError, match=r"a\.tar is not a tar"):
        load(str(path), captions())
    path.write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match="compressed"):
        load(str(path), captions())
    write_tar(path, {"0": dict(txt=b"x")})
    with pytest.raises(DataError, match=r"no usable sample.*no image: 1"):
        load(str(path), captions())


def test_unknown_fields_name_those_there_are(shards):
    with pytest.raises(DataError, match=r"'lable'.*did you mean 'label'.*fields there: group, label, labels.de, tags"):
        load(str(shards / "s-00.tar"), captions(templates=((1.0, "{label}"), (1.0, "{lable}"))))
    with pytest.raises(DataError, match=r"data.group_key.*'grup'.*did you mean 'group'"):
        load(str(shards / "s-00.tar"), captions(group_key="grup"))


def test_patterns(shards, monkeypatch):
    names = lambda urls: [Path(path).name for path in expand(urls)]
    assert names(str(shards / "s-{00..02}.tar")) == ["s-00.tar", "s-01.tar", "s-02.tar"]
    assert names(str(shards / "s-{02,00}.tar")) == ["s-02.tar", "s-00.tar"]
    assert names([str(shards / "s-01.tar"), str(shards / "s-*0.tar")]) == ["s-01.tar", "s-00.tar"]
    monkeypatch.chdir(shards)
    assert names("s-0?.tar") == ["s-00.tar", "s-01.tar", "s-02.tar"]
    assert paths.expand_braces("{a,b}-{8..10}") == ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"]


def test_only_the_path_of_a_web_address_holds_wildcards():
    with Files() as files:
        here = "http://[::1]:8000/x-{0..1}.tar"  # an IPv6 address
        assert paths.expand(here, files) == ["http://[::1]:8000/x-0.tar", "http://[::1]:8000/x-1.tar"]
        signed = "https://user:a*b@host/x.tar?signature=c*[d"
        assert paths.expand(signed, files) == [signed]
        for pattern in ("http://[::1]:8000/x-*.tar", "https://host/x-[01].tar"):
            with pytest.raises(DataError, match="web servers cannot list files"):
                paths.expand(pattern, files)


def test_relative_paths_fall_back_to_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand("configs/base.py") == [str(paths.REPOSITORY / "configs" / "base.py")]
    assert paths.find_file("configs/base.py").is_file()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").touch()
    assert expand("configs/base.py") == [str(tmp_path / "configs" / "base.py")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s-{00..04}.tar", r"s-03\.tar and 1 more of .* do not exist; 3 of its shards do"),
        ("none-*.tar", r"no shard matches 'none-\*\.tar'"),
        ("gcs://bucket/a.tar", "'gcs' is not supported.*did you mean 'gs'"),
        ("pipe:cat a.tar", "never through commands"),
        (["s-00.tar", "s-0*.tar"], "named twice"),
        ("s-{2..1}.tar", "runs backwards"),
        ("s-{x}.tar", "neither a range"),
        ([], "no shards"),
    ],
)
def test_wrong_patterns(shards, monkeypatch, pattern, message):
    monkeypatch.chdir(shards)
    with pytest.raises(DataError, match=message):
        expand(pattern)
