"""State that objectives carry from step to step without a gradient: a queue of negatives, the sum of a codebook."""

import dataclasses
import functools
from typing import ClassVar

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.training.test_several_optimizers import losses_of
from xmodal.checkpoints.writing import Checkpoints
from xmodal.configs import base
from xmodal.objectives import Objective
from xmodal.objectives.base import Loss
from xmodal.objectives.contrastive import normalize
from xmodal.training.optimizer import make_optimizer
from xmodal.training.step import init_state, make_step

ROWS, LENGTH = 8, 12


@dataclasses.dataclass(frozen=True)
class Queued(Objective):
    """Texts of earlier steps are further negatives of an image (MoCo, He et al. 2020, section 3.1)."""

    global_batch: ClassVar[bool] = True
    needs = frozenset({"image.pooled", "text.pooled"})

    def carried(self, key=None, model_spec=None):
        return {"queue": jnp.zeros((LENGTH, helpers.WIDTH)), "filled": jnp.int32(0)}

    def update(self, carried, seen):
        queue = jnp.concatenate([seen["texts"], carried["queue"]])[:LENGTH]
        return {"queue": queue, "filled": jnp.minimum(carried["filled"] + len(seen["texts"]), LENGTH)}

    def chance_loss(self, batch_size, model_spec):
        return float(np.log(batch_size + LENGTH))

    def __call__(self, outputs, batch, params, mesh):
        x, y = (normalize(outputs[f"{tower}.pooled"]) for tower in ("image", "text"))
        old = jnp.where(jnp.arange(LENGTH) < params["filled"], x @ params["queue"].T, -1e9)
        nll = -jnp.diagonal(jax.nn.log_softmax(jnp.concatenate([x @ y.T, old], axis=1)))
        return Loss(jnp.sum(nll), jnp.float32(len(x)), {}, {"texts": y})


@dataclasses.dataclass(frozen=True)
class Summed(Objective):
    """A loss over samples that carries a sum over all of them, as averaged codebooks do."""

    needs = frozenset({"text.pooled"})

    def carried(self, key=None, model_spec=None):
        return {"total": jnp.zeros(helpers.WIDTH)}

    def update(self, carried, seen):
        return {"total": 0.5 * carried["total"] + seen["total"]}

    def chance_loss(self, batch_size, model_spec):
        return 1.0

    def __call__(self, outputs, batch, params, mesh):
        x = outputs["text.pooled"]
        return Loss(jnp.sum(jnp.square(x)), jnp.float32(len(x)), {}, {"total": jnp.sum(x, axis=0)})


@functools.cache
def setup(parts):
    """(mesh, first state, jitted step)."""
    losses = losses_of(queued=Queued(), summed=Summed(weight=0.1))
    params, options = helpers.random_params(losses.model) | {"objectives": {}}, base.get_config().optimizer
    options.rules = ()
    plan = make_optimizer(options, optax.constant_schedule(1e-2), params)
    step = make_step(losses, plan, lambda _: 1e-2, seed=0, accumulation=parts, ema=0.0)
    with jax.set_mesh(losses.mesh):
        shapes = jax.eval_shape(lambda key: init_state(losses, plan, key, ema=False), jax.random.key(0))
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes) | dict(params=params)
        return losses.mesh, jax.device_put(state), jax.jit(step)


def steps(parts, state, batches):
    mesh, _, step = setup(parts)
    with jax.set_mesh(mesh):
        for batch in batches:
            state, metrics = step(state, batch, {})
    return state, metrics


def test_a_queue_fills_survives_a_checkpoint_and_changes_the_loss(tmp_path):
    batches, first = [helpers.batch(ROWS, seed=seed) for seed in range(3)], setup(1)[1]
    straight, metrics = steps(1, first, batches)
    half, _ = steps(1, first, batches[:2])
    carried = half["carried"]["objectives"]
    assert int(carried["queued"]["filled"]) == LENGTH and np.all(np.any(carried["queued"]["queue"] != 0, axis=1))
    with Checkpoints(tmp_path, every=1, keep_last=1, keep_every=0, best="", best_mode="max") as checkpoints:
        checkpoints.save(2, half, position=2 * ROWS, metrics={}, extra={}, wait=True)
        restored, _ = checkpoints.restore(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), half))
    again, same = steps(1, restored, batches[2:])
    jax.tree.map(np.testing.assert_array_equal, (again, same), (straight, metrics))
    empty = {**half, "carried": first["carried"]}
    assert steps(1, empty, batches[2:])[1]["train/queued/loss"] < metrics["train/queued/loss"] - 0.1


def test_what_is_carried_is_the_same_in_micro_batches_and_stays_when_a_step_is_not_finite():
    first, batch = setup(1)[1], helpers.batch(ROWS)
    whole, _ = steps(1, first, [batch])
    parts, _ = steps(2, first, [batch])
    helpers.assert_trees_close(parts["carried"], whole["carried"])
    assert np.any(np.asarray(whole["carried"]["objectives"]["summed"]["total"]))
    bad = batch | dict(image=np.full_like(batch["image"], np.nan))
    after, metrics = steps(1, whole, [bad])
    assert metrics["health/nonfinite"] == 1
    jax.tree.map(np.testing.assert_array_equal, after["carried"], whole["carried"])
