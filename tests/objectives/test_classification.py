"""Classification is the mean cross entropy with the classes of the batch, against plain NumPy."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest

from xmodal.models import presets
from xmodal.objectives.classification import Classification

ROWS, CLASSES = 6, 5


def inputs(most=1):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(ROWS, CLASSES)).astype(np.float32)
    label = np.stack([rng.permutation(CLASSES)[:most] for _ in range(ROWS)]).astype(np.int32)
    if most > 1:
        label[::2, 1:] = -1  # every other sample has one class
    return logits, label


def targets(label):
    hot = np.zeros((ROWS, CLASSES + 1))
    np.put_along_axis(hot, label, 1.0, axis=1)
    return hot[:, :CLASSES]


def evaluate(objective, logits, label, **batch):
    call = lambda x: objective({"image.pooled": x}, dict(label=label) | batch, {}, None)
    return jax.jit(call)(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("most", [1, 3])
def test_softmax_follows_the_formula(smoothing, most):
    logits, label = inputs(most)
    total, weight, metrics, *_ = evaluate(Classification(label_smoothing=smoothing), logits, label)
    log_p = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(1, keepdims=True))
    hot = targets(label)
    wanted = (1 - smoothing) * hot / hot.sum(1, keepdims=True) + smoothing / CLASSES
    np.testing.assert_allclose(total, -(wanted * log_p).sum(), rtol=1e-5)
    assert weight == ROWS
    right = [row.argmax() in own for row, own in zip(logits, label)]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_follows_the_formula(smoothing):
    logits, label = inputs(3)
    total, weight, *_ = evaluate(Classification(loss="sigmoid", label_smoothing=smoothing), logits, label)
    p, wanted = 1 / (1 + np.exp(-np.float64(logits))), (1 - smoothing) * targets(label) + smoothing / 2
    np.testing.assert_allclose(total, -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).sum(), rtol=1e-5)
    assert weight == ROWS


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_mixed_images_have_mixed_targets(loss):
    logits, label = inputs()
    share = np.linspace(0, 1, ROWS, dtype=np.float32)
    objective = Classification(loss=loss)
    own, other = (
        np.array([evaluate(objective, logits[i : i + 1], swapped[i : i + 1])[0] for i in range(ROWS)])
        for swapped in (label, label.reshape(-1, 2, 1)[:, ::-1].reshape(-1, 1))
    )
    total, *_ = evaluate(objective, logits, label, mix_weight=share)
    np.testing.assert_allclose(total, np.sum(share * own + (1 - share) * other), rtol=1e-5)


def test_guessing_and_what_does_not_fit():
    spec = helpers.build(dict(image=presets.classifier(helpers.image(), CLASSES))).spec
    logits = np.zeros((ROWS, CLASSES), np.float32)
    for loss in ("softmax", "sigmoid"):
        objective = Classification(loss=loss)
        objective.check(spec)
        total, weight, *_ = evaluate(objective, logits, inputs()[1])
        assert objective.chance_loss(ROWS, spec) == pytest.approx(float(total / weight), rel=1e-6)
    with pytest.raises(ValueError, match=r"heads\.pooled\.embed_dim is 0"):
        Classification().check(helpers.build(dict(image=helpers.image(embed_dim=0))).spec)
    with pytest.raises(ValueError, match="label_smoothing=1"):
        dataclasses.replace(Classification(), label_smoothing=1.0)
