"""The training step: what it updates, what it must not touch, and that no mesh changes it."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal.configs import base
from xmodal.distributed.mesh import batch_sharding, replicated, to_global
from xmodal.distributed.sharding import shardings
from xmodal.keys import sample_keys
from xmodal.objectives.base import Loss
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.contrastive import SoftmaxContrastive
from xmodal.paths import flatten_paths
from xmodal.training.optimizer import make_optimizer
from xmodal.training.step import init_state, make_step

ROWS, SEED, EMA = 16, 5, 0.9
SCHEDULE = optax.linear_schedule(1e-2, 0.0, 10)
SOFTMAX = dict(contrastive=SoftmaxContrastive())
FREEZE_IMAGE = ((r"image/.*", dict(freeze=True)),)


def setup(mesh, towers, objectives=SOFTMAX, *, rules=(), accumulation=1, **options):
    """Returns (losses, plan, state, step) of a tiny model; the state is that of step 0 with random parameters."""
    losses = helpers.losses(towers, objectives, mesh)
    config = base.get_config().optimizer
    config.update(eps=1e-4, rules=rules, **options)
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params()}
    plan = make_optimizer(config, SCHEDULE, params)
    shapes = jax.eval_shape(lambda key: init_state(losses, plan, key, ema=True), jax.random.key(0))
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes) | dict(
        params=params, ema=jax.tree.map(np.copy, params)
    )
    return losses, plan, state, make_step(losses, plan, SCHEDULE, seed=SEED, accumulation=accumulation, ema=EMA)


@functools.cache
def trained():
    """One step of CLIP on one device: everything that most tests look at."""
    mesh = helpers.mesh()
    losses, plan, state, step = setup(mesh, helpers.clip(dropout=0.1))
    step = jax.jit(step)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, replicated(mesh))  # as it comes out, so that it is compiled once
        new, metrics = step(state, helpers.batch(ROWS), {})
    return losses, plan, state, step, new, metrics


def run(step, state, batch):
    with jax.set_mesh(helpers.mesh()):
        return step(state, batch, {})


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def poisoned(batch):
    return batch | dict(image=np.where(np.arange(ROWS)[:, None, None, None] == 3, np.nan, batch["image"]))


def test_a_step_is_gradient_optimizer_bounds_and_average():
    losses, plan, state, _, new, metrics = trained()
    batch = helpers.batch(ROWS)
    with jax.set_mesh(helpers.mesh()):
        keys = sample_keys(SEED, np.int32(0), ROWS)
        (loss, extra, _), grads = jax.jit(losses.value_and_grad)(state["params"], batch, keys)
        updates, opt_state = jax.jit(plan.tx.update)(grads, state["opt_state"], state["params"])
    updates, old, now, ema = jax.device_get((updates, state["params"], new["params"], state["ema"]))
    helpers.assert_trees_close(now, jax.tree.map(np.add, old, updates))
    helpers.assert_trees_close(new["opt_state"], opt_state)
    average = jax.tree.map(lambda old, now: 0.1 * old + 0.9 * now, ema, now)  # decay 1/10 at first
    helpers.assert_trees_close(new["ema"], average)

    np.testing.assert_allclose(metrics["train/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["train/grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    assert metrics["lr"] == pytest.approx(1e-2)
    assert metrics.keys() == extra.keys() | {
        "train/loss", "train/grad_norm", "health/nonfinite", "health/nonfinite_total", "lr"
    }  # fmt: skip
    assert all(np.shape(value) == () for value in metrics.values())
    assert [int(new[name]) for name in ("step", "nonfinite", "nonfinite_total")] == [1, 0, 0]


def test_a_new_state_has_the_shape_of_a_trained_one():
    losses, plan, _, _, new, _ = trained()
    shape = lambda tree: {path: (a.shape, a.dtype) for path, a in flatten_paths(tree).items()}
    fresh = jax.jit(lambda key: init_state(losses, plan, key, ema=True))(jax.random.key(0))
    assert shape(fresh) == shape(new)
    assert_equal(fresh["ema"], fresh["params"])
    address = lambda tree: {a.unsafe_buffer_pointer() for a in jax.tree.leaves(tree)}
    assert not address(fresh["ema"]) & address(fresh["params"])  # a shared buffer could not be donated
    assert float(fresh["params"]["objectives"]["contrastive"]["logit_scale"]) == pytest.approx(np.log(1 / 0.07))
    assert "ema" not in jax.eval_shape(lambda key: init_state(losses, plan, key, ema=False), jax.random.key(0))


def test_randomness_is_a_function_of_seed_and_step():
    _, _, state, step, new, metrics = trained()
    again, same = run(step, state, helpers.batch(ROWS))
    assert_equal((again, same), (new, metrics))
    _, later = run(step, state | dict(step=np.int32(7)), helpers.batch(ROWS))
    assert later["train/loss"] != metrics["train/loss"]


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
    _, _, _, step, state, _ = trained()
    batch = helpers.batch(ROWS)
    counters = lambda state: [int(state[name]) for name in ("step", "nonfinite", "nonfinite_total")]
    once, metrics = run(step, state, poisoned(batch))
    twice, _ = run(step, once, poisoned(batch))
    for bad in (once, twice):
        for part in ("params", "opt_state", "ema"):
            assert_equal(bad[part], state[part])
    assert not np.isfinite(metrics["train/loss"])
    assert metrics["health/nonfinite"] == metrics["health/nonfinite_total"] == 1
    assert [counters(s) for s in (state, once, twice)] == [[1, 0, 0], [2, 1, 1], [3, 2, 2]]

    good, metrics = run(step, twice, batch)
    assert counters(good) == [4, 0, 2]
    assert np.isfinite(metrics["train/loss"])
    # The skipped steps do not move the schedule: the optimizer counts its own updates.
    assert metrics["lr"] == pytest.approx(SCHEDULE(1))
    change = optax.tree.norm(optax.tree.sub(good["params"], state["params"]))
    assert 0 < change < 1.0


@dataclasses.dataclass(frozen=True)
class Cusp(SoftmaxContrastive):
    """Zero everywhere, with a gradient that is nowhere finite."""

    @property
    def needs(self):
        return frozenset({"text.pooled"})

    def __call__(self, outputs, batch, params, mesh):
        x = outputs["text.pooled"]
        return Loss(jnp.sum(jnp.sqrt(jnp.abs(x - x) * params["logit_scale"])), jnp.float32(len(x)), {})


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    _, _, state, step = setup(helpers.mesh(), dict(text=helpers.text()), dict(cusp=Cusp()))
    new, metrics = run(jax.jit(step), state, helpers.batch(ROWS))
    assert metrics["train/loss"] == 0.0
    assert not np.isfinite(metrics["train/grad_norm"])
    assert int(new["nonfinite"]) == 1
    assert_equal(new["params"], state["params"])


def test_frozen_parameters_stay_and_do_not_count_and_the_temperature_is_bounded():
    mesh, batch = helpers.mesh(), helpers.batch(ROWS)
    hot = dict(contrastive=SoftmaxContrastive(logit_scale=float(np.log(100.0)), max_logit_scale=50.0))
    losses, _, state, step = setup(mesh, helpers.clip(), hot, rules=FREEZE_IMAGE, clip_norm=1e-3)
    with jax.set_mesh(mesh):
        new, metrics = jax.jit(step)(state, batch, {})
        _, grads = jax.jit(losses.value_and_grad)(state["params"], batch, None)
    for tree in ("params", "ema"):
        assert_equal(new[tree]["image"], state[tree]["image"])
        for path, value in flatten_paths(new[tree]["text"]).items():
            assert np.any(value != flatten_paths(state[tree]["text"])[path]), path
    trained = {part: grads[part] for part in ("text", "objectives")}
    np.testing.assert_allclose(metrics["train/grad_norm"], optax.tree.norm(trained), rtol=1e-5)
    assert optax.tree.norm(grads) > 1.01 * optax.global_norm(trained)
    assert not any(path.startswith("image/") or "/image/" in path for path in flatten_paths(new["opt_state"]))
    # Frozen gradients take no part in clipping either.
    moments = [a for path, a in flatten_paths(new["opt_state"]).items() if "/mu/" in path]
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1 * 1e-3, rtol=1e-4)
    # The temperature is bounded after the update.
    assert float(new["params"]["objectives"]["contrastive"]["logit_scale"]) == pytest.approx(np.log(50.0))


# ------------------------------------------------------------------------------------------- meshes


@functools.cache
def coca_step(shape, accumulation):
    """(new state, metrics) of one step on a mesh, with every array cut that can be cut, and the donated old state."""
    objectives = SOFTMAX | dict(captioning=Captioning(weight=2.0))
    mesh = helpers.mesh(*shape)
    noisy = helpers.coca(dict(embed=dict(patch_dropout=0.5)), dict(embed=dict(dropout=0.2)))
    _, _, state, step = setup(mesh, noisy, objectives, accumulation=accumulation)
    placed = shardings(state, mesh, min_size=1)
    with jax.set_mesh(mesh):
        old = jax.device_put(state, placed)
        batch = to_global(helpers.batch(ROWS), mesh)
        new, metrics = jax.jit(step, donate_argnums=0, out_shardings=(placed, None))(old, batch, {})
    return new, metrics, old, placed


@pytest.mark.parametrize("shape,accumulation", [((2, 2, 2), 2), ((1, 4, 2), 1)])
def test_a_sharded_step_is_the_step_of_one_device(shape, accumulation):
    """The first moments are gradients, so equal states mean equal losses, gradients, updates and averages."""
    state, metrics, *_ = coca_step((1, 1, 1), 1)
    got, got_metrics, _, placed = coca_step(shape, accumulation)
    helpers.assert_trees_close(got_metrics, metrics)
    for part in state:
        helpers.assert_trees_close(got[part], state[part])
    is_cut = [not s.is_fully_replicated for s in jax.tree.leaves(placed["params"])]
    assert any(is_cut) is (shape[1:] != (1, 1))
    assert jax.tree.map(lambda a: a.sharding, got) == placed


def test_the_old_state_is_given_up():
    for shape, accumulation in (((1, 1, 1), 1), ((2, 2, 2), 2)):
        _, _, old, _ = coca_step(shape, accumulation)
        assert all(a.is_deleted() for a in jax.tree.leaves(old))


def test_batches_are_cut_over_the_batch_axes():
    mesh = helpers.mesh(2, 2, 2)
    batch = to_global(helpers.batch(ROWS), mesh)
    assert all(a.sharding == batch_sharding(mesh) for a in batch.values())
    assert {s.data.shape[0] for s in batch["text"].addressable_shards} == {ROWS // 4}
