"""Which samples fit, repeat or leak: by all pairs, and as lists that sources understand."""

import json
import re

import numpy as np
import pytest

from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source
from tests.data.tiny_inputs import data_section
from tests.data.tiny_shards import write_tar
from tests.search.conftest import GOOD, caption, embed, picture
from tests.search.test_top_k import split, unit
from xmodal.__main__ import main
from xmodal.reporting.pairs_page import SHOWN, Pair, Side, render_pairs, spread
from xmodal.search import matches as matching
from xmodal.search.index import Index
from xmodal.search.matches import groups, matches


def data(*arguments):
    assert main(["data", *map(str, arguments)]) == 0


def refused(capsys, *arguments, code=1):
    with pytest.raises(SystemExit) as end:
        main(["data", *map(str, arguments)])
    assert end.value.code == code
    return capsys.readouterr().err


def kept(entry, **how):
    """Keys of the samples of a source."""
    with Files() as files:
        source = open_source("main", entry | how, data_section(), files)
        table = source.blocks(10**6)
        return [sample.key for i in range(len(table)) for sample in source.read(table, i)]


def crowded(rows=300, dim=12, seed=0):
    """Vectors of which many are close to others."""
    centres = unit(40, dim, seed, np.float32)
    rng = np.random.default_rng(seed + 1)
    near = centres[rng.integers(0, 40, rows)] + 0.08 * rng.standard_normal((rows, dim)).astype(np.float32)
    return near / np.linalg.norm(near, axis=1, keepdims=True)


@pytest.mark.parametrize("on_host", [True, False])
def test_matches_are_all_pairs(monkeypatch, on_host):
    monkeypatch.setattr(matching, "_BLOCK", 70)
    if not on_host:  # the way of an accelerator
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    left = crowded()
    right = np.concatenate([crowded(80, seed=5), left[50:120]])
    for a, b in ((left, right), (left, left)):
        own = a is b
        vectors = split(a, 33, 200)
        found = list(matches(vectors, vectors if own else split(b, 10), 0.93))
        pairs = {(i, j) for part in found for i, j in zip(part.left.tolist(), part.right.tolist())}
        scores = a.astype(np.float64) @ b.T.astype(np.float64)
        expected = {(int(i), int(j)) for i, j in zip(*np.nonzero(scores >= 0.93)) if not own or i < j}
        assert pairs == expected and len(pairs) == sum(len(part.left) for part in found) > 30
        for part in found:
            np.testing.assert_allclose(part.scores, scores[part.left, part.right], atol=1e-6)


@pytest.mark.parametrize("edges", [2**23, 5])
def test_groups_are_connected_components(monkeypatch, edges):
    monkeypatch.setattr(matching, "_BLOCK", 64)
    monkeypatch.setattr(matching, "_EDGES", edges)
    vectors = crowded()
    close = vectors @ vectors.T >= 0.93
    expected = np.arange(len(vectors))
    for start in range(len(vectors)):  # a walk from each row that no walk has reached
        if expected[start] == start:
            reached, front = {start}, [start]
            while front:
                front = [j for i in front for j in np.flatnonzero(close[i]).tolist() if j not in reached]
                reached.update(front)
            for row in reached:
                expected[row] = min(expected[row], start)
    np.testing.assert_array_equal(groups(split(vectors, 100), 0.93), expected)
    assert 20 < (expected == np.arange(len(vectors))).sum() < 200
    np.testing.assert_array_equal(groups(split(vectors[:1]), 0.9), [0])


def test_filter_keeps_the_best_pairs(made_index, made_shards, tmp_path, capsys):
    index = Index(made_index)
    scores = (index.vectors("image").matrix() * index.vectors("text").matrix()).sum(axis=1)
    best = [f"{GOOD[row]:03d}" for row in sorted(np.argsort(-scores)[: round(0.3 * len(GOOD))])]
    data("filter", made_index, "--top", "30%", "--out", tmp_path / "keep.txt", "--json", tmp_path / "found.json")
    assert f"{len(best)} pairs" in capsys.readouterr().out
    assert kept(dict(urls=made_shards), keep=str(tmp_path / "keep.txt")) == best
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pairs"] == len(GOOD) and found["kept"] == len(best)
    assert found["least"] == pytest.approx(np.sort(scores)[-len(best)], abs=1e-6)
    assert found["at_least"]["0.5"] == pytest.approx(np.median(scores), abs=1e-6)
    least = float(np.sort(scores)[-5:-3].mean())
    data("filter", made_index, "--above", least, "--out", tmp_path / "keep.npy")
    assert kept(dict(urls=made_shards), keep=str(tmp_path / "keep.npy")) == [
        f"{GOOD[row]:03d}" for row in np.flatnonzero(scores >= least)
    ]
    data("filter", made_index)
    assert "best 30.0 %" in capsys.readouterr().out
    assert "--out FILE goes with" in refused(capsys, "filter", made_index, "--top", "0.3", code=2)
    with pytest.raises(SystemExit):
        data("filter", made_index, "--top", "130%", "--out", tmp_path / "x.txt")


@pytest.fixture
def copies(model_folder, tmp_path):
    """Shards of which some pictures are there several times, and their index."""
    numbers = [0, 1, 0, 2, 3, 1, 0, 4]
    samples = {f"{place:03d}": dict(png=picture(i), txt=caption(place).encode()) for place, i in enumerate(numbers)}
    write_tar(tmp_path / "copies.tar", samples)
    embed(tmp_path / "copies.tar", "--model", f"hf:{model_folder}", "--out", tmp_path / "copies")
    return tmp_path / "copies.tar", tmp_path / "copies"


def test_duplicates_leave_the_first(copies, tmp_path, capsys):
    shards, index = copies
    capsys.readouterr()
    data("duplicates", index, "--above", 0.999, "--out", tmp_path / "drop.txt", "--groups", tmp_path / "groups.jsonl")
    assert "3 of 8 samples (37.5 %) have an earlier one like them" in capsys.readouterr().out
    assert kept(dict(urls=str(shards)), drop=str(tmp_path / "drop.txt")) == ["000", "001", "003", "004", "007"]
    lines = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    assert [[member["key"] for member in group] for group in lines] == [["000", "002", "006"], ["001", "005"]]
    data("duplicates", index, "--above", 0.999, "--html", tmp_path / "pairs.html")
    page = (tmp_path / "pairs.html").read_text()
    pairs = re.findall(r'title="([^"]*copies.tar/[0-9]+)"', page)
    names = [f"{tmp_path.name}/copies.tar/{key}" for key in ("000", "002", "000", "006", "001", "005")]
    assert sorted(zip(pairs[::2], pairs[1::2])) == sorted(zip(names[::2], names[1::2]))
    assert page.count("data:image/jpeg;base64,") == 6 and page.count('class="query"') == 3 and "http://" not in page
    assert "3 pairs in" in page and "1.0000" in page and caption(0) in page
    data("duplicates", index, "--above", 0.999, "--among", "captions")
    assert "0 of 8 samples" in capsys.readouterr().out


def test_overlap_finds_test_pictures_in_training_data(copies, made_index, model_folder, tmp_path, capsys):
    capsys.readouterr()
    data("overlap", copies[1], "--with", made_index, "--above", 0.999, "--out", tmp_path / "drop.txt",
         "--json", tmp_path / "found.json")  # fmt: skip
    out = capsys.readouterr().out
    assert f"5 of {len(GOOD)} test samples" in out and "8 of those are close to one" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["train"], found["test"], found["test_found"], found["train_close"]) == (8, len(GOOD), 5, 8)
    pairs = {pair["test"]["key"]: pair["train"]["key"] for pair in found["pairs"]}
    assert pairs == {"000": "000", "001": "001", "002": "003", "003": "004", "004": "007"}  # the first of equal ones
    lines = (tmp_path / "drop.txt").read_text().splitlines()
    assert lines == [f"{tmp_path.name}/copies.tar/{place:03d}" for place in range(8)], "the folder names the data set"
    manifest = json.loads((copies[1] / "manifest.json").read_text())
    manifest["model"]["fingerprint"] = "0" * 32
    (copies[1] / "manifest.json").write_text(json.dumps(manifest))
    assert "made by different models" in refused(capsys, "overlap", made_index, "--with", copies[1])


def test_overlap_has_a_page_of_pairs(copies, made_index, tmp_path):
    data("overlap", copies[1], "--with", made_index, "--above", 0.999, "--html", tmp_path / "pairs.html")
    page = (tmp_path / "pairs.html").read_text()
    assert page.count('class="query"') == 5 and page.count("<b>training</b>") == page.count("<b>test</b>") == 5


def test_a_page_of_very_many_pairs_shows_all_kinds():
    assert spread(3) == [0, 1, 2] and spread(SHOWN) == list(range(SHOWN))
    places = spread(10_000)
    assert len(places) == SHOWN == len(set(places)) and places[0] == 0 and places[-1] == 9999
    nothing = render_pairs("<title>", ("a", "b"), "<b>", 0, [])
    assert "There are none" in nothing and "&lt;b&gt;" in nothing
    side = Side("<img src=x>", "<script>", None)
    page = render_pairs("pairs", ("a", "b"), "found", 9, [Pair(1.0002, side, side)])
    assert "<script>" not in page.split("<main>")[1].split("</main>")[0] and "1.0000" in page and "1 of 9 pairs" in page


def test_bench_search_compares_engines(tmp_path, capsys):
    main(["bench", "search", "--rows", "300", "--dim", "16", "--queries", "2", "--engines", "numpy", "faiss", "--json",
          str(tmp_path / "bench.json")])  # fmt: skip
    table = {row["engine"]: row for row in json.loads((tmp_path / "bench.json").read_text())["table"]}
    assert table["numpy"]["same results"] == "yes" and 0 < table["numpy"]["query ms, median"] < 1000
    assert any(engine.startswith("faiss") for engine in table)
    assert "top 10 of 300 embeddings of width 16" in capsys.readouterr().out
