"""Groups of near samples: against a plain greedy search, apart where they are copies, and as a source takes them."""

import json

import numpy as np
import pytest

from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import train_bpe
from tests.data.tiny_inputs import data_section
from tests.search.conftest import GOOD, caption
from tests.search.test_choosing import crowded, data, refused
from tests.search.test_top_k import split
from xmodal.search import neighbours
from xmodal.search.index import Index
from xmodal.search.neighbours import mean_cosine, neighbour_groups


def greedy(rows, size, below, seed):
    """The rule, one sample after another."""
    cosines, free, made = rows.astype(np.float64) @ rows.T.astype(np.float64), set(range(len(rows))), []
    for own in np.random.default_rng(seed).permutation(len(rows)).tolist():
        group = [own]
        for other in sorted(free - {own}, key=lambda i: (-cosines[own, i], i)):
            if len(group) < size and all(cosines[other, member] < below for member in group):
                group.append(other)
        if own in free and len(group) == size:
            free -= set(group)
            made.append(group)
    return made


@pytest.mark.parametrize("below", [np.inf, 0.97])
def test_each_sample_takes_its_nearest_that_are_free(below, monkeypatch):
    monkeypatch.setattr(neighbours, "_CANDIDATES", 400)  # all at once: then nothing is left to a second round
    rows = crowded()
    found = neighbour_groups(split(rows), 4, below=below, seed=3)
    assert found.tolist() == greedy(rows, 4, below, 3)
    assert len(found) == 75 if below == np.inf else 60 < len(found) <= 75


@pytest.mark.parametrize("below", [np.inf, 0.97])
def test_few_candidates_give_groups_of_the_same_kind(below, monkeypatch):
    monkeypatch.setattr(neighbours, "_CANDIDATES", 6)
    monkeypatch.setattr(neighbours, "_SEEDS", 50)
    rows = crowded()
    vectors = split(rows)
    found = neighbour_groups(vectors, 5, below=below)
    assert len(np.unique(found)) == found.size and found.size > 250
    cosines = np.einsum("gid,gjd->gij", rows[found], rows[found])[:, ~np.eye(5, dtype=bool)]
    assert mean_cosine(vectors, found) == pytest.approx(cosines.mean(), abs=1e-6)
    assert cosines.mean() > 0.5 + mean_cosine(vectors, np.arange(300).reshape(-1, 5))
    assert cosines.max() < below


def test_from_the_command_to_the_batch(made_index, made_shards, tmp_path, capsys):
    data("neighbours", made_index, "--size", 2, "--among", "captions", "--out", tmp_path / "groups.npy")
    assert "19 groups of 2 captions" in capsys.readouterr().out
    vectors = Index(made_index).vectors("text")
    pairs = [{GOOD[row] for row in group} for group in neighbour_groups(vectors, 2).tolist()]
    config = data_section()
    config.sources.main = dict(urls=made_shards, groups=str(tmp_path / "groups.npy"))
    (tmp_path / "tokenizer.json").write_text(train_bpe([caption(i) for i in range(40)], 400).json)
    config.inputs.text.update(tokenizer=str(tmp_path / "tokenizer.json"), length=24)
    config.update(lanes=1)
    config.inputs.image.size = 8
    with open_stream(config, batch_size=38, seed=0, workdir=tmp_path) as stream:
        batch = next(stream)
        assert json.loads((tmp_path / "skipped.jsonl").read_text().splitlines()[-1])["reason"] == "in no whole group"
    ids = {caption(i): i for i in GOOD}
    decode = stream.inputs["text"].vocabulary.decode
    shown = [ids[decode(row)] for row in batch["text"]]
    assert [set(pair) for pair in np.reshape(shown, (-1, 2)).tolist()] != pairs
    assert sorted(map(sorted, np.reshape(shown, (-1, 2)).tolist())) == sorted(map(sorted, pairs))


def test_what_makes_no_groups_is_refused(made_index, tmp_path, capsys):
    assert "at least 2" in refused(capsys, "neighbours", made_index, "--size", 1, "--out", tmp_path / "g.npy")
    assert ".npy" in refused(capsys, "neighbours", made_index, "--out", tmp_path / "g.txt")
    out = ("--out", tmp_path / "g.npy")
    assert "make a group" in refused(capsys, "neighbours", made_index, "--below", -1, *out)
