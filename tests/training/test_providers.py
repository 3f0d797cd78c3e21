"""Providers: a frozen codec and negatives mined from the whole batch; their order; weights that change over a run."""

import dataclasses
import functools
from typing import ClassVar

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal import keys as key_tools
from xmodal.config import ConfigError, make_spec
from xmodal.distributed.mesh import batch_sharding, to_global
from xmodal.models import presets
from xmodal.objectives import Objective
from xmodal.objectives.base import Loss, Ramp
from xmodal.objectives.contrastive import SoftmaxContrastive
from xmodal.objectives.matching import Matching
from xmodal.objectives.providers.base import Provider, ordered
from xmodal.objectives.providers.mined_negatives import Miner, draw_negatives
from xmodal.training.losses import Given

ROWS, CODES = 16, 12


@dataclasses.dataclass(frozen=True)
class Codec(Provider):
    """Turns each patch of an image into the number of the direction that it is most like."""

    needs: ClassVar[frozenset[str]] = frozenset({"image"})
    gives: ClassVar[frozenset[str]] = frozenset({"codec.codes"})

    def __call__(self, params, batch, outputs, keys, mesh):
        image, side = batch["image"], helpers.PATCH
        grid = image.reshape(len(image), -1, side, image.shape[2] // side, side, 3).swapaxes(2, 3)
        patches = grid.reshape(len(image), helpers.PATCHES, -1)
        return {"codec.codes": jnp.argmax(patches @ params["directions"], axis=-1).astype(jnp.int32)}


@dataclasses.dataclass(frozen=True)
class GuessCodes(Objective):
    """The codes of an image from its pooled embedding, as BEiT's target, without its masks."""

    needs = frozenset({"image.pooled"})
    asks = frozenset({"codec.codes"})

    def init(self, key=None, model_spec=None):
        return {"kernel": jnp.sin(jnp.arange(1.0 * helpers.WIDTH * helpers.PATCHES * CODES)).reshape(helpers.WIDTH, -1)}

    def chance_loss(self, batch_size, model_spec):
        return float(np.log(CODES))

    def __call__(self, outputs, batch, params, mesh):
        logits = (outputs["image.pooled"] @ params["kernel"]).reshape(-1, helpers.PATCHES, CODES)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["codec.codes"])
        return Loss(jnp.sum(nll), jnp.float32(nll.size), {})


MINER = Miner("negatives", ("image", "text"), ("image", "text"), 0.1, (("image",), ("text", "text_valid")))


@functools.cache
def result(shape, parts):
    """((loss, metrics, moments), gradients), with dropout, on a mesh, in so many micro-batches."""
    size, shared = (helpers.WIDTH, 1, 2), dict(embed_dim=helpers.WIDTH, dropout=0.1, scan=False)
    pixels, words = dict(image_size=helpers.PIXELS), dict(vocab_size=helpers.VOCAB, length=helpers.LENGTH)
    towers = dict(
        image=presets.image_tower(*size, patch_size=helpers.PATCH, embed=pixels | dict(patch_dropout=0.5), **shared),
        text=presets.text_tower(*size, embed=words, **shared),
        fusion=presets.decoder(*size, dropout=0.1, scan=False) | dict(heads=presets.heads(pool="mean")),
    )
    objectives = dict(
        contrastive=SoftmaxContrastive(),
        codes=GuessCodes(weight=0.5),
        itm=Matching(weight=Ramp(0.0, 2.0)),
    )
    losses = dataclasses.replace(
        helpers.losses(towers, objectives, helpers.mesh(*shape)),
        providers=ordered(dict(negatives=MINER, codec=Codec()), helpers.batch(), ["image.pooled", "text.pooled"]),
        schedules=dict(itm=objectives["itm"].schedule(lambda duration, key: dict(over=10, after=0)[key])),
    )
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params(jax.random.key(0))}
    directions = np.random.default_rng(1).normal(size=(helpers.PATCH**2 * 3, CODES)).astype(np.float32)
    with jax.set_mesh(losses.mesh):
        keys = jax.device_put(helpers.sample_keys(ROWS), batch_sharding(losses.mesh))
        batch = to_global(helpers.batch(ROWS), losses.mesh)
        given = Given(dict(codec=dict(directions=directions)), np.int32(4))
        run = jax.jit(lambda *args, given: losses.value_and_grad(*args, parts, given=given))
        return run(params, batch, keys, given=given)


@pytest.mark.parametrize("shape,parts", [((1, 1, 1), 2), ((2, 1, 1), 4)])
def test_codes_and_mined_negatives_are_the_same_in_any_number_of_parts(shape, parts):
    (loss, metrics, _), grads = result((1, 1, 1), 1)
    (got_loss, got_metrics, _), got_grads = result(shape, parts)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    helpers.assert_trees_close(got_metrics, metrics)
    helpers.assert_trees_close(got_grads, grads, 5e-5)
    assert np.any(np.asarray(grads["objectives"]["itm"]["head"]["kernel"])) and "fusion" in grads


def test_a_weight_that_changes_is_a_metric():
    (loss, metrics, _), _ = result((1, 1, 1), 1)
    assert metrics["train/itm/weight"] == pytest.approx(0.8)
    parts = [metrics[f"train/{name}/loss"] for name in ("contrastive", "codes", "itm")]
    np.testing.assert_allclose(loss, np.dot(parts, [1.0, 0.5, 0.8]), rtol=1e-6)


def test_ramps():
    steps = lambda duration, key: int(duration)
    weights = [float(Ramp(1.0, 3.0, "4", "2").schedule(steps)(jnp.int32(step))) for step in (0, 2, 3, 4, 6, 9)]
    np.testing.assert_allclose(weights, [1, 1, 1.5, 2, 3, 3])
    at_once = Ramp(1.0, 3.0, over="0", after="5").schedule(steps)
    assert [float(at_once(jnp.int32(step))) for step in (4, 5)] == [1, 3]
    with pytest.raises(ValueError, match=r"start=1\.0 has no effect"):
        Ramp(1.0, 3.0, over="0", after="0").schedule(steps)
    entry = dict(weight=dict(start=0, end=1, over=100))
    assert make_spec(SoftmaxContrastive, entry, "objectives.x").weight == Ramp(0.0, 1.0, "100")
    with pytest.raises(ConfigError, match="unknown key 'until'"):
        make_spec(SoftmaxContrastive, dict(weight=dict(start=0, end=1, until="5%")), "objectives.x")


def test_negatives_are_drawn_by_their_similarity():
    """Row 0 has columns 1 and 2 with logits whose softmax is 3 to 1; positives and absent samples are never drawn."""
    columns = np.eye(6, dtype=np.float32)
    rows = np.zeros((6, 6), np.float32)
    rows[0] = [9, np.log(3), 0, 9, 9, -20]
    ids = np.arange(6, dtype=np.uint32)[:, None, None].repeat(2, 2)
    ids[3] = ids[0]
    there = np.array([1, 1, 1, 1, 0, 1], bool)
    draw = jax.jit(jax.vmap(lambda keys: draw_negatives(rows, columns, ids, there, keys)))
    with jax.set_mesh(helpers.mesh()):
        keys = jax.vmap(lambda i: key_tools.sample_keys(0, i, 6))(jnp.arange(2000))
        index, found = jax.device_get(draw(keys))
    counts = np.bincount(index[:, 0], minlength=6) / 2000
    np.testing.assert_allclose(counts, [0, 0.75, 0.25, 0, 0, 0], atol=0.04)
    assert found[:, [0, 1, 2, 3, 5]].all() and not found[:, 4].any()
    alone = np.zeros_like(ids)
    with jax.set_mesh(helpers.mesh()):
        assert not draw_negatives(rows, columns, alone, there, keys[0])[1].any()


@dataclasses.dataclass(frozen=True)
class Fake(Provider):
    """Needs and gives what it is told."""

    wanted: tuple[str, ...]
    given: tuple[str, ...]

    @property
    def needs(self):
        return frozenset(self.wanted)

    @property
    def gives(self):
        return frozenset(self.given)

    def __call__(self, params, batch, outputs, keys, mesh):
        raise NotImplementedError


def test_providers_come_behind_what_they_need():
    order = lambda **providers: list(ordered(providers, ["image", "text"], ["image.pooled"]))
    codec, mined = Fake(("image",), ("codes",)), Fake(("image.pooled", "codes"), ("near",))
    assert order(mined=mined, codec=codec, last=Fake(("near",), ("x",))) == ["codec", "mined", "last"]
    assert order(late=Fake(("image.pooled",), ("a",)), early=Fake((), ("b",))) == ["early", "late"]
    for message, providers in {
        "providers.mined needs 'codes', which neither the data, the model nor another": dict(mined=mined),
        "providers.b gives 'codes', which providers.a gives already": dict(a=codec, b=codec),
        "providers.a gives 'text', which the data have already": dict(a=Fake((), ("text",))),
        "have a cycle: a -> b -> a": dict(a=Fake(("y",), ("x",)), b=Fake(("x",), ("y",))),
    }.items():
        with pytest.raises(ValueError, match=message):
            order(**providers)
