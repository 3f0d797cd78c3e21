"""Contrastive losses, plain and as rings on several meshes, against plain NumPy formulas."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.objectives import pairs
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive

ROWS, DIM = 24, 6
MESHES = {"1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}
CASES = [("plain", "1"), ("plain", "2x2x2"), *(("ring", mesh) for mesh in MESHES)]
SMOOTHING = 0.1
KINDS = {
    "softmax": (SoftmaxContrastive, dict(logit_scale=np.float32(1.9))),
    "smoothed": (
        functools.partial(SoftmaxContrastive, label_smoothing=SMOOTHING),
        dict(logit_scale=np.float32(1.9)),
    ),
    "sigmoid": (SigmoidContrastive, dict(logit_scale=np.float32(1.4), logit_bias=np.float32(-1.5))),
}


def identities(duplicates):
    """Key and caption of each row; with duplicates some share the key, some the caption, one row both ways."""
    key, caption = np.arange(ROWS), 100 + np.arange(ROWS)
    if duplicates:
        key[[3, 17]] = key[0]
        caption[[5, 9, 17]] = caption[20]
    wide = lambda ids: np.stack([np.full(ROWS, 7), ids], axis=1).astype(np.uint32)
    return dict(key_id=wide(key), caption_id=wide(caption))


def same(batch):
    pair = lambda ids: np.all(ids[:, None] == ids[None], axis=-1)
    return pair(batch["key_id"]) | pair(batch["caption_id"])


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax_formula(x, y, mask, params, smoothing=0.0):
    """Returns loss sum, its gradient for the logits, and how many rows and columns hit a positive."""
    logits = np.exp(params["logit_scale"]) * unit(x) @ unit(y).T
    loss, grad, hits = 0.0, np.zeros_like(logits), []
    for flip in (False, True):
        z, m = (logits.T, mask.T) if flip else (logits, mask)
        # A caption of which less than one whole image tells counts for that part.
        target = m / np.maximum(m.sum(1, keepdims=True), 1)
        target = (1 - smoothing) * target + smoothing * target.sum(1, keepdims=True) / ROWS
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        loss -= np.sum(target * np.log(p)) / 2
        slope = p * target.sum(1, keepdims=True) - target
        grad += (slope.T if flip else slope) / 2
        hits.append(np.sum(m[np.arange(ROWS), z.argmax(1)] > 0))
    return loss, grad, hits


def sigmoid_formula(x, y, mask, params):
    logits = np.exp(params["logit_scale"]) * unit(x) @ unit(y).T + params["logit_bias"]
    p = 1 / (1 + np.exp(-logits))
    return -np.sum(mask * np.log(p) + (1 - mask) * np.log1p(-p)), p - mask, None


def expected(kind, x, y, mask, params):
    """Loss per sample and gradients for x, y and the parameters, in float64."""
    x, y, params = np.float64(x), np.float64(y), {k: np.float64(v) for k, v in params.items()}
    smoothed = functools.partial(softmax_formula, smoothing=SMOOTHING)
    formula = dict(softmax=softmax_formula, smoothed=smoothed, sigmoid=sigmoid_formula)[kind]
    loss, grad, hits = formula(x, y, mask, params)
    grad, scale = grad / ROWS, np.exp(params["logit_scale"])

    def through_norm(e, g):
        n, u = np.linalg.norm(e, axis=1, keepdims=True), unit(e)
        return (g - u * np.sum(g * u, axis=1, keepdims=True)) / n

    grads = dict(
        x=through_norm(x, scale * grad @ unit(y)), y=through_norm(y, scale * grad.T @ unit(x)),
        params=dict(logit_scale=np.sum(grad * (scale * unit(x) @ unit(y).T))),
    )  # fmt: skip
    if "logit_bias" in params:
        grads["params"]["logit_bias"] = grad.sum()
    return loss / ROWS, grads, hits


def embeddings(seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, ROWS, DIM)).astype(np.float32)
    return 3 * x, 0.5 * (x + y)


def compiled(objective, mesh):
    """Jitted f(leaves, batch) -> ((loss, metrics), gradients)."""

    def loss(leaves, batch):
        outputs = {"image.pooled": leaves["x"], "text.pooled": leaves["y"]}
        total, weight, metrics, _ = objective(outputs, batch, leaves["params"], mesh)
        return total / weight, metrics | dict(weight=weight)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


# Smoothing changes the targets alone: one mesh shows that a ring has the same.
RUNS = [(kind, *case) for kind in KINDS for case in (CASES if kind != "smoothed" else (CASES[0], ("ring", "2x2x2")))]


@pytest.mark.parametrize("kind,form,mesh", RUNS)
def test_losses_gradients_and_metrics_follow_the_formula(kind, form, mesh, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 5)  # divides neither 24 nor the 6 or 3 columns of a device
    mesh = helpers.mesh(*MESHES[mesh])
    cls, params = KINDS[kind]
    run = compiled(cls(form=form), mesh)
    x, y = embeddings()
    for duplicates, mixed in ((False, False), (True, False), (True, True)):
        batch = identities(duplicates)
        target = same(batch).astype(np.float64)
        several = target.sum(1) > 1
        if mixed:
            share = batch["mix_weight"] = np.random.default_rng(0).random(ROWS).astype(np.float32)
            share[:2] = 0, 1  # nothing shows the first sample
            other = target.reshape(-1, 2, ROWS)[:, ::-1].reshape(ROWS, ROWS)
            target = share[:, None] * target + (1 - share[:, None]) * other
            several = target.sum(1) > 1.5
        with jax.set_mesh(mesh):
            (loss, metrics), grads = run(dict(x=x, y=y, params=params), batch)
        wanted, wanted_grads, hits = expected(kind, x, y, target, params)
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
        helpers.assert_trees_close(grads, wanted_grads)
        assert metrics["weight"] == ROWS
        assert metrics["health/duplicate_share"] == pytest.approx(np.mean(several))
        if hits:
            got = [round(float(metrics[name]) * ROWS, 3) for name in ("image_to_text", "text_to_image")]
            assert got == hits
            assert 0 < hits[0] < ROWS  # the case can tell right from wrong


@pytest.mark.parametrize("form", ["plain", "ring"])
@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_can_be_left_as_negatives(kind, form):
    cls, params = KINDS[kind]
    x, y = embeddings()
    mesh = helpers.mesh(2, 2, 1)
    with jax.set_mesh(mesh):
        (loss, metrics), _ = compiled(cls(form=form, multi_positive=False), mesh)(
            dict(x=x, y=y, params=params), identities(True)
        )
    np.testing.assert_allclose(loss, expected(kind, x, y, np.eye(ROWS, dtype=bool), params)[0], rtol=1e-5)
    assert metrics["health/duplicate_share"] == 0


@pytest.mark.parametrize("form,mesh", [("plain", "1"), ("ring", "1"), ("ring", "8x1x1"), ("ring", "2x2x2")])
def test_several_captions_are_positives_of_their_image(form, mesh, monkeypatch):
    """Against the formula: captions of an image, of one with the same key, and equal ones of other images."""
    monkeypatch.setattr(pairs, "CHUNK", 5)
    mesh, captions = helpers.mesh(*MESHES[mesh]), 3
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(rows, DIM)).astype(np.float32) for rows in (ROWS, ROWS * captions))
    batch = identities(True)
    caption = 200 + np.arange(ROWS * captions)
    caption[[4, 61]] = caption[17]  # of the samples 1, 20 and 5
    batch["caption_id"] = np.stack([caption * 0 + 7, caption], axis=1).astype(np.uint32).reshape(ROWS, captions, 2)
    key, owner = batch["key_id"][:, 1], np.arange(ROWS * captions) // captions
    of = lambda i: set(caption[owner == i])
    target = np.array([[key[i] == key[owner[c]] or caption[c] in of(i) for c in range(len(y))] for i in range(ROWS)])
    assert target.sum() == ROWS * captions + 6 * captions + 6
    params = KINDS["sigmoid"][1]
    with jax.set_mesh(mesh):
        (loss, metrics), grads = compiled(SigmoidContrastive(form=form), mesh)(dict(x=x, y=y, params=params), batch)
    exact, logits = np.float64, np.exp(np.float64(1.4)) * unit(np.float64(x)) @ unit(np.float64(y)).T - 1.5
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(loss, np.mean(-np.sum(np.log(np.where(target, p, 1 - p)), axis=0)), rtol=1e-5)
    np.testing.assert_allclose(grads["params"]["logit_bias"], np.sum(p - target) / len(y), rtol=1e-4)
    through = np.exp(exact(1.4)) * (p - target) @ unit(exact(y)) / len(y)
    ux, size = unit(exact(x)), np.linalg.norm(x, axis=1, keepdims=True)
    wanted = (through - ux * np.sum(through * ux, axis=1, keepdims=True)) / size
    helpers.assert_trees_close(dict(x=grads["x"]), dict(x=wanted))
    assert metrics["weight"] == len(y) and metrics["health/duplicate_share"] == pytest.approx(6 / ROWS)
    assert metrics["health/pair_cosine"] == pytest.approx(np.mean(np.sum(ux[owner] * unit(y), axis=1)), rel=1e-4)


def test_the_two_halves_of_an_identity_both_count():
    ids = jnp.array([[[1, 2]], [[1, 3]], [[2, 2]], [[1, 2]]], jnp.uint32)
    assert pairs.positives(ids, ids).astype(int).tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]


def test_health_describes_the_space():
    x, y = embeddings()
    mesh = helpers.mesh()
    with jax.set_mesh(mesh):
        (_, metrics), _ = compiled(SoftmaxContrastive(), mesh)(
            dict(x=x, y=y, params=KINDS["softmax"][1]), identities(False)
        )
    (ux, uy), norms = (unit(x), unit(y)), [np.linalg.norm(e, axis=1).mean() for e in (x, y)]
    wanted = {
        "health/image_norm": norms[0],
        "health/text_norm": norms[1],
        "health/image_mean_cosine": np.mean(ux @ ux.T),
        "health/text_mean_cosine": np.mean(uy @ uy.T),
        "health/modality_gap": np.linalg.norm(ux.mean(0) - uy.mean(0)),
        "health/pair_cosine": np.mean(np.sum(ux * uy, axis=1)),
        "logit_scale": np.exp(1.9),
    }
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name


def test_automatic_form_is_a_ring_when_it_pays():
    auto = SoftmaxContrastive()
    assert not auto._use_ring(helpers.mesh(), 4096)
    assert auto._use_ring(helpers.mesh(), 8192)
    assert auto._use_ring(helpers.mesh(2), 64)
    assert not auto._use_ring(helpers.mesh(tensor=2), 64)
    assert SoftmaxContrastive(form="ring")._use_ring(helpers.mesh(), 64)
    assert not SoftmaxContrastive(form="plain")._use_ring(helpers.mesh(8), 8192)


@pytest.mark.parametrize("columns,size", [(7, 7), (512, 512), (1024, 512), (600, 300), (1021, 1)])
def test_chunks_divide_the_columns(columns, size):
    assert pairs.chunk_size(columns) == size


def test_chance_is_what_no_knowledge_gives():
    assert SoftmaxContrastive().chance_loss(32, None) == pytest.approx(np.log(32))
    cls, params = KINDS["smoothed"]
    x, y = np.ones((2, ROWS, DIM), np.float32)  # all alike: no target can be told from another
    with jax.set_mesh(mesh := helpers.mesh()):
        (loss, _), _ = compiled(cls(), mesh)(dict(x=x, y=y, params=params), identities(True))
    assert cls().chance_loss(ROWS, None) == pytest.approx(float(loss), rel=1e-6)
    logits = np.linspace(-8, 2, 10_001)
    for rows in (2, 32):
        constant = np.log1p(np.exp(-logits)) + (rows - 1) * np.log1p(np.exp(logits))
        assert SigmoidContrastive().chance_loss(rows, None) == pytest.approx(constant.min(), rel=1e-5)
    assert SigmoidContrastive().chance_loss(1, None) == 0.0


def test_temperature_stays_in_its_bounds():
    softmax = SoftmaxContrastive(max_logit_scale=50.0)
    assert float(softmax.init()["logit_scale"]) == pytest.approx(np.log(1 / 0.07))
    assert float(softmax.bound(dict(logit_scale=jnp.float32(9.0)))["logit_scale"]) == pytest.approx(np.log(50.0))
    assert float(softmax.bound(dict(logit_scale=jnp.float32(-1.0)))["logit_scale"]) == -1.0
    start = SigmoidContrastive().init()
    assert {name: float(value) for name, value in start.items()} == pytest.approx(
        dict(logit_scale=np.log(10.0), logit_bias=-10.0)
    )


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_smoothing_is_a_share(share):
    with pytest.raises(ValueError, match=r"label_smoothing=.*: expected a share from 0, below 1"):
        SoftmaxContrastive(label_smoothing=share)


def test_towers_of_unlike_width_are_refused():
    outputs = {"image.pooled": np.ones((4, 3)), "text.pooled": np.ones((4, 5))}
    with pytest.raises(ValueError, match=r"must pool to the same width: \(4, 3\) and \(4, 5\); set `embed_dim`"):
        SoftmaxContrastive()(outputs, identities(False), KINDS["softmax"][1], helpers.mesh())
