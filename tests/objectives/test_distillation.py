"""What is learnt from a teacher: values and gradients against plain formulas, plain and as rings on several meshes."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.test_contrastive import DIM, MESHES, ROWS, embeddings, identities, same, softmax_formula, unit
from xmodal.distributed.mesh import batch_sharding
from xmodal.objectives import pairs
from xmodal.objectives.contrastive import SoftmaxContrastive
from xmodal.objectives.distillation import Distillation, FeatureMatching
from xmodal.objectives.providers.teacher import Teacher
from xmodal.training.losses import Given, Losses

WIDTH = 9  # of the teacher
SCALE, TEACHER_SCALE = np.float32(1.9), 1.3
PARAMS = dict(logit_scale=SCALE)


def teacher_says(seed=7):
    """Unit embeddings of a teacher, of whose pairs images and texts are near."""
    x, y = np.random.default_rng(seed).normal(size=(2, ROWS, WIDTH))
    return dict(zip(("teacher.image", "teacher.text"), np.float32([unit(x), unit(x + y)])))


def probabilities(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def formula(x, y, batch, soft):
    """Loss per sample, divergence and entropy per sample, in float64."""
    x, y, u, v = map(np.float64, (x, y, batch["teacher.image"], batch["teacher.text"]))
    student, teacher = np.exp(np.float64(SCALE)) * unit(x) @ unit(y).T, np.exp(TEACHER_SCALE) * u @ v.T
    both = [(probabilities(s), probabilities(t)) for s, t in ((student, teacher), (student.T, teacher.T))]
    cross = -sum(np.sum(t * np.log(s)) for s, t in both) / 2
    entropy = -sum(np.sum(t * np.log(t)) for _, t in both) / 2
    hard, _, _ = softmax_formula(x, y, same(batch).astype(np.float64), dict(logit_scale=np.float64(SCALE)))
    return ((1 - soft) * hard + soft * cross) / ROWS, (cross - entropy) / ROWS, entropy / ROWS


def naive(leaves, batch, soft):
    """The same in a few lines of JAX, for its gradient."""
    norm = lambda a: a / jnp.linalg.norm(a, axis=1, keepdims=True)
    student = jnp.exp(leaves["params"]["logit_scale"]) * norm(leaves["x"]) @ norm(leaves["y"]).T
    teacher = np.exp(TEACHER_SCALE) * batch["teacher.image"] @ batch["teacher.text"].T
    mask = same(batch)
    target = lambda t, m: (1 - soft) * m / m.sum(1, keepdims=True) + soft * jax.nn.softmax(t, axis=1)
    one = lambda s, t, m: -jnp.sum(target(t, m) * jax.nn.log_softmax(s, axis=1))
    return (one(student, teacher, mask) + one(student.T, teacher.T, mask.T)) / 2 / ROWS


def compiled(objective, mesh):
    def loss(leaves, batch):
        outputs = {"image.pooled": leaves["x"], "text.pooled": leaves["y"]}
        total, weight, metrics, _ = objective(outputs, batch, leaves["params"], mesh)
        return total / weight, metrics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("soft", [1.0, 0.7])
@pytest.mark.parametrize("form,mesh", [("plain", "1"), ("ring", "8x1x1"), ("ring", "2x2x2")])
def test_soft_targets_follow_the_formula(form, mesh, soft, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 5)
    mesh, batch, (x, y) = helpers.mesh(*MESHES[mesh]), identities(True) | teacher_says(), embeddings()
    leaves = dict(x=x, y=y, params=PARAMS)
    objective = Distillation(form=form, soft=soft, teacher_logit_scale=TEACHER_SCALE)
    with jax.set_mesh(mesh):
        (loss, metrics), grads = compiled(objective, mesh)(leaves, batch)
    wanted, divergence, entropy = formula(x, y, batch, soft)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["teacher_kl"], divergence, rtol=1e-5)
    np.testing.assert_allclose(metrics["teacher_entropy"], entropy, rtol=1e-5)
    helpers.assert_trees_close(grads, jax.grad(naive)(leaves, batch, soft))


def test_the_loss_is_large_and_small_where_it_should_be():
    mesh, batch = helpers.mesh(), identities(False) | teacher_says()
    run = compiled(Distillation(teacher_logit_scale=float(SCALE)), mesh)
    equal = np.ones((ROWS, DIM), np.float32)
    with jax.set_mesh(mesh):
        (chance, _), _ = run(dict(x=equal, y=equal, params=PARAMS), batch)
        own = {"x": batch["teacher.image"], "y": batch["teacher.text"], "params": PARAMS}
        (best, metrics), grads = run(own, batch)
    np.testing.assert_allclose(chance, Distillation().chance_loss(ROWS, None), rtol=1e-6)
    np.testing.assert_allclose(best, metrics["teacher_entropy"], rtol=1e-6)
    np.testing.assert_allclose(metrics["teacher_kl"], 0, atol=1e-6)
    assert np.abs(grads["x"]).max() < 1e-6 < np.abs(run(own | dict(x=-own["x"]), batch)[1]["x"]).max()


@pytest.mark.parametrize("form", ["plain", "ring"])
def test_without_a_share_of_the_teacher_it_is_softmax_and_with_one_a_mixture(form):
    """Soft targets are `softmax` with a part of the target from elsewhere: the loss is linear in that share."""
    mesh, batch, (x, y) = helpers.mesh(2), identities(True) | teacher_says(), embeddings()
    leaves = dict(x=x, y=y, params=PARAMS)
    with jax.set_mesh(mesh):
        run = lambda objective: compiled(objective, mesh)(leaves, batch)
        teach = lambda soft: Distillation(form=form, soft=soft, teacher_logit_scale=TEACHER_SCALE)
        plain = run(SoftmaxContrastive(form=form))
        (none, metrics), none_grads = run(teach(0.0))
        (all_, _), all_grads = run(teach(1.0))
        (mixed, _), mixed_grads = run(teach(0.25))
    np.testing.assert_allclose(none, plain[0][0], rtol=1e-6)
    helpers.assert_trees_close(none_grads, plain[1])
    assert plain[0][1].items() <= metrics.items()
    np.testing.assert_allclose(mixed, 0.75 * none + 0.25 * all_, rtol=1e-6)
    helpers.assert_trees_close(mixed_grads, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, none_grads, all_grads))


def test_a_teacher_without_a_temperature_of_its_own_has_the_students():
    """As for the average of the weights; it is no part of what the temperature learns from."""
    mesh, batch, (x, y) = helpers.mesh(), identities(True) | teacher_says(), embeddings()
    leaves = dict(x=x, y=y, params=PARAMS)
    with jax.set_mesh(mesh):
        got = compiled(Distillation(), mesh)(leaves, batch)
        wanted = compiled(Distillation(teacher_logit_scale=float(SCALE)), mesh)(leaves, batch)
    helpers.assert_trees_close(got, wanted)


@pytest.mark.parametrize("widths", [(DIM, DIM), (WIDTH, DIM)])
def test_feature_matching_follows_the_formula(widths):
    rng, (x, y) = np.random.default_rng(1), embeddings()
    batch = {
        f"teacher.{name}": np.float32(unit(rng.normal(size=(ROWS, width))))
        for name, width in zip(("image", "text"), widths)
    }
    objective = FeatureMatching(widths=widths)
    spec = helpers.build(helpers.clip(embed_dim=DIM)).spec
    params = objective.init(jax.random.key(0), spec)
    assert set(params) == {name for name, width in zip(("image", "text"), widths) if width != DIM}
    with jax.set_mesh(helpers.mesh()):
        (loss, metrics), grads = compiled(objective, helpers.mesh())(dict(x=x, y=y, params=params), batch)
    cosines = []
    for name, e in (("image", x), ("text", y)):
        e = e @ params[name]["projection"]["kernel"] if name in params else e
        cosines.append(np.sum(unit(np.float64(e)) * batch[f"teacher.{name}"], axis=1).mean())
    np.testing.assert_allclose(loss, 1 - np.mean(cosines), rtol=1e-5)
    np.testing.assert_allclose([metrics["image_cosine"], metrics["text_cosine"]], cosines, rtol=1e-5)

    def apart(leaves):
        norm = lambda a: a / jnp.linalg.norm(a, axis=1, keepdims=True)
        far = 0.0
        for name, e in (("image", leaves["x"]), ("text", leaves["y"])):
            e = e @ leaves["params"][name]["projection"]["kernel"] if name in params else e
            far += jnp.mean(jnp.sum(jnp.square(norm(e) - batch[f"teacher.{name}"]), axis=1)) / 4
        return far

    helpers.assert_trees_close(grads, jax.grad(apart)(dict(x=x, y=y, params=params)))


def test_what_a_config_leaves_to_the_teacher():
    facts = {"big.image.width": 12, "big.text.width": 10, "big.logit_scale": 2.5}
    entry = dict(teacher="big")
    assert Distillation.settle_facts(entry, facts) == dict(teacher_logit_scale=2.5)
    assert Distillation.settle_facts(entry | dict(teacher_logit_scale=1.0), facts) == {}
    assert Distillation.settle_facts({}, facts) == {}  # the average of the student's weights has no such fact
    with pytest.raises(ValueError, match="no temperature: set teacher_logit_scale"):
        Distillation.settle_facts(entry, {"big.logit_scale": None})
    assert FeatureMatching.settle_facts(entry | dict(towers=("text",)), facts) == dict(widths=(10,))
    with pytest.raises(ValueError, match="embeddings are \\(12, 10\\) wide"):
        FeatureMatching.settle_facts(entry | dict(widths=(12, 12)), facts)
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        Distillation(soft=1.5)


@functools.cache
def with_a_teacher(shape, parts):
    """((loss, metrics, moments), gradients) of both kinds of learning beside a plain loss."""
    student, teacher = helpers.build(helpers.clip(dropout=0.1)), helpers.build(helpers.clip(style="siglip"))
    objectives = dict(
        soft=Distillation(soft=0.6, teacher_logit_scale=2.0),
        features=FeatureMatching(weight=3.0, widths=(helpers.WIDTH, helpers.WIDTH)),
        plain=SoftmaxContrastive(),
    )
    providers = dict(teacher=Teacher("teacher", teacher, dict(image="image", text="text")))
    losses = Losses(student, objectives, lambda batch, keys: dict(batch), helpers.mesh(*shape), providers)

    def run(params, weights, batch, keys):
        given = Given(dict(teacher=weights))
        return losses.value_and_grad(params, batch, keys, parts, given=given)

    with jax.set_mesh(losses.mesh):
        params = helpers.random_params(student) | {"objectives": losses.init_params()}
        keys = jax.device_put(helpers.sample_keys(16), batch_sharding(losses.mesh))
        return jax.jit(run)(params, helpers.random_params(teacher, seed=3), helpers.batch(16), keys)


@pytest.mark.parametrize("shape,parts", [((1, 1, 1), 4), ((2, 2, 2), 2)])
def test_micro_batches_with_a_teacher_are_the_batch(shape, parts):
    (loss, metrics, _), grads = with_a_teacher((1, 1, 1), 1)
    (got_loss, got_metrics, _), got_grads = with_a_teacher(shape, parts)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    helpers.assert_trees_close(got_metrics, metrics)
    helpers.assert_trees_close(got_grads, grads)
