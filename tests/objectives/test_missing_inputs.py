"""Samples that lack an input: the loss and the metrics are those of the other samples alone."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest

from tests.objectives.test_by_source import EVERY, negatives
from xmodal.distributed.mesh import to_global
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.contrastive import Contrastive, SoftmaxContrastive

ROWS = 8
THERE = dict(
    image_there=np.array([1, 1, 0, 1, 1, 1, 1, 0], bool),
    text_there=np.array([1, 0, 1, 1, 1, 1, 1, 1], bool),
    label_there=np.array([1, 1, 1, 1, 0, 1, 1, 1], bool),
)
READS = dict(
    captioning=("image", "text"),
    classification=("image", "label"),
    masked_text=("text",),
    masked_pixels=("image",),
)


def data():
    batch = helpers.batch(ROWS) | dict(label=np.arange(ROWS, dtype=np.int32)[:, None])
    batch["key_id"][7] = batch["key_id"][0]  # a positive that is not there
    rng = np.random.default_rng(0)
    for tower in ("image", "text"):
        rows = rng.normal(size=(ROWS, helpers.WIDTH)).astype(np.float32)
        batch[f"teacher.{tower}"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return batch | negatives(batch)


def found(towers, objective, batch, shape=(1, 1, 1), parts=0):
    """(loss, metrics), or in `parts` with gradients; without keys, for rows of a smaller batch would have others."""
    losses = helpers.losses(towers, {"one": objective}, helpers.mesh(*shape))
    params = helpers.random_params(losses.model) | {"objectives": losses.init_params(jax.random.key(0))}
    with jax.set_mesh(losses.mesh):
        grads = lambda params, batch: losses.value_and_grad(params, batch, None, parts)
        run = jax.jit(grads if parts else lambda params, batch: losses(params, batch, None))
        return run(params, to_global(batch, losses.mesh))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_rows_that_lack_an_input_count_nothing(kind):
    towers, objective = EVERY[kind]
    names = READS.get(kind, ("image", "text"))
    kept = np.flatnonzero(np.logical_and.reduce([THERE[f"{name}_there"] for name in names]))
    batch = data()
    if kind == "masked_text":  # which tokens are hidden depends on the row
        batch |= {name: batch[name][[0, 2, 3, 4, 5, 6, 7, 1]] for name in ("text", "text_valid")}
        there, kept = dict(text_there=np.arange(ROWS) < 7), np.arange(7)
    elif kind == "masked_pixels":  # and which patches are left out
        there, kept = dict(image_there=np.arange(ROWS) < 7), np.arange(7)
    else:
        there = THERE
    wanted = found(towers, objective, {name: array[kept] for name, array in batch.items()})
    for form in ("plain", "ring") if issubclass(OBJECTIVES[kind], Contrastive) else ("",):
        objective = dataclasses.replace(objective, **(dict(form=form) if form else {}))
        got = found(towers, objective, batch | there)
        helpers.assert_trees_close(got, wanted, 5e-5)


def test_smoothing_is_over_the_rows_that_are_there():
    kept = np.flatnonzero(THERE["image_there"] & THERE["text_there"])
    for form in ("plain", "ring"):
        objective = SoftmaxContrastive(label_smoothing=0.2, form=form)
        wanted = found(helpers.clip(), objective, {name: array[kept] for name, array in data().items()})
        helpers.assert_trees_close(found(helpers.clip(), objective, data() | THERE), wanted, 5e-5)


@pytest.mark.parametrize("kind", ["distillation", "captioning"])
def test_on_devices_and_in_micro_batches_it_is_the_same(kind):
    towers, objective = EVERY[kind]
    wanted = found(towers, objective, data() | THERE, parts=1)
    helpers.assert_trees_close(found(towers, objective, data() | THERE, (2, 1, 1), parts=2), wanted, 5e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "distillation"])
def test_a_batch_in_which_nothing_is_there_has_no_loss(kind):
    (loss, metrics, _), grads = found(*EVERY[kind], data() | dict(image_there=np.zeros(ROWS, bool)), parts=1)
    assert loss == 0 and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((metrics, grads)))
