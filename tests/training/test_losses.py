"""One batch is one batch: cut into micro-batches or spread over devices, its loss and gradients stay the same."""

import dataclasses
import functools
from typing import ClassVar

import helpers
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.images.mix import mix_images
from xmodal import keys as key_tools
from xmodal.distributed.mesh import batch_sharding, to_global
from xmodal.models.model import Functional
from xmodal.objectives import Objective, View
from xmodal.objectives.base import Loss
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from xmodal.objectives.fine_grained import Flair
from xmodal.objectives.masked_text import MaskedText
from xmodal.objectives.providers.base import Provider
from xmodal.paths import flatten_paths, map_paths
from xmodal.training.gradcache import merge_rows, split_rows

ROWS = 16
ONE = (1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Brighter(View):
    """A random brightness for each sample."""

    amount: float = 0.5

    def __call__(self, batch, keys):
        shift = self.amount * key_tools.uniform(keys, (1, 1, 1))
        return {**batch, "image": batch["image"] + shift}


@dataclasses.dataclass(frozen=True)
class BrighterCaptioning(Captioning):
    """Captioning that sees another view of the batch than the other objectives."""

    amount: float = 0.5

    @property
    def view(self):
        return Brighter(self.amount)


def batch_of(rows=ROWS, captions=1):
    """Captions of many lengths, and duplicates that lie in different micro-batches and on different devices."""
    batch = helpers.batch(rows)
    if captions > 1:
        more = helpers.batch(rows * captions, seed=1)
        batch |= {name: more[name].reshape(rows, captions, -1) for name in ("text", "text_valid", "caption_id")}
    batch["key_id"][[1, rows - 1]] = batch["key_id"][0]
    batch["caption_id"][rows // 2] = batch["caption_id"][2]
    return batch


PATCHES = dict(embed=dict(patch_dropout=0.5))
WORDS = dict(embed=dict(dropout=0.2))


@dataclasses.dataclass(frozen=True)
class Words(Objective):
    """A loss over the whole batch that reads tokens, of which only the values have gradients."""

    global_batch: ClassVar[bool] = True
    needs = frozenset({"image.pooled", "text.tokens"})

    def chance_loss(self, batch_size, model_spec):
        return 1.0

    def __call__(self, outputs, batch, params, mesh):
        tokens = outputs["text.tokens"]
        words = jnp.where(tokens.valid[..., None], tokens.x, 0.0).sum(1)[:, :8]
        return Loss(jnp.sum(jax.nn.softmax(outputs["image.pooled"][:, :8] @ words.T) ** 2), jnp.float32(len(words)), {})


@dataclasses.dataclass(frozen=True)
class Codes(Objective):
    """A loss of each sample alone that reads what a provider gives: an integer and a vector."""

    needs = frozenset({"image.pooled"})

    def chance_loss(self, batch_size, model_spec):
        return 1.0

    def __call__(self, outputs, batch, params, mesh):
        pooled = jax.nn.log_softmax(outputs["image.pooled"] + batch["teacher.image"])
        loss = -jnp.take_along_axis(pooled, batch["codes"][:, None], 1)
        return Loss(jnp.sum(loss), jnp.float32(len(loss)), {"mean": jnp.mean(loss)})


@dataclasses.dataclass(frozen=True)
class Said(Provider):
    """What a frozen model would add to a batch."""

    gives = frozenset({"codes", "teacher.image"})

    def __call__(self, params, batch, outputs, keys, mesh):
        width = helpers.WIDTH
        vector = jnp.cos(jnp.arange(width) * jnp.mean(batch["image"], (1, 2, 3))[:, None])
        return {"codes": jnp.sum(batch["text"], -1) % width, "teacher.image": vector}


CASES = {  # everything that is random takes part somewhere
    "softmax": lambda: (
        helpers.clip(PATCHES, dropout=0.1, drop_path=0.2),
        dict(contrastive=SoftmaxContrastive(logit_scale=1.5)),
    ),
    "sigmoid": lambda: (
        helpers.clip(PATCHES, style="siglip"),
        dict(contrastive=SigmoidContrastive(logit_bias=-2.0)),
    ),
    "captions": lambda: (
        helpers.clip(PATCHES, WORDS, dropout=0.1, drop_path=0.2),
        dict(
            sigmoid=SigmoidContrastive(logit_bias=-2.0, weight=0.5),
            flair=Flair(heads=2, logit_bias=-2.0, weight=0.5),
        ),
    ),
    "both": lambda: (
        helpers.coca(PATCHES, WORDS),
        dict(captioning=Captioning(weight=2.0), contrastive=SoftmaxContrastive(logit_scale=1.5)),
    ),
    "views": lambda: (
        helpers.git(PATCHES, WORDS),
        dict(captioning=Captioning(), brighter=BrighterCaptioning(weight=0.5)),
    ),
    "tokens": lambda: (helpers.clip(PATCHES, WORDS), dict(words=Words(), contrastive=SoftmaxContrastive(weight=0.5))),
    "provided": lambda: (helpers.clip(PATCHES), dict(codes=Codes(), contrastive=SoftmaxContrastive(weight=0.5))),
    "masked": lambda: (
        dict(text=helpers.text(embed=dict(causal=False), head="masked", dropout=0.1, attn_dropout=0.1)),
        dict(masked=MaskedText(rate=0.4, mask_id=4, vocab_size=helpers.VOCAB, special_ids=(0, 1, 2, 4))),
    ),
}


def jitter(batch, keys):
    """A random preprocessing on the device."""
    return Brighter(0.3)(batch, keys)


def mixing(batch, keys):
    """Another one, which makes of each two samples two mixed ones."""
    mixed, weight = mix_images(batch["image"], key_tools.fold(keys, "mix"), mixup=0.8, cutmix=1.0)
    return jitter(batch, keys) | dict(image=mixed, mix_weight=weight)


@functools.cache
def result(case, shape, parts):
    """((loss, metrics, moments), gradients) on a mesh, in so many micro-batches."""
    towers, objectives = CASES[case]()
    mesh = helpers.mesh(*shape)
    preprocess = mixing if case == "sigmoid" else jitter
    losses = dataclasses.replace(helpers.losses(towers, objectives, mesh), preprocess=preprocess)
    losses = dataclasses.replace(losses, providers=dict(said=Said()) if case == "provided" else {})
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params(jax.random.key(0))}
    batch = batch_of(captions=3 if case == "captions" else 1)
    with jax.set_mesh(mesh):
        keys = jax.device_put(helpers.sample_keys(ROWS), batch_sharding(mesh))
        return jax.jit(lambda *args: losses.value_and_grad(*args, parts))(params, to_global(batch, mesh), keys)


@pytest.mark.parametrize(
    "case,shape,parts",
    [
        ("softmax", (2, 2, 2), 2),
        ("sigmoid", (1, 2, 1), 4),
        ("captions", (2, 2, 2), 2),
        ("views", (1, 4, 2), 2),
        ("masked", (8, 1, 1), 2),
        ("tokens", (2, 1, 1), 2),
        ("provided", ONE, 4),
    ],
)
def test_micro_batches_together_are_the_batch(case, shape, parts):
    (loss, metrics, _), grads = result(case, ONE, 1)
    (got_loss, got_metrics, _), got_grads = result(case, shape, parts)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    helpers.assert_trees_close(got_metrics, metrics)
    helpers.assert_trees_close(got_grads, grads)


def test_the_loss_is_the_weighted_sum_of_the_objectives():
    (loss, metrics, _), _ = result("both", ONE, 1)
    np.testing.assert_allclose(
        loss, metrics["train/contrastive/loss"] + 2.0 * metrics["train/captioning/loss"], rtol=1e-6
    )
    assert metrics["health/duplicate_share"] == pytest.approx(5 / ROWS)
    names = {name for name in metrics if not name.startswith("health/")}
    assert names == {
        "train/captioning/accuracy", "train/captioning/loss", "train/contrastive/loss", "train/contrastive/logit_scale",
        "train/contrastive/image_to_text", "train/contrastive/text_to_image",
    }  # fmt: skip


def test_contrastive_losses_see_the_negatives_of_all_micro_batches():
    """Micro-batches of 4 on their own would lose less: the test of accumulation is not an empty one."""
    (loss, _, _), _ = result("softmax", (2, 2, 2), 2)
    towers, objectives = CASES["softmax"]()
    losses = dataclasses.replace(helpers.losses(towers, objectives, helpers.mesh()), preprocess=jitter)
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params()}
    run = jax.jit(lambda batch, keys: losses(params, batch, keys)[0])
    with jax.set_mesh(helpers.mesh()):
        cut = [np.arange(i, i + 4) for i in range(0, ROWS, 4)]
        small = [run(helpers.rows(batch_of(), rows), helpers.sample_keys(ROWS)[rows]) for rows in cut]
    assert loss > np.mean(small) + 0.5


@pytest.mark.parametrize("shards,parts", [(1, 4), (4, 2), (2, 1)])
def test_rows_are_split_within_devices_and_come_back_in_order(shards, parts):
    x = np.arange(32).reshape(16, 2)
    micro = split_rows(x, parts, shards)
    assert micro.shape == (parts, 16 // parts, 2)
    for device in range(shards):  # each device gives every micro-batch a share of its own rows
        own = np.split(x, shards)[device]
        for part in micro:
            assert set(np.split(np.asarray(part), shards)[device].ravel()) <= set(own.ravel())
    np.testing.assert_array_equal(merge_rows(micro, shards), x)


# ------------------------------------------------------------------------------------------- one pass per view


class Counting(Functional):
    """A model that notes what it is asked for."""

    def __call__(self, params, batch, want, keys=None, cuts=()):
        self.calls.append(want)
        return super().__call__(params, batch, want, keys, cuts)


def calls(towers, objectives):
    """Traces the losses and returns what each forward pass was asked for."""
    losses = helpers.losses(towers, objectives, helpers.mesh())
    model = Counting(**vars(losses.model))
    object.__setattr__(model, "calls", [])
    params = helpers.random_params(model) | {"objectives": losses.init_params()}
    losses = dataclasses.replace(losses, model=model)
    with jax.set_mesh(helpers.mesh()):
        jax.eval_shape(losses, params, batch_of(), helpers.sample_keys(ROWS))
    return model.calls


def test_objectives_that_see_the_same_share_one_forward_pass():
    softmax, both = dict(softmax=SoftmaxContrastive()), {"image.pooled", "text.pooled"}
    assert calls(helpers.coca(), softmax) == [both]
    assert calls(helpers.coca(), softmax | dict(captioning=Captioning())) == [both | {"caption.logits"}]
    three = dict(clean=Captioning(), one=BrighterCaptioning(), two=BrighterCaptioning(amount=0.1))
    assert len(calls(helpers.coca(), softmax | three)) == 3


def scans(function, *args):
    """How many `lax.scan` loops there are; with scanned layers each trunk is one, and one more backwards."""
    count = 0

    def visit(jaxpr):
        nonlocal count
        for equation in jaxpr.eqns:
            count += equation.primitive.name == "scan"
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                visit(inner)

    with jax.set_mesh(helpers.mesh()):
        visit(jax.make_jaxpr(function)(*args).jaxpr)
    return count


@pytest.mark.parametrize(
    "want,towers",
    [({"image.pooled"}, 1), ({"text.tokens"}, 1), ({"caption.logits"}, 3), ({"caption.logits", "image.pooled"}, 3)],
)
def test_towers_run_once_and_only_where_they_are_needed(want, towers):
    model, batch = helpers.build(helpers.coca()), helpers.batch()
    needed = {"image"} if want == {"image.pooled"} else {"text", "text_valid"} if towers == 1 else set(batch)
    part = {name: array for name, array in batch.items() if name in needed}
    assert scans(lambda params: model(params, part, frozenset(want)), helpers.random_params(model)) == towers


def test_another_view_is_another_input():
    (_, metrics, _), _ = result("views", ONE, 1)
    assert abs(metrics["train/captioning/loss"] - metrics["train/brighter/loss"]) > 1e-3


# ------------------------------------------------------------------------------------------- frozen parameters


def test_frozen_parameters_have_no_gradient_and_no_backward_pass():
    losses = helpers.losses(helpers.clip(), dict(contrastive=SoftmaxContrastive()), helpers.mesh())
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params()}
    frozen = map_paths(lambda path, _: path.startswith("image/") or path.endswith("logit_scale"), params)
    none = map_paths(lambda path, _: False, params)
    batch = batch_of()
    run = lambda params, parts, frozen: losses.value_and_grad(params, batch, None, parts, frozen)
    with jax.set_mesh(helpers.mesh()):
        everything = jax.jit(lambda params: run(params, 1, none))(params)
        results = {parts: jax.jit(lambda params, p=parts: run(params, p, frozen))(params) for parts in (1, 2)}
    expected = map_paths(lambda path, g: jnp.where(flatten_paths(frozen)[path], 0.0, g), everything[1])
    for got in results.values():
        helpers.assert_trees_close(got, (everything[0], expected))
        assert not any(np.any(g) for g in jax.tree.leaves(got[1]["image"]))
    assert scans(lambda params: run(params, 1, none), params) == 4
    assert scans(lambda params: run(params, 1, frozen), params) == 3
