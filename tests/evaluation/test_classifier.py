"""Accuracy of a classifier on held-out samples, against NumPy; and its recipe runs."""

import json

import jax
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, changed

from data_pipelines.errors import DataError
from tests import tiny_runs
from xmodal.evaluation.classification import Classification, average_precision, several


def with_classes(world):
    """The world with classes: its 32 outputs are more than the kinds there are."""
    data = world.context.data.copy_and_resolve_references()
    data.inputs.label = dict(type="label", field="kind", classes=(*KINDS, *(f"none {i}" for i in range(29))))
    return changed(world.context, data=data)


@pytest.fixture
def classes(world):
    return with_classes(world)


def evaluate(world, context, evaluator):

    with jax.set_mesh(world.mesh):
        return evaluator.prepare("x", context)(world.params).metrics


def test_accuracy_of_the_pooled_output(world, alone, classes):
    got = evaluate(world, classes, Classification(world.urls, batch_size=16))
    again = evaluate(world, classes, Classification(world.urls, batch_size=40))
    one = evaluate(alone, with_classes(alone), Classification(alone.urls, batch_size=45))
    assert got == again == one and got["classification/x/images"] == SAMPLES
    assert got["classification/x/chance/top5"] == 5 / 32
    assert 0 <= got["classification/x/top1"] <= got["classification/x/top5"] <= 1
    data = classes.data.copy_and_resolve_references()
    data.inputs.label.classes = (*KINDS[:2], *(f"none {i}" for i in range(30)))
    fewer = evaluate(world, changed(classes, data=data), Classification(world.urls, batch_size=16))
    assert fewer["classification/x/images"] == SAMPLES * 2 // 3, "samples of other classes are left out"


def test_without_classes(world):
    with pytest.raises(DataError, match=r"needs a label among data\.inputs"):
        Classification(world.urls).prepare("x", world.context)


def test_several_classes_have_average_precision():
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.6], [0.1, 0.3, 0.7], [0.0, 0.4, 0.8]])
    ids = np.array([[0, -1], [2, -1], [0, 2], [1, 2]])
    got, _ = several(scores, ids)
    # class 0: right are samples 0 and 2, at places 1 and 3; class 1: sample 3, first; class 2: 1, 2, 3 of 3, 2, 1, 0
    assert got["mAP"] == pytest.approx(np.mean([(1 + 2 / 3) / 2, 1.0, 1.0]))
    assert got["top1"] == pytest.approx(3 / 4)
    assert got["chance/mAP"] == pytest.approx(6 / 12)
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 1 / 4


def test_the_recipe_learns_for_a_few_steps(tmp_path):
    flags = ["--config", "configs/vit_classify.py", "--config.schedule.total=3steps", "--config.schedule.warmup=0%",
             "--config.batch_size=16", "--config.evals.unseen_vendor.limit=32", "--config.log.tensorboard=False",
             "--config.checkpoint.every=0", "--config.data.inputs.image.size=32"]  # fmt: skip
    tiny_runs.run(tmp_path, flags)
    results = json.loads((tmp_path / "results.json").read_text())["classification"]["unseen_vendor"]
    assert results["classes"] == 9 and results["images"] == 32
    assert results["top5"] >= results["top1"]
