"""Probes train on one set and are tested on another; the same on any number of devices and for any batch size."""

import json

import jax
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, held_out

from data_pipelines.errors import DataError
from tests.data.tiny_shards import sample, write_tar
from xmodal.config import ConfigError, make_spec
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.linear import fit_logistic, fit_means, fit_ridge
from xmodal.evaluation.probe import FewShot, LinearProbe, drawn, stratified

TRAIN = 70
L2 = (1e-4, 1e-2)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Samples to train on: two kinds of three, and some of none."""
    kinds = [(*KINDS[:2], "")[i % 3] for i in range(TRAIN)]
    samples = {f"{i:03d}": sample(100 + i) | dict(json=json.dumps(dict(kind=kinds[i])).encode()) for i in range(TRAIN)}
    return str(write_tar(tmp_path_factory.mktemp("train") / "train.tar", samples))


def features(world, urls):
    dataset = world.context.open(urls, ("{kind}",))
    with jax.set_mesh(world.mesh):
        embedder = Embedder(world.context, 16, ("image", "image"))
        return embedder.samples(world.params, dataset), [r.fields["kind"] for r in dataset.records]


@pytest.fixture(scope="module")
def known(world, train):
    """(train features, labels, test features, labels): samples without a known class are left out."""
    (x, kinds), (test, test_kinds) = features(world, train), features(world, world.urls)
    classes = sorted(KINDS[:2])
    used = np.array([kind in classes for kind in test_kinds])
    labels = np.array([classes.index(kind) for kind, use in zip(test_kinds, used) if use])
    return x, np.array([classes.index(kind) for kind in kinds]), test[used], labels


def test_linear_probe(world, alone, train, known):
    options = dict(label_field="kind", train=train, l2=L2, iterations=30)
    result = world.evaluate(LinearProbe(world.urls, batch_size=16, **options))
    got = {key.removeprefix("linear_probe/x/"): value for key, value in result.metrics.items()}
    x, y, test, labels = known
    held = stratified(y, 0.2)
    assert 0 < held.sum() < len(y) / 3 and np.unique(y[held]).tolist() == [0, 1]
    kernels, biases = fit_logistic(x[~held], y[~held], 2, np.array(L2), 30)
    right = [np.mean(np.argmax(x[held] @ k + b, axis=1) == y[held]) for k, b in zip(kernels, biases)]
    best = L2[1] if right[1] >= right[0] else L2[0]
    kernel, bias = fit_logistic(x, y, 2, np.array([best]), 30)
    top1 = np.mean(np.argmax(test @ kernel[0] + bias[0], axis=1) == labels)
    assert (got["top1"], got["l2"], got["val_top1"]) == pytest.approx((top1, best, max(right)))
    assert (got["images"], got["train_images"], got["classes"]) == (len(labels), len(y), 2)
    assert result.details["linear_probe/x/per_class"][0]["class"] == "moon"
    for other, batch_size in ((alone, SAMPLES), (world, 7)):
        again = other.evaluate(LinearProbe(other.urls, batch_size=batch_size, **options))
        assert again.metrics == pytest.approx(result.metrics) and again.details == result.details


def test_a_validation_set_of_its_own_is_used_for_training_too(world, train, known):
    options = dict(label_field="kind", l2=L2[:1], iterations=30, batch_size=16)
    own = world.evaluate(LinearProbe(world.urls, train=train, val=dict(urls=world.urls), **options)).metrics
    x, y, test, labels = known
    both = np.concatenate([x, test]), np.concatenate([y, labels])
    kernel, bias = fit_logistic(*both, 2, np.array(L2[:1]), 30)
    top1 = np.mean(np.argmax(test @ kernel[0] + bias[0], axis=1) == labels)
    assert own["linear_probe/x/top1"] == pytest.approx(top1)


@pytest.mark.parametrize("method", ["ridge", "mean"])
def test_few_shot(world, alone, train, known, method):
    options = dict(label_field="kind", train=train, shots=(1, 4, 1000), draws=3, method=method)
    result = world.evaluate(FewShot(world.urls, batch_size=16, **options))
    x, y, test, labels = known
    fit = fit_means if method == "mean" else lambda *args: fit_ridge(*args, 1e-2)
    for k in options["shots"]:
        hits = []
        for draw in range(3):
            rows = drawn(y, k, draw)
            kernel, bias = fit(x[rows], y[rows], 2)
            hits.append(np.argmax(test @ kernel + bias, axis=1) == labels)
        got = {name: result.metrics[f"few_shot/x/{k}_shot/{name}"] for name in ("top1", "draw_std", "chance/top1")}
        expected = dict(top1=np.mean(hits), draw_std=np.std(np.mean(hits, axis=1)))
        assert got == pytest.approx(expected | {"chance/top1": 0.5})
        np.testing.assert_allclose(result.scores[f"few_shot/x/{k}_shot"].values["top1"], np.mean(hits, axis=0))
    assert result.metrics["few_shot/x/1000_shot/draw_std"] < 1e-9, "all samples of each class are the same draw"
    for other, batch_size in ((alone, SAMPLES), (world, 7)):
        again = other.evaluate(FewShot(other.urls, batch_size=batch_size, **options))
        assert again.metrics == pytest.approx(result.metrics)


def test_draws_are_nested_balanced_and_different():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 7 + [-1] * 5)
    assert np.bincount(labels[drawn(labels, 4, 0)]).tolist() == [4, 3, 4]
    assert set(drawn(labels, 2, 1)) < set(drawn(labels, 5, 1)) and set(drawn(labels, 5, 1)) != set(drawn(labels, 5, 2))
    held = stratified(labels, 0.9)
    assert np.bincount(labels[held]).tolist() == [9, 2, 6], "a class always keeps a sample to train on"
    assert not held[labels < 0].any()


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (LinearProbe, dict(train="none.tar"), r"evals\.x\.train: no shard matches"),
        (LinearProbe, dict(label_field="knid"), r"evals\.x\.source: the template '{knid}' uses .*did you mean 'kind'"),
        (LinearProbe, dict(val_share=0.0), r"val_share=0\.0 .* leaves no sample to choose the penalty by"),
        (FewShot, dict(shots=(0,)), r"shots=\(0,\), draws=5: at least one sample"),
    ],
)
def test_what_is_wrong_is_named(world, train, cls, fields, message):
    with pytest.raises(DataError, match=message):
        cls(world.urls, **(dict(label_field="kind", train=train) | fields)).prepare("x", world.context)


def test_training_samples_are_not_optional(world):
    with pytest.raises(ConfigError, match=r"evals\.x: `train` names the samples to train on"):
        make_spec(FewShot, dict(urls=world.urls), "evals.x")
    with pytest.raises(ConfigError, match=r"evals\.x\.method: expected one of 'ridge', 'mean', got 'rigde'"):
        make_spec(FewShot, dict(urls=world.urls, train="a.tar", method="rigde"), "evals.x")


def test_the_world_has_what_the_tests_use():
    assert {json.loads(held_out(i)["json"])["kind"] for i in range(SAMPLES)} == set(KINDS)
