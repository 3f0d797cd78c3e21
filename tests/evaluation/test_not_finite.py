"""NaN and infinity in weights and embeddings are refused by name in every evaluator, and never count as right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_world import changed, options_of

from xmodal.config import make_spec
from xmodal.evaluation import EVALUATORS, ranking
from xmodal.evaluation.classification import average_precision, several
from xmodal.evaluation.opening import open_evaluators
from xmodal.evaluation.pairs import winoground
from xmodal.evaluation.pointing import _hit
from xmodal.evaluation.retrieval import ranks
from xmodal.evaluation.zero_shot import accuracy, confusion
from xmodal.finite import NotFinite, check_metrics, check_params, check_rows, not_finite
from xmodal.live import Live
from xmodal.paths import map_paths
from xmodal.reporting.bootstrap import intervals


class Poisoned:
    """A model whose outputs of the first row of each batch are NaN, though its weights are numbers."""

    def __init__(self, model):
        self._model, self.spec = model, model.spec

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, params, batch, want, **options):
        return poisoned(self._model(params, batch, want, **options), want)

    def bind(self, params):
        module = self._model.bind(params)

        class Module:
            init_caches = staticmethod(module.init_caches)

            def __call__(self, inputs, want, **options):
                return poisoned(module(inputs, want, **options), want)

        return Module()


def poisoned(outputs, want):
    spoil = lambda a: a.at[0].set(jnp.nan) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return {**outputs, **{name: jax.tree.map(spoil, outputs[name]) for name in want}}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", EVALUATORS)
def test_weights_are_refused_with_the_parameter(kind, value, contexts, every_model, train):
    own, context = contexts[0]
    model, params, _ = every_model
    path = "text/trunk/layers/0/1/mlp/fc1/kernel"
    spoil = lambda p, a: np.where(np.arange(a.size).reshape(a.shape) == 5, value, a) if p == path else a
    bad = map_paths(spoil, jax.device_get(params))
    assert not_finite(bad) == [f"{path}: 1 of {2 * 16 * 64:,} numbers"] == not_finite(jax.tree.map(jnp.asarray, bad))
    config = ConfigDict(dict(evals=dict(x=dict(type=kind, urls=own.urls, batch_size=16, **options_of(kind, train)))))
    config.data = context.data
    with jax.set_mesh(own.mesh):
        _, run = open_evaluators(config, Live(model, config, own.mesh, context.inputs))["x"]
        with pytest.raises(NotFinite, match=rf"evals\.x: the model holds weights that are NaN or infinite: {path}"):
            run(bad)


@pytest.mark.parametrize("kind", EVALUATORS)
def test_an_output_that_is_no_number_is_refused_with_the_sample(kind, contexts, every_model, train):
    own, context = contexts[0]
    context = changed(context, model=Poisoned(every_model[0]))
    evaluator = make_spec(EVALUATORS[kind], dict(urls=own.urls, batch_size=16) | options_of(kind, train), "evals.x")
    with jax.set_mesh(own.mesh), pytest.raises(NotFinite, match=r"of (sample \d\d\d of \w+\.tar|the text '.+') is NaN"):
        evaluator.prepare("x", context)(every_model[1])


def test_a_metric_that_is_no_number_is_no_result(contexts, every_model, monkeypatch):
    """Whatever an evaluator does, and whichever is added."""
    own, context = contexts[0]
    found = dict(metrics={"embeddings/x/image/uniformity": float("nan")}, gallery={}, scores={}, details={})
    result = lambda params: dataclasses.make_dataclass("Result", found)(**found)
    monkeypatch.setattr(EVALUATORS["embeddings"], "prepare", lambda *_: result)
    config = ConfigDict(dict(evals=dict(x=dict(type="embeddings", urls=own.urls))))
    config.data = context.data
    with jax.set_mesh(own.mesh):
        _, run = open_evaluators(config, Live(every_model[0], config, own.mesh, context.inputs))["x"]
        with pytest.raises(NotFinite, match=r"evals\.x: embeddings/x/image/uniformity is nan, which is no result"):
            run(every_model[1])


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", BAD)
def test_a_right_score_that_is_no_number_is_a_miss(value):
    scores, labels = np.eye(6)[np.array([0, 1, 2, 3])], np.array([0, 1, 2, 3])
    scores[1, 1] = value
    got, of_queries = accuracy(scores, labels)
    assert got["top1"] == 0.75 and got["top5"] == 0.75
    recall = {row["class"]: row["recall"] for row in confusion(scores, labels, list("abcdef"))["per_class"]}
    assert recall == dict(a=1, b=0, c=1, d=1)
    assert several(scores, labels[:, None])[0]["top1"] == 0.75
    everything = np.full((4, 6), value)
    assert accuracy(everything, labels)[0]["top1"] == accuracy(everything, labels)[0]["top5"] == 0
    assert several(everything, labels[:, None])[0]["top1"] == 0
    assert accuracy(np.full((4, 1), value), np.zeros(4, int))[0]["top1"] == 0, "with one class, too"
    assert np.isfinite(list(intervals(of_queries, resamples=50)["top1"])).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_wrong_score_that_is_no_number_is_ahead(value):
    scores, labels = 1.0 + np.eye(3), np.arange(3)
    scores[0, 2] = value
    assert accuracy(scores, labels)[0]["top1"] == pytest.approx(2 / 3)
    rows = confusion(scores, labels, list("abc"))["per_class"]
    assert rows[0] == {"class": "a", "images": 1, "recall": 0.0, "taken_for": "c", "share": 1.0}


@pytest.mark.parametrize("value", BAD)
def test_retrieval_with_an_embedding_that_is_no_number(value):
    queries, items, pairs = np.eye(12, dtype=np.float32), np.eye(12, dtype=np.float32), np.stack([np.arange(12)] * 2, 1)
    assert not ranks(queries, items, pairs).any()
    spoilt = queries.copy()
    spoilt[3] = value
    assert ranks(spoilt, items, pairs).tolist() == [0] * 3 + [12] + [0] * 8
    assert (ranks(queries, spoilt, pairs) > 0)[3], "an item that is no number is found by nobody"


def test_pairs_and_pointing_with_scores_that_are_no_numbers():
    images, texts = np.tile(np.eye(2), (3, 1, 1)), np.tile(np.eye(2), (3, 1, 1))
    images[1, 0, 0] = texts[2, 1, 1] = np.nan
    found = winoground(images, texts)
    assert {name: hits.tolist() for name, hits in found.items()} == {
        name: [True, False, False] for name in ("text", "image", "group")
    }
    box = (0.0, 0.0, 0.5, 0.5)
    assert _hit(np.array([[1.0, 0], [0, 0]]), box)[0]
    for place in ((0, 0), (1, 1)):
        scores = np.array([[1.0, 0], [0, 0]])
        scores[place] = np.nan
        assert not _hit(scores, box)[0]
    assert average_precision(np.array([np.nan, 2, 1]), np.array([True, False, False])) == pytest.approx(1 / 3)
    assert average_precision(np.array([np.nan, 2, 1]), np.array([False, True, False])) == pytest.approx(1 / 2)


def test_probes_with_logits_that_are_no_numbers():
    logits = np.full((5, 3), np.nan)
    assert (ranking.class_ranks(logits, np.zeros(5, int)) == 3).all(), "numpy.argmax would say class 0"


def test_what_is_finite_passes_and_counters_are_left_alone():
    params = {"a": {"kernel": np.ones((2, 3), np.float32), "count": np.arange(3)}, "b": jnp.ones(2, jnp.bfloat16)}
    assert not_finite(params) == []
    check_params(params, "x")
    check_metrics({"a": 1.0})
    values = np.zeros((3, 2))
    assert check_rows(values, "x", str) is values
    values[2, 1] = np.inf
    with pytest.raises(NotFinite, match=r"x of 2 is NaN or infinite \(1 of 3 are\)"):
        check_rows(values, "x", str)
    params["a"]["kernel"][0, 0] = params["a"]["kernel"][1, 1] = np.nan
    params["b"] = params["b"].at[0].set(jnp.inf)
    with pytest.raises(NotFinite, match=r"a/kernel: 2 of 6 numbers, and 1 other parameters"):
        check_params(params, "x")
