"""Weights and temperatures of sources: values and gradients against a plain form, plain and as rings, in every loss."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.test_contrastive import ROWS, embeddings, identities, same
from tests.objectives.test_distillation import compiled, teacher_says
from xmodal.models import presets
from xmodal.objectives import OBJECTIVES, pairs
from xmodal.objectives.base import Temperature, weighed
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.classification import Classification
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive, of_all
from xmodal.objectives.distillation import Distillation, FeatureMatching
from xmodal.objectives.fine_grained import Filip, Flair, Sparc
from xmodal.objectives.masked_pixels import MaskedPixels
from xmodal.objectives.masked_text import MaskedText
from xmodal.objectives.matching import Matching
from xmodal.training.losses import Losses

SOURCES = ("curated", "noisy", "web")
NUMBER = np.random.default_rng(5).integers(0, 3, ROWS).astype(np.int32)
WEIGHTS, FACTORS = np.float32([2.0, 0.0, 0.5]), np.float32([1.0, 1.5, 0.8])
OF_SOURCE = dict(source=NUMBER, loss_weight=WEIGHTS[NUMBER], temperature=FACTORS[NUMBER])
SCALES, BIASES = np.float32([1.9, 1.2, 2.3]), np.float32([-1.5, -2.0, -0.5])
KINDS = {
    "softmax": functools.partial(SoftmaxContrastive, label_smoothing=0.1),
    "sigmoid": SigmoidContrastive,
    "distillation": functools.partial(Distillation, soft=0.6, teacher_logit_scale=1.3),
}


def parameters(kind, by_source):
    of = lambda i: dict(logit_scale=SCALES[i]) | (dict(logit_bias=BIASES[i]) if kind == "sigmoid" else {})
    return dict(sources={name: of(i) for i, name in enumerate(SOURCES)}) if by_source else of(0)


def naive(kind, leaves, batch, by_source):
    """Row by row: each sample with its own temperature, bias and weight."""
    table = lambda name: jnp.stack(
        [(leaves["params"]["sources"][s] if by_source else leaves["params"])[name] for s in SOURCES]
    )[NUMBER]
    norm = lambda a: a / jnp.linalg.norm(a, axis=1, keepdims=True)
    cosines = norm(leaves["x"]) @ norm(leaves["y"]).T
    logs, weight, mask = table("logit_scale") - jnp.log(batch["temperature"]), batch["loss_weight"], same(batch)
    mean = lambda a: (a[:, None] + a[None]) / 2
    if kind == "sigmoid":
        logits = jnp.exp(mean(logs)) * cosines + mean(table("logit_bias"))
        return jnp.sum(mean(weight) * jnp.where(mask, jax.nn.softplus(-logits), jax.nn.softplus(logits))) / ROWS
    teacher = np.exp(1.3) * batch["teacher.image"] @ batch["teacher.text"].T
    total = 0.0
    for scores, theirs in ((cosines, teacher), (cosines.T, teacher.T)):
        target = mask / mask.sum(1, keepdims=True)
        if kind == "softmax":
            target = 0.9 * target + 0.1 / ROWS
        else:
            target = 0.4 * target + 0.6 * jax.nn.softmax(theirs, axis=1)
        total -= jnp.sum(weight[:, None] * target * jax.nn.log_softmax(jnp.exp(logs)[:, None] * scores, axis=1)) / 2
    return total / ROWS


@pytest.mark.parametrize(
    "by_source,form,shape", [(True, "plain", (1, 1, 1)), (True, "ring", (8, 1, 1)), (False, "ring", (2, 2, 2))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_has_the_weight_and_the_temperature_of_its_source(kind, by_source, form, shape, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 5)
    mesh, (x, y) = helpers.mesh(*shape), embeddings()
    objective = KINDS[kind](form=form, by_source=by_source, sources=SOURCES if by_source else ())
    leaves = dict(x=x, y=y, params=parameters(kind, by_source))
    assert jax.tree.structure(objective.init()) == jax.tree.structure(leaves["params"])
    batch = identities(True) | teacher_says() | OF_SOURCE
    with jax.set_mesh(mesh):
        (loss, metrics), grads = compiled(objective, mesh)(leaves, batch)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(lambda a: naive(kind, a, batch, by_source)))(leaves)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    helpers.assert_trees_close(grads, wanted_grads)
    if by_source:
        np.testing.assert_allclose(metrics["logit_scale"], np.exp(SCALES.mean()), rtol=1e-6)
        np.testing.assert_allclose(metrics["logit_scale_web"], np.exp(SCALES[2]), rtol=1e-6)
        assert of_all(leaves["params"])["logit_scale"] == pytest.approx(SCALES.mean())


def test_equal_sources_are_as_none():
    """One temperature for all and a weight of 1, written out, change nothing."""
    mesh, (x, y) = helpers.mesh(2), embeddings()
    batch, ones = identities(True) | teacher_says(), np.ones(ROWS, np.float32)
    for kind, make in KINDS.items():
        leaves = dict(x=x, y=y, params=parameters(kind, False))
        each = dict(x=x, y=y, params=dict(sources=dict.fromkeys(SOURCES, leaves["params"])))
        with jax.set_mesh(mesh):
            plain, _ = compiled(make(), mesh)(leaves, batch)
            apart = compiled(make(by_source=True, sources=SOURCES), mesh)
            written, _ = apart(each, batch | dict(source=NUMBER, loss_weight=ones, temperature=ones))
        np.testing.assert_allclose(written[0], plain[0], rtol=1e-6)


def test_bounds_hold_for_each_source():
    objective = SoftmaxContrastive(by_source=True, sources=SOURCES, max_logit_scale=8.0)
    bound = objective.bound(parameters("softmax", True))["sources"]
    np.testing.assert_allclose([float(bound[s]["logit_scale"]) for s in SOURCES], np.minimum(SCALES, np.log(8)))


MASKED = MaskedText(rate=0.4, mask_id=4, vocab_size=helpers.VOCAB, special_ids=(0, 1, 2, 4))
FUSION = presets.decoder(**helpers.SIZE) | dict(heads=presets.heads(pool="mean"))
SEEN = dict(embed=dict(causal=False), head="masked")
EVERY = {
    "softmax": (helpers.clip(), SoftmaxContrastive()),
    "sigmoid": (helpers.clip(), SigmoidContrastive()),
    "distillation": (helpers.clip(), Distillation(teacher_logit_scale=1.0)),
    "feature_matching": (helpers.clip(), FeatureMatching(widths=(helpers.WIDTH,) * 2)),
    "filip": (helpers.clip(), Filip()),
    "sparc": (helpers.clip(), Sparc()),
    "flair": (helpers.clip(), Flair(heads=2)),
    "captioning": (helpers.git(), Captioning()),
    "classification": (helpers.clip(), Classification()),
    "masked_text": (dict(text=helpers.text(**SEEN)), MASKED),
    "masked_pixels": (
        dict(
            image=presets.without_heads(helpers.image("vit"), "pooled"),
            decoder=presets.pixel_decoder(12, 1, 2, patch_size=helpers.PATCH, embed=dict(image_size=helpers.PIXELS)),
        ),
        MaskedPixels(patch_size=helpers.PATCH),
    ),
    "itm": (helpers.clip() | dict(fusion=FUSION), Matching()),
}


def negatives(batch):
    """Entries of a provider of negatives: those of the row before."""
    rolled = {f"negatives.{name}": np.roll(batch[name], 1, axis=0) for name in ("image", "text", "text_valid")}
    return rolled | {f"negatives.{name}_found": np.ones(len(batch["text"]), bool) for name in ("image", "text")}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_is_linear_in_the_weights_of_its_samples(kind):
    """Weights w give (the loss of w = 1) - (the loss of 1 - w): none forgets a sample or counts one twice."""
    towers, objective = EVERY[kind]
    mesh, batch = helpers.mesh(), helpers.batch(8)
    batch |= dict(label=np.arange(8, dtype=np.int32)[:, None]) | negatives(batch)
    rng = np.random.default_rng(0)
    for tower in ("image", "text"):
        rows = rng.normal(size=(8, helpers.WIDTH)).astype(np.float32)
        batch[f"teacher.{tower}"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    losses = Losses(helpers.build(towers), {"one": objective}, lambda batch, keys: dict(batch), mesh)
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params(jax.random.key(0))}
    weights = np.float32([0.25, 1, 0, 1, 0.5, 0.75, 1, 0])
    with jax.set_mesh(mesh):
        run = jax.jit(lambda w: losses(params, batch | dict(loss_weight=w), None)[0])
        one, some, rest, none = (float(run(w)) for w in (np.ones(8, np.float32), weights, 1 - weights, 0 * weights))
        plain = float(jax.jit(lambda: losses(params, batch, None)[0])())
    np.testing.assert_allclose(one, plain, rtol=1e-6)
    np.testing.assert_allclose(some + rest, one, rtol=1e-5)
    assert none == 0 and abs(some - one) > 1e-3


@pytest.mark.parametrize("form", ["plain", "ring"])
@pytest.mark.parametrize("kind", ["sigmoid", "flair"])
def test_each_of_several_captions_has_what_its_sample_has(kind, form):
    towers, objective = EVERY[kind]
    objective = dataclasses.replace(objective, form=form)
    one, two = helpers.batch(8), helpers.batch(8, seed=1)
    batch = one | {name: np.stack([one[name], two[name]], axis=1) for name in ("text", "text_valid", "caption_id")}
    batch["caption_id"][:, 1] += 500
    losses = Losses(helpers.build(towers), {"one": objective}, lambda batch, keys: dict(batch), helpers.mesh())
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params(jax.random.key(0))}
    ones, weights = np.ones(8, np.float32), np.float32([0.25, 1, 0, 1, 0.5, 0.75, 1, 0])
    with jax.set_mesh(helpers.mesh()):
        run = jax.jit(lambda w, t: losses(params, batch | dict(loss_weight=w, temperature=t), None)[0])
        plain = float(jax.jit(lambda: losses(params, batch, None)[0])())
        found = [float(run(w, ones)) for w in (ones, weights, 1 - weights)]
        colder = float(run(ones, 0.5 * ones))
        params["objectives"]["one"]["logit_scale"] += np.log(2)
        wanted = float(jax.jit(lambda: losses(params, batch, None)[0])())
    np.testing.assert_allclose([found[0], found[1] + found[2], colder], [plain, plain, wanted], rtol=1e-5)


def test_weighed_has_the_shape_of_losses():
    losses = jnp.ones((3, 2))
    assert weighed(losses, {}) is losses
    np.testing.assert_array_equal(weighed(losses, dict(loss_weight=np.float32([1, 2, 0]))), [[1, 1], [2, 2], [0, 0]])


def test_sources_are_those_of_the_data():
    assert SoftmaxContrastive.settle({}, None, SOURCES) == {}
    assert SigmoidContrastive.settle(dict(by_source=True), None, SOURCES) == dict(sources=SOURCES)
    with pytest.raises(ValueError, match="leave them out"):
        SigmoidContrastive.settle(dict(by_source=True, sources=("web",)), None, SOURCES)


def test_a_temperature_is_that_of_pooled_embeddings_and_the_mean_of_the_sources():
    each = {source: {"logit_scale": scale, "logit_bias": -1.0} for source, scale in zip(SOURCES, (1.0, 3.0))}
    several = SigmoidContrastive(between=("a", "b"), by_source=True, sources=SOURCES[:2])
    assert several.temperature({"sources": each}) == Temperature(2.0, -1.0)
    one = {"logit_scale": np.float32(2.5)}
    for kind in ("softmax", "distillation"):
        assert OBJECTIVES[kind]().temperature(one) == Temperature(2.5)
    for kind in ("filip", "sparc", "flair", "captioning", "masked_text"):
        assert OBJECTIVES[kind]().temperature(one) is None
