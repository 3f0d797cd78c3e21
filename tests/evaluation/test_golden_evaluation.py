"""Our arithmetic against CLIP_benchmark, scikit-learn and torch, on random embeddings: tests/golden/evaluation.npz."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from xmodal.evaluation import health, linear
from xmodal.evaluation.classes import ensemble
from xmodal.evaluation.classification import several
from xmodal.evaluation.linear import fit_logistic, fit_means, fit_ridge
from xmodal.evaluation.pairs import winoground
from xmodal.evaluation.retrieval import candidates, first_image, ranks, recalls
from xmodal.evaluation.zero_shot import accuracy, confusion

with np.load(Path(__file__).parents[1] / "golden" / "evaluation.npz") as _file:
    GOLDEN = {key: a.astype(np.float32) if a.dtype == np.float16 else a for key, a in _file.items()}
FIGURES = json.loads(str(GOLDEN["figures"]))


def part(name):
    return {key.removeprefix(f"{name}/"): a for key, a in GOLDEN.items() if key.startswith(f"{name}/")}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_retrieval_is_that_of_clip_benchmark():
    given = part("retrieval")
    own = [[f"caption {i} {j}" for j in range(n)] for i, n in enumerate(np.bincount(given["image"]))]
    texts, pairs = candidates(own, merge=False)
    np.testing.assert_array_equal(pairs[:, 0], given["image"])
    np.testing.assert_array_equal(first_image(pairs), given["image"])
    images, captions = unit(given["images"]), unit(given["texts"])
    to_text, _ = recalls(ranks(images, captions, pairs), len(texts), np.bincount(pairs[:, 0]))
    to_image, _ = recalls(ranks(captions, images, pairs[:, ::-1]), len(images), np.bincount(pairs[:, 1]))
    for k in (1, 5, 10):
        assert to_text[f"R@{k}"] == pytest.approx(FIGURES["retrieval"][f"text_retrieval_recall@{k}"])
        assert to_image[f"R@{k}"] == pytest.approx(FIGURES["retrieval"][f"image_retrieval_recall@{k}"])


def test_zero_shot_is_that_of_clip_benchmark():
    given = part("zero_shot")
    classes = ensemble(unit(given["texts"]).reshape(36, -1), [4] * 9)
    similarities = unit(given["images"]) @ classes.T
    got, scores = accuracy(similarities, given["labels"])
    names = dict(top1="acc1", top5="acc5", mean_per_class="mean_per_class_recall")
    assert {name: got[name] for name in names} == pytest.approx({a: FIGURES["zero_shot"][b] for a, b in names.items()})
    assert scores.figures() == {name: got[name] for name in names}
    rows = confusion(similarities, given["labels"], [str(i) for i in range(9)])["per_class"]
    assert np.mean([row["recall"] for row in rows]) == pytest.approx(got["mean_per_class"])


def test_pairs_are_those_of_clip_benchmark():
    given, expected = part("winoground"), FIGURES["winoground"]
    found = {name: np.mean(hits) for name, hits in winoground(unit(given["images"]), unit(given["texts"])).items()}
    assert found == pytest.approx(dict(text=expected["text_acc"], image=expected["image_acc"], group=expected["acc"]))
    given = part("wrong_captions")
    scores = np.einsum("eid,ecd->ec", unit(given["images"]), unit(given["texts"]))
    right = scores[:, 0] > scores[:, 1:].max(axis=1)  # what tests/evaluation/test_pairs.py expects of the evaluator
    assert np.mean(right) == pytest.approx(FIGURES["wrong_captions"]["text_acc"])


def test_logistic_regression_is_that_of_scikit_learn():
    given = part("probes")
    kernels, biases = fit_logistic(given["train"], given["labels"], 5, given["l2"])
    logits = given["test"] @ kernels + biases[:, None]
    logits -= logits.mean(axis=-1, keepdims=True)  # a shift common to all classes changes nothing
    expected = given["logistic"] - given["logistic"].mean(axis=-1, keepdims=True)
    for got, want in zip(logits, expected):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
        np.testing.assert_array_equal(np.argmax(got, axis=1), np.argmax(want, axis=1))


def test_more_samples_than_are_held_at_once(monkeypatch):
    given = part("probes")
    arguments = given["train"], given["labels"], 5, given["l2"][2:3]
    whole = fit_logistic(*arguments)
    monkeypatch.setattr(linear, "_AT_ONCE", 1)  # 64 of 160 at a time: the last part is half padding
    for got, want in zip(fit_logistic(*arguments), whole):
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("rows", ["all", "few"])  # fewer samples than dimensions: another system of equations
def test_closed_forms_are_those_of_scikit_learn(rows):
    given = part("probes")
    used = slice(8 if rows == "few" else None)
    x, y = given["train"][used], given["labels"][used]
    kernel, bias = fit_ridge(x, y, 5, 0.01)
    np.testing.assert_allclose(given["test"] @ kernel + bias, given[f"ridge_{rows}"], atol=1e-9)
    kernel, bias = fit_means(x, y, 5)
    np.testing.assert_array_equal(np.argmax(given["test"] @ kernel + bias, axis=1), given[f"centroid_{rows}"])


def test_average_precision_is_that_of_scikit_learn():
    given = part("several")
    ids = np.array([[*np.flatnonzero(row), *[-1] * (6 - row.sum())] for row in given["right"]])
    assert several(given["scores"], ids)[0]["mAP"] == pytest.approx(float(given["mAP"]))


def test_the_shape_of_embeddings():
    given = part("health")
    x = unit(given["points"].astype(np.float64))
    assert health.uniformity(x) == pytest.approx(float(given["uniformity"]))
    values = np.linalg.svd(x, compute_uv=False)
    assert health.effective_rank(x) == pytest.approx(np.exp(stats.entropy(values)))
    assert health.effective_rank(np.eye(5)) == pytest.approx(5) and health.effective_rank(x[:1]) == pytest.approx(1)
    y = x[::-1]
    assert health.alignment(x, y) == pytest.approx(np.mean(2 - 2 * np.sum(x * y, axis=1)))
    assert health.modality_gap(x, y) == pytest.approx(0, abs=1e-12)
    assert health.modality_gap(x, -x) == pytest.approx(2 * np.linalg.norm(x.mean(axis=0)))


def test_uniformity_of_more_points_than_are_compared_at_once(monkeypatch):
    x = unit(np.random.default_rng(0).normal(size=(50, 6)))
    whole = health.uniformity(x)
    monkeypatch.setattr(health, "ROWS", 7)
    assert health.uniformity(x) == pytest.approx(whole)
