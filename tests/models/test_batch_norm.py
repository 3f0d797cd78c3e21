"""BatchNorm: what it normalises by, and how moments of several batches become running statistics."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models.batch_norm import BatchNorm, Moments, pooled, pooled_parts, updated

CHANNELS, MOMENTUM, EPS = 5, 0.9, 1e-3


def norm():
    return helpers.split(lambda draw: BatchNorm(CHANNELS, eps=EPS, momentum=MOMENTUM))


def values(rows, seed=0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(rows, 3, 4, CHANNELS)) * 2 + shift).astype(np.float32)


def params(seed=1):
    return helpers.random_params(norm()[1], seed)


def moments_of(x):
    return norm()[0](params())(jnp.asarray(x), True)[1]


def test_a_batch_is_normalised_by_itself_in_training_and_by_what_was_seen_otherwise():
    bind, _ = norm()
    own, x = params(), values(6).astype(np.float64)
    for train in (True, False):
        y, moments = bind(own)(jnp.asarray(x, jnp.float32), train)
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (own["mean"], own["var"])
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + EPS) * own["scale"] + own["bias"], atol=2e-6)
        assert (moments is None) != train
    moments = moments_of(x)
    np.testing.assert_allclose(moments.mean, x.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(moments.var, x.var((0, 1, 2)), rtol=1e-5)
    assert (moments.count, moments.momentum) == (6 * 3 * 4, MOMENTUM)


def test_a_frozen_norm_ignores_its_batch():
    module = norm()[0](params())
    module.frozen = True
    x = jnp.asarray(values(4))
    y, moments = module(x, True)
    assert moments is None
    np.testing.assert_array_equal(y, module(x, False)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_keep_their_digits_far_from_zero(dtype):
    """The variance of values around 1000 is not lost in their squares once the running mean is near."""
    x = jnp.asarray(values(64, shift=1000.0), dtype)
    own = params() | dict(mean=np.full(CHANNELS, 1001.0, np.float32))
    y, moments = norm()[0](own)(x, True)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(moments.var, exact.var((0, 1, 2)), rtol=1e-4)
    assert (moments.var.dtype, y.dtype) == (jnp.float32, x.dtype)


def test_no_gradient_reaches_the_statistics_and_all_of_it_the_batch():
    bind, _ = norm()
    own, x, weight = params(), jnp.asarray(values(2)), jnp.asarray(values(2, 3))
    loss = lambda own, x, train: jnp.sum(bind(own)(x, train)[0] * weight)
    for train in (True, False):
        grads, dx = jax.grad(loss, argnums=(0, 1))(own, x, train)
        assert not np.any(grads["mean"]) and not np.any(grads["var"])
        assert np.all(grads["scale"]) and np.all(grads["bias"]) and np.all(dx)
    # What is common to all values of a channel changes nothing after normalisation by the batch.
    _, dx = jax.grad(loss, argnums=(0, 1))(own, x, True)
    np.testing.assert_allclose(np.sum(dx, (0, 1, 2)), 0.0, atol=1e-4)


def test_parts_and_views_together_are_one_batch():
    x = values(12, shift=0.7)
    whole = moments_of(x)
    parts = jax.tree.map(lambda *a: jnp.stack(a), *[{"norm": moments_of(part)} for part in np.split(x, 4)])
    unequal = pooled([{"norm": moments_of(x[:2])}, {"norm": moments_of(x[2:])}])
    for got in (pooled_parts(parts), unequal):
        np.testing.assert_allclose(got["norm"].mean, whole.mean, atol=1e-6)
        np.testing.assert_allclose(got["norm"].var, whole.var, rtol=1e-5)
        assert got["norm"].count == whole.count


def test_running_statistics_move_towards_the_unbiased_batch():
    x = values(2)
    running = {"tower": {"a": dict(mean=np.ones(CHANNELS), var=np.ones(CHANNELS)), "b": dict(mean=np.zeros(1))}}
    new = updated(running, {"tower": {"a": moments_of(x), "b": None}})
    flat = x.reshape(-1, CHANNELS).astype(np.float64)
    np.testing.assert_allclose(new["tower"]["a"]["mean"], 0.9 + 0.1 * flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(new["tower"]["a"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    assert new["tower"]["b"] is running["tower"]["b"]
    assert updated(running, {}) == running


def test_one_value_has_no_variance_and_no_division_by_zero():
    one = Moments(jnp.zeros(1), jnp.zeros(1), count=1, momentum=0.5)
    assert updated(dict(mean=jnp.ones(1), var=jnp.ones(1)), one)["var"] == 0.5
