"""Zero-shot accuracy agrees with a reference in NumPy, with several prompts per class."""

import json

import jax
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, held_out

from data_pipelines.errors import DataError
from xmodal.config import ConfigError, make_spec
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.zero_shot import ZeroShot, accuracy

PROMPTS = ("{label}", "a {label}", "{label} thing")  # short: longer ones would be cut to the same tokens


def reference(world, classes, prompts):
    """Scores [samples, classes] after CLIP's averaging of prompts."""
    embedder, dataset = Embedder(world.context, 16), world.context.open(world.urls, (), 0)
    columns = []
    with jax.set_mesh(world.mesh):
        images = embedder.images(world.params, dataset)
        for name in classes:
            mean = np.mean([embedder.texts(world.params, [p.replace("{label}", name)])[0] for p in prompts], axis=0)
            columns.append(mean / np.linalg.norm(mean))
    return images @ np.stack(columns, axis=1)


@pytest.mark.parametrize(("classes", "prompts"), [((), PROMPTS), (("sun", "star"), PROMPTS[1:2])])
def test_accuracy_with_an_ensemble_of_prompts(world, classes, prompts):
    evaluator = ZeroShot(world.urls, label_field="kind", classes=classes, prompts=prompts, batch_size=16)
    got = world.evaluate(evaluator).metrics
    classes = list(classes or sorted(KINDS))
    best = np.argmax(reference(world, classes, prompts), axis=1)
    truth = np.array([KINDS[i % 3] for i in range(SAMPLES)])
    used = np.isin(truth, classes)
    hits = np.array(classes)[best] == truth
    assert got == pytest.approx({
        "zero_shot/x/top1": np.mean(hits[used]),
        "zero_shot/x/chance/top1": 1 / len(classes),
        "zero_shot/x/mean_per_class": np.mean([np.mean(hits[truth == c]) for c in classes]),
        "zero_shot/x/chance/mean_per_class": 1 / len(classes),
        "zero_shot/x/images": np.sum(used),
        "zero_shot/x/classes": len(classes),
    })  # fmt: skip


def test_accuracy_against_the_definition():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 8)), rng.integers(-1, 6, 200)  # classes 6 and 7 have no sample
    kept = labels >= 0
    order = np.argsort(-scores, axis=1)
    hits = order[:, 0] == labels
    got, _ = accuracy(scores, labels)
    assert got["top1"] == np.mean(hits[kept])
    assert got["top5"] == np.mean([label in row[:5] for label, row in zip(labels[kept], order[kept])])
    assert got["mean_per_class"] == pytest.approx(np.mean([np.mean(hits[labels == c]) for c in range(6)]))
    assert (got["chance/top5"], got["images"], got["classes"]) == (5 / 8, np.sum(kept), 8)


def test_ties_count_against_the_sample():
    got, _ = accuracy(np.zeros((10, 7)), np.arange(10) % 7)
    assert got["top1"] == got["top5"] == got["mean_per_class"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(label_field="kinds"), "evals.x: the template '{kinds}' uses the field 'kinds', .*did you mean 'kind'"),
        (
            dict(label_field="kind", classes=("mars",)),
            "has one of the classes 'mars'; theirs are 'star', 'moon', 'sun'",
        ),
        (dict(label_field="kind", prompts=("a {lable}",)), "'a {lable}' has no place for the class name"),
    ],
)
def test_what_is_not_there_is_named(world, fields, message):
    with pytest.raises(DataError, match=message):
        ZeroShot(world.urls, **fields).prepare("x", world.context)


def test_a_list_gives_the_figures_of_a_tar_of_the_same_samples(world, tmp_path):
    rows = []
    for i in range(SAMPLES):
        members = held_out(i)
        (tmp_path / f"{i}.png").write_bytes(members["png"])
        rows.append(json.loads(members["json"]) | dict(path=f"{i}.png", caption=members["txt"].decode()))
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = dict(label_field="kind", batch_size=16)
    source = dict(type="files", urls=str(tmp_path / "list.jsonl"))
    from_list = world.evaluate(make_spec(ZeroShot, dict(source=source, **options), "evals.x"))
    assert from_list.metrics == world.evaluate(ZeroShot(world.urls, **options)).metrics
    with pytest.raises(DataError, match=r"evals\.x\.source: .*nowhere\.jsonl"):
        world.evaluate(ZeroShot(source=dict(type="files", urls="nowhere.jsonl")))


@pytest.mark.parametrize("entry", [{}, dict(urls="a.tar", source=dict(urls="b.tar"))])
def test_an_evaluation_has_one_set(entry):
    with pytest.raises(ConfigError, match=r"evals\.x: give either `urls` of tar shards, or `source`"):
        make_spec(ZeroShot, entry, "evals.x")
