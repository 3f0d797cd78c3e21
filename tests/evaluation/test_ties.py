"""Of candidates with equal scores the one listed first comes first, in every evaluator, as in torch (ties.npz)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, held_out

from tests.data.tiny_shards import write_tar
from xmodal.evaluation import ranking
from xmodal.evaluation.classification import several
from xmodal.evaluation.pairs import winoground
from xmodal.evaluation.retrieval import Retrieval
from xmodal.evaluation.zero_shot import ZeroShot, accuracy, confusion

with np.load(Path(__file__).parents[1] / "golden" / "ties.npz") as _file:
    GOLDEN = {key: a.astype(int) if a.dtype == np.int8 else a for key, a in _file.items()}
SCORES, LABELS, ORDER = GOLDEN["scores"].astype(np.float32), GOLDEN["labels"], GOLDEN["order"]


def test_classes_are_ranked_as_torch_sorts_them():
    place = np.argsort(ORDER, axis=1)  # of each class in torch's order
    np.testing.assert_array_equal(ranking.class_ranks(SCORES, LABELS), place[np.arange(64), LABELS])
    np.testing.assert_array_equal(ranking.answers(SCORES, LABELS), GOLDEN["argmax"])
    got, _ = accuracy(SCORES, LABELS)
    hits = GOLDEN["argmax"] == LABELS
    assert got["top1"] == np.mean(hits) and got["top5"] == np.mean((ORDER[:, :5] == LABELS[:, None]).any(axis=1))
    rows = {row["class"]: row["recall"] for row in confusion(SCORES, LABELS, list(range(12)))["per_class"]}
    assert rows == {c: np.mean(hits[c == LABELS]) for c in np.unique(LABELS)}, "the table agrees with top-1"


@pytest.mark.parametrize("xp", [np, jnp])
def test_several_right_candidates(xp):
    right = GOLDEN["right"]
    sorted_right = np.take_along_axis(right, ORDER, axis=1)
    expected = np.argmax(sorted_right, axis=1)  # wrong ones before the first right one
    np.testing.assert_array_equal(ranking.ranks(xp.asarray(SCORES), xp.asarray(right), xp), expected)
    ids = np.array([[*np.flatnonzero(row), *[-1] * (12 - row.sum())] for row in right])
    assert several(SCORES, ids)[0]["top1"] == np.mean(expected == 0)


def test_where_candidates_have_no_order_a_tie_is_a_miss():
    assert not any(hits.any() for hits in winoground(np.ones((4, 2, 3)), np.ones((4, 2, 3))).values())


@pytest.mark.parametrize("twice", ["sun", "star"])
def test_a_class_name_that_occurs_twice(world, tmp_path, twice):
    """As "sunglasses" among ImageNet's names: those of the first can be right, of the other not."""
    names = ["star", "moon", "sun", twice]
    samples = {}
    for i in range(SAMPLES):
        kind = KINDS[i % 3]
        number = 3 if kind == twice and i % 2 else names.index(kind)
        samples[f"{i:03d}"] = {"png": held_out(i)["png"], "cls": str(number).encode()}
    urls = str(write_tar(tmp_path / "a.tar", samples))
    labels = np.array([int(own["cls"]) for own in samples.values()])
    options = dict(label_field="cls", batch_size=16)
    found = world.evaluate(ZeroShot(urls, classes=tuple(names), labels=("0", "1", "2", "3"), **options))
    once = world.evaluate(ZeroShot(world.urls, label_field="kind", classes=tuple(names[:3]), batch_size=16))
    answers = {row["class"]: row["recall"] for row in once.details["zero_shot/x/per_class"]}
    rows = found.details["zero_shot/x/per_class"]
    hits = sum(row["recall"] * row["images"] for row in rows)
    assert found.metrics["zero_shot/x/top1"] == pytest.approx(hits / SAMPLES), "the table agrees with top-1"
    last = rows[-1]
    assert last["class"] == twice and last["recall"] == 0
    if answers[twice]:
        assert last["taken_for"] == twice and max(row["recall"] for row in rows if row["class"] == twice) > 0
    assert found.metrics["zero_shot/x/images"] == len(labels)


def test_equal_captions_that_are_kept_apart_tie(world, tmp_path):
    """The first of them comes first, whatever the scores' rounding: so late images never find their captions."""
    samples = {f"{i:03d}": held_out(i) | {"txt": b"thing 1"} for i in range(SAMPLES)}
    urls = str(write_tar(tmp_path / "a.tar", samples))
    found = world.evaluate(Retrieval(urls, merge=False, batch_size=16, examples=0))
    hits = found.scores["retrieval/x/image_to_text"].values["R@10"]
    assert hits.tolist() == [i < 10 for i in range(SAMPLES)]
    assert json.loads(held_out(0)["json"])["kind"] == "star"
