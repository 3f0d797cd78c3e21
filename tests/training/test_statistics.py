"""Running statistics in training: those of the whole batch on any mesh, in any number of parts, once a step."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_losses import Brighter

from xmodal.config import ConfigError
from xmodal.configs import base
from xmodal.distributed.mesh import batch_sharding, to_global
from xmodal.keys import sample_keys
from xmodal.models import presets
from xmodal.models.batch_norm import STATISTICS, Moments, pooled, updated
from xmodal.objectives.contrastive import SoftmaxContrastive
from xmodal.paths import flatten_paths, map_paths
from xmodal.training.gradcache import split_rows
from xmodal.training.optimizer import make_optimizer
from xmodal.training.step import init_state, make_step

ROWS, SEED, ONE = 16, 3, (1, 1, 1)
SOFTMAX = dict(contrastive=SoftmaxContrastive(logit_scale=1.5))
STEM, LAST = "image/embed/stem/0/norm", "image/embed/stages/1/layers/conv2/norm"


def towers():
    size = dict(vocab_size=helpers.VOCAB, length=helpers.LENGTH)
    return dict(
        image=helpers.resnet(), text=presets.text_tower(helpers.WIDTH, 1, 2, embed=size, embed_dim=helpers.WIDTH)
    )


@functools.cache
def setup(shape=ONE, objectives=None):
    """(losses, parameters) of a tiny CLIP with a ResNet."""
    losses = helpers.losses(towers(), objectives or SOFTMAX, helpers.mesh(*shape))
    return losses, helpers.random_params(losses.model) | {"objectives": losses.init_params()}


@functools.cache
def result(shape, parts):
    """((loss, metrics, moments), gradients) on a mesh, in so many micro-batches."""
    losses, params = setup(shape)
    with jax.set_mesh(losses.mesh):
        keys = jax.device_put(sample_keys(SEED, np.int32(0), ROWS), batch_sharding(losses.mesh))
        batch = to_global(helpers.batch(ROWS), losses.mesh)
        (loss, metrics, seen), grads = jax.jit(lambda *args: losses.value_and_grad(*args, parts))(params, batch, keys)
    return (loss, metrics, seen[STATISTICS]), grads


def arrays(moments):
    """{path: array} of a tree of moments; the stack of a stage has a leading axis."""
    leaves = jax.tree.map(lambda m: dict(mean=m.mean, var=m.var), moments, is_leaf=lambda m: isinstance(m, Moments))
    return flatten_paths(jax.device_get(leaves))


def test_a_batch_on_many_devices_is_one_batch():
    """The devices hold 4 rows each, which normalised by themselves would give another loss."""
    (loss, _, moments), grads = result(ONE, 1)
    (got_loss, _, got_moments), got_grads = result((2, 2, 2), 1)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    helpers.assert_trees_close(got_grads, grads, 5e-5)
    helpers.assert_trees_close(arrays(got_moments), arrays(moments))


def by_hand(shards, parts):
    """What accumulation must give: each part through the model by itself, all of them through one loss."""
    losses, params = setup()
    with jax.set_mesh(losses.mesh):
        cut = functools.partial(split_rows, parts=parts, shards=shards)
        micro = jax.tree.map(
            cut, (jax.tree.map(jnp.asarray, helpers.batch(ROWS)), sample_keys(SEED, np.int32(0), ROWS))
        )
        part = lambda i: jax.tree.map(lambda a: a[i], micro)
        want = frozenset({"image.pooled", "text.pooled", STATISTICS})

        def loss(params):
            seen = [losses.model(params, batch, want, keys) for batch, keys in map(part, range(parts))]
            join = lambda name: jnp.concatenate([outputs[name] for outputs in seen])
            outputs = {name: join(name) for name in want - {STATISTICS}}
            whole = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), micro[0])
            total, weight, *_ = losses.evaluate("contrastive", outputs, whole, params)
            return total / weight, pooled([outputs[STATISTICS] for outputs in seen])

        (value, moments), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return (value, {}, moments), grads


def test_each_part_is_normalised_by_itself_and_all_are_pooled():
    (loss, _, moments), grads = by_hand(shards=8, parts=2)
    (got_loss, _, got_moments), got_grads = result((8, 1, 1), 2)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    helpers.assert_trees_close(got_grads, grads, 5e-5)
    helpers.assert_trees_close(arrays(got_moments), arrays(moments))
    # Nothing is normalised before the first norm: what it saw in parts is what it sees at once.
    whole = arrays(result(ONE, 1)[0][2])
    for name in ("mean", "var"):
        np.testing.assert_allclose(arrays(got_moments)[f"{STEM}/{name}"], whole[f"{STEM}/{name}"], rtol=1e-5, atol=1e-6)
        assert np.max(np.abs(arrays(got_moments)[f"{LAST}/{name}"] - whole[f"{LAST}/{name}"])) > 1e-3
    counts = jax.tree.leaves(got_moments, is_leaf=lambda m: isinstance(m, Moments))
    assert {m.count for m in counts} == {ROWS * side * side for side in (8, 4, 2)}


# ------------------------------------------------------------------------------------------- the step


def plan_of(rules=()):
    config = base.get_config().optimizer
    config.update(rules=rules, weight_decay=0.5)
    return make_optimizer(config, optax.constant_schedule(1e-2), setup()[1])


@functools.cache
def stepper():
    """(plan, state before a step, the step)."""
    (losses, params), plan = setup(), plan_of()
    shapes = jax.eval_shape(lambda key: init_state(losses, plan, key, ema=True), jax.random.key(0))
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    state |= dict(params=params, ema=jax.tree.map(lambda a: a + np.float32(1), params))
    return plan, state, jax.jit(make_step(losses, plan, lambda _: 1e-2, seed=SEED, accumulation=1, ema=0.9))


def test_a_step_moves_them_once_and_nothing_else_does():
    (losses, params), (plan, state, step) = setup(), stepper()
    (_, _, moments), grads = result(ONE, 1)
    with jax.set_mesh(losses.mesh):
        new, metrics = step(state, helpers.batch(ROWS), {})
    helpers.assert_trees_close(new["params"][STATISTICS], updated(params[STATISTICS], moments))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads[STATISTICS]))
    np.testing.assert_allclose(metrics["train/grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    # Averaged along with the weights: the decay of the first step is 1 / 10.
    average = jax.tree.map(lambda old, now: 0.1 * old + 0.9 * now, state["ema"], jax.device_get(new["params"]))
    helpers.assert_trees_close(new["ema"], average)
    assert not any(f"/{STATISTICS}/" in path for path in flatten_paths(new["opt_state"]))
    (row,) = (row for row in plan.rows if row.part == STATISTICS)
    assert (row.method, row.rule, row.weight_decay) == ("frozen", "running statistics", 0.0)


def test_a_step_that_is_not_finite_leaves_them():
    (losses, _), (_, state, step), batch = setup(), stepper(), helpers.batch(ROWS)
    batch["image"][3] = np.nan
    with jax.set_mesh(losses.mesh):
        new, _ = step(state, batch, {})
    assert int(new["nonfinite"]) == 1
    jax.tree.map(np.testing.assert_array_equal, new["params"], state["params"])


def frozen_by(*rules):
    """Pooled images of a model so frozen, in training and in evaluation, and the statistics after the batch."""
    losses, params = setup()
    model = losses.model.freezing(plan_of(rules).frozen)
    run = lambda keys: model(params, helpers.batch(ROWS), frozenset({"image.pooled", STATISTICS}), keys)
    with jax.set_mesh(losses.mesh):
        trained, evaluated = jax.jit(run)(sample_keys(SEED, np.int32(0), ROWS)), jax.jit(run)(None)
    new = updated(params[STATISTICS], trained[STATISTICS])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), new, params[STATISTICS])
    return trained["image.pooled"], evaluated["image.pooled"], flatten_paths(moved)


def test_a_locked_tower_uses_and_keeps_them():
    trained, evaluated, moved = frozen_by((r"image/.*", dict(freeze=True)))
    np.testing.assert_array_equal(trained, evaluated)
    assert moved and not any(moved.values())
    trained, evaluated, moved = frozen_by()
    assert np.max(np.abs(trained - evaluated)) > 0.1
    assert all(moved.values())


def test_a_norm_that_is_frozen_alone_is_the_only_one_that_keeps_them():
    """A norm of which only one of scale and bias is frozen is trained, and so are its statistics."""
    _, _, moved = frozen_by((r"image/embed/stem/.*", dict(freeze=True)), (r".*/shortcut/.*bias", dict(freeze=True)))
    assert all(now != ("/stem/" in path) for path, now in moved.items())


def test_rules_are_about_what_is_trained():
    _, params = setup()
    config = base.get_config().optimizer
    config.rules = ((r"statistics/.*", dict(weight_decay=0.0)),)
    with pytest.raises(ConfigError, match=r"statistics/\.\*' matches no parameter"):
        make_optimizer(config, optax.constant_schedule(1.0), params)
    config.rules = ((r".*", dict(freeze=True)),)
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        make_optimizer(config, optax.constant_schedule(1.0), params)


# ------------------------------------------------------------------------------------------- views


@dataclasses.dataclass(frozen=True)
class BrighterSoftmax(SoftmaxContrastive):
    """The contrastive loss of another view."""

    amount: float = 0.5

    @property
    def view(self):
        return Brighter(self.amount)


@pytest.mark.parametrize("clean", [True, False])
def test_the_clean_view_counts_and_without_it_all_views_together(clean):
    objectives = dict(one=BrighterSoftmax(amount=2.0), two=BrighterSoftmax(amount=4.0))
    objectives |= dict(contrastive=SoftmaxContrastive()) if clean else {}
    losses = helpers.losses(towers(), objectives, helpers.mesh())
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params()}
    keys, batch = helpers.sample_keys(ROWS), helpers.batch(ROWS)
    with jax.set_mesh(losses.mesh):
        moments, inputs = jax.jit(
            lambda: (losses.moments(results := losses.forward(params, batch, keys)[0]),
                     {name: view["image"] for name, (_, view) in results.items()})
        )()  # fmt: skip
    kernel = params["image"]["embed"]["stem"]["0"]["conv"]["kernel"]
    shown = [inputs["contrastive"]] if clean else [inputs["one"], inputs["two"]]
    seen = jax.lax.conv_general_dilated(
        jnp.concatenate(shown), kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    own = moments["image"]["embed"]["stem"]["0"]["norm"]
    np.testing.assert_allclose(own.mean, np.mean(seen, (0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own.var, np.var(seen, (0, 1, 2)), rtol=1e-4)
    assert own.count == seen.size // seen.shape[-1]


def test_models_without_batch_norm_have_none():
    losses = helpers.losses(helpers.clip(), SOFTMAX, helpers.mesh())
    shapes = jax.eval_shape(losses.model.init, jax.random.key(0))
    assert shapes.keys() == {"image", "text"} and not losses.model.has_statistics
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params()}
    frozen = map_paths(lambda path, _: path.startswith("image/"), params)
    with jax.set_mesh(losses.mesh):
        run = lambda: losses.value_and_grad(params, helpers.batch(ROWS), helpers.sample_keys(ROWS), 2, frozen)
        assert jax.eval_shape(run)[0][2] == {}
