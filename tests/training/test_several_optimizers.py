"""Losses that each train their part of the model, and an optimizer for each part."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal.config import ConfigError
from xmodal.configs import base
from xmodal.models import presets
from xmodal.objectives import Objective
from xmodal.objectives.base import Loss
from xmodal.paths import flatten_paths
from xmodal.training.optimizer import make_optimizer
from xmodal.training.step import init_state, make_step

IMAGE, TEXT = r"image/.*", r"text/.*"
RULES = ((IMAGE, dict(optimizer="critic")),)


@dataclasses.dataclass(frozen=True)
class Far(Objective):
    """The distance between the images and the texts of a batch, times a sign: one player wants it small, one large."""

    sign: float = 1.0
    needs = frozenset({"image.pooled", "text.pooled"})

    def chance_loss(self, batch_size, model_spec):
        return 0.0

    def __call__(self, outputs, batch, params, mesh):
        distance = jnp.sum((outputs["image.pooled"] - outputs["text.pooled"]) ** 2, axis=-1)
        return Loss(self.sign * jnp.sum(distance), jnp.float32(len(distance)), {})


def losses_of(**objectives):
    size, shared = (helpers.WIDTH, 1, 2), dict(embed_dim=helpers.WIDTH, scan=False, dropout=0.1)
    pixels, words = dict(image_size=helpers.PIXELS), dict(vocab_size=helpers.VOCAB, length=helpers.LENGTH)
    towers = dict(
        image=presets.image_tower(*size, patch_size=helpers.PATCH, embed=pixels, **shared),
        text=presets.text_tower(*size, embed=words, **shared),
    )
    return helpers.losses(towers, objectives, helpers.mesh())


BOTH = dict(near=Far(trains=TEXT), far=Far(sign=-1.0, weight=0.5, trains=IMAGE))


@functools.cache
def gradients(parts, everything=False):
    losses = losses_of(**(dict(near=Far()) if everything else BOTH))
    params = helpers.random_params(losses.model) | {"objectives": {}}
    with jax.set_mesh(losses.mesh):
        run = jax.jit(lambda params: losses.value_and_grad(params, helpers.batch(8), helpers.sample_keys(8), parts))
        return run(params)[1]


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_of_a_loss_reach_what_it_trains(parts):
    """The text tower follows `near` alone, the image tower the negative half of it."""
    both, near = gradients(parts), gradients(1, everything=True)
    helpers.assert_trees_close(both["text"], near["text"])
    helpers.assert_trees_close(both["image"], jax.tree.map(lambda g: -0.5 * g, near["image"]))


def options(**others):
    config = base.get_config().optimizer
    config.update(rules=RULES, others=others, clip_norm=0.0, weight_decay=0.0)
    return config


def test_each_part_has_its_optimizer():
    losses = losses_of(**BOTH)
    params = helpers.random_params(losses.model) | {"objectives": {}}
    config = options(critic=dict(name="sgd", momentum=0.0, lr=1.0, clip_norm=0.5))
    main, critic = optax.constant_schedule(1e-2), optax.linear_schedule(0.3, 0.0, 10)
    plan = make_optimizer(config, main, params, dict(critic=critic))
    assert {(row.part, row.method) for row in plan.rows} == {("image", "critic: sgd"), ("text", "adamw")}
    step = make_step(losses, plan, main, seed=0, accumulation=1, ema=0.0)
    with jax.set_mesh(losses.mesh):
        shapes = jax.eval_shape(lambda key: init_state(losses, plan, key, ema=False), jax.random.key(0))
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes) | dict(params=params)
        assert not any("mu/image" in path for path in flatten_paths(state["opt_state"]))
        new, metrics = jax.jit(step)(state, helpers.batch(8), {})
    assert metrics["lr"] == pytest.approx(1e-2) and metrics["lr/critic"] == pytest.approx(0.3)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, new["params"], params)
    np.testing.assert_allclose(optax.tree.norm(moved["image"]), 0.3 * 0.5, rtol=1e-4)  # clipped by itself
    assert 0.9e-2 < np.max(np.abs(jax.tree.leaves(moved["text"])[-1])) <= 1.01e-2  # the first step of Adam


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(rules=((IMAGE, dict(optimizer="critics")),)), "optimizer.others has no 'critics'"),
        (dict(rules=()), "optimizer.others.critic: no rule gives it parameters"),
        (dict(others=dict(critic=dict(beta=1.0))), "unknown key 'beta'"),
    ],
)
def test_what_is_wrong_with_further_optimizers_is_said(change, message):
    config = options(critic=dict(lr=1e-3))
    config.update(change)
    params = dict(image=dict(kernel=np.zeros((2, 2))), text=dict(kernel=np.zeros((2, 2))))
    with pytest.raises(ConfigError, match=message):
        make_optimizer(config, optax.constant_schedule(1.0), params, dict(critic=optax.constant_schedule(1.0)))
