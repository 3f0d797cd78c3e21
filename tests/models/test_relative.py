"""Relative positions: BEiT's table of a grid and T5's buckets, against loops over queries and keys."""

import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models.attention import attend
from xmodal.models.relative import buckets, grid_distances
from xmodal.models.spec import Relative
from xmodal.paths import flatten_paths


def test_a_grid_has_a_row_for_each_distance():
    index = grid_distances((2, 3), 1)
    assert index.shape == (7, 7) and index.max() == 3 * 5 + 2
    places = [(y, x) for y in range(2) for x in range(3)]
    for q, (qy, qx) in enumerate(places):
        for k, (ky, kx) in enumerate(places):
            assert index[1 + q, 1 + k] == (qy - ky + 1) * 5 + qx - kx + 2
    assert set(index[0, 1:]) == {15} and set(index[1:, 0]) == {16} and index[0, 0] == 17


@pytest.mark.parametrize("both", [True, False])
def test_buckets_widen_with_the_distance(both):
    """The function of T5's published code, distance by distance."""
    spec = Relative("buckets", buckets=8, distance=20, both=both)

    def bucket(distance):
        count, found = spec.buckets, 0
        if both:
            count //= 2
            found, distance = (count if distance > 0 else 0), abs(distance)
        else:
            distance = max(-distance, 0)
        exact = count // 2
        if distance < exact:
            return found + distance
        far = exact + int(math.log(distance / exact) / math.log(spec.distance / exact) * (count - exact))
        return found + min(far, count - 1)

    distances = np.arange(-30, 31)
    np.testing.assert_array_equal(buckets(jnp.asarray(distances), spec), [bucket(int(d)) for d in distances])


def test_a_bias_is_added_to_the_logits():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, 2, 4)).astype(np.float32) for _ in range(3))
    bias = rng.normal(size=(2, 3, 3)).astype(np.float32)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 2 + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(attend(q, k, v, None, bias=bias), np.einsum("bhqk,bkhd->bqhd", weights, v), atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_vit_has_one_table_or_one_for_each_layer(shared):
    tower = helpers.image(relative=dict(kind="grid", shared=shared), embed=dict(position="none"))
    model = helpers.build(dict(image=tower))
    rows = (2 * 2 - 1) ** 2 + 3
    shape = flatten_paths(jax.eval_shape(model.init, jax.random.key(0)))
    path = "image/trunk/relative/table" if shared else "image/trunk/layers/0/0/attn/relative/table"
    assert shape[path].shape == ((rows, 2) if shared else (2, rows, 2))
    params, batch = helpers.random_params(model), helpers.batch(4)
    run = helpers.forward(model, "image.pooled")
    turned = batch | dict(image=np.roll(batch["image"], helpers.PATCH, axis=2))  # the same patches at other places
    assert np.abs(run(params, batch)["image.pooled"] - run(params, turned)["image.pooled"]).max() > 1e-3


def test_buckets_go_with_a_cache():
    """T5's decoder: distances to what was written are the same, token by token."""
    relative = dict(kind="buckets", buckets=8, distance=6, both=False, shared=True)
    tower = helpers.text(head="linear", relative=relative, embed=dict(position="none"))
    model, batch = helpers.build(dict(text=tower)), helpers.batch(2)
    params = helpers.random_params(model)
    want = frozenset({"text.logits"})
    whole = helpers.forward(model, "text.logits")(params, batch)["text.logits"]
    caches, found = model.bind(params).init_caches("text", 2, helpers.LENGTH), []
    step = jax.jit(lambda ids, caches: model.bind(params)(dict(text=ids), want, caches=caches))
    with jax.set_mesh(helpers.mesh()):
        for place in range(helpers.LENGTH):
            out = step(batch["text"][:, place : place + 1], caches)
            caches = out["caches"]
            found.append(out["text.logits"][:, 0])
    valid = batch["text_valid"]
    np.testing.assert_allclose(np.stack(found, axis=1)[valid], whole[valid], atol=2e-5)
