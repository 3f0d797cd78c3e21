"""Zero-shot accuracy agrees with a reference in NumPy, with several prompts per class."""

import json

import jax
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, held_out

from data_pipelines.errors import DataError
from tests.data.tiny_shards import write_tar
from xmodal.config import ConfigError, make_spec
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.zero_shot import ZeroShot, accuracy

PROMPTS = ("{label}", "a {label}", "{label} thing")  # short: longer ones would be cut to the same tokens


def reference(world, classes, prompts):
    """Scores [samples, classes] after CLIP's averaging of prompts."""
    embedder, dataset = Embedder(world.context, 16, ("image", "text")), world.context.open(world.urls, (), 0)
    columns = []
    with jax.set_mesh(world.mesh):
        images = embedder.samples(world.params, dataset)
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


def test_of_classes_with_equal_scores_the_first_is_taken():
    got, _ = accuracy(np.zeros((14, 7)), np.arange(14) % 7)
    assert (got["top1"], got["top5"], got["mean_per_class"]) == (1 / 7, 5 / 7, 1 / 7), "the level of chance"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(label_field="kinds"),
            "evals.x.source: the template '{kinds}' uses the field 'kinds', .*did you mean 'kind'",
        ),
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


def test_files_of_names_and_prompts_and_numbered_classes(world, tmp_path):
    """As CLIP_benchmark has it: shards with a `cls` member and nothing else, JSON lists by data set."""
    names = ["sun", "star", "moon"]
    kinds = [names.index(KINDS[i % 3]) for i in range(SAMPLES)]
    shard = {f"{i:03d}": {"png": held_out(i)["png"], "cls": str(kinds[i]).encode()} for i in range(SAMPLES)}
    prompts = [prompt.replace("{label}", "{c}") for prompt in PROMPTS]
    for file, content in dict(classes={"tiny": names, "other": ["x"]}, prompts={"tiny": prompts, "other": []}).items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    files = {key: f"{tmp_path}/{key}.json:tiny" for key in ("classes", "prompts")}
    by_number = world.evaluate(
        ZeroShot(str(write_tar(tmp_path / "a.tar", shard)), label_field="cls", batch_size=16, **files)
    )
    by_name = world.evaluate(
        ZeroShot(world.urls, label_field="kind", classes=tuple(names), prompts=PROMPTS, batch_size=16)
    )
    assert by_number.metrics == by_name.metrics and by_number.details == by_name.details


def test_a_folder_of_folders(world, tmp_path):
    """As ImageNet lies on disks: folders that are not called as their classes."""
    for i in range(SAMPLES):
        folder = tmp_path / "val" / f"n{KINDS.index(KINDS[i % 3])}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(held_out(i)["png"])
    source = dict(type="files", urls=str(tmp_path / "val"))
    found = world.evaluate(ZeroShot(source=source, classes=KINDS, labels="sorted", batch_size=16))
    expected = world.evaluate(ZeroShot(world.urls, label_field="kind", classes=KINDS, batch_size=16))
    assert found.metrics == pytest.approx(expected.metrics)


def test_confusions(world):
    result = world.evaluate(ZeroShot(world.urls, label_field="kind", prompts=PROMPTS, batch_size=16))
    classes = sorted(KINDS)
    best = np.argmax(reference(world, classes, PROMPTS), axis=1)
    truth = np.array([classes.index(KINDS[i % 3]) for i in range(SAMPLES)])
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (truth, best), 1)
    rows = {row["class"]: row for row in result.details["zero_shot/x/per_class"]}
    for c, name in enumerate(classes):
        assert rows[name]["images"] == 15 and rows[name]["recall"] == pytest.approx(counts[c, c] / 15)
        wrong = np.where(np.arange(3) == c, -1, counts[c])
        if wrong.max() > 0:
            taken = classes.index(rows[name]["taken_for"])
            assert counts[c, taken] == wrong.max() and rows[name]["share"] == pytest.approx(wrong.max() / 15)
    listed = result.details["zero_shot/x/confusions"]
    assert sum(row["images"] for row in listed) == SAMPLES - np.trace(counts)
    assert [row["images"] for row in listed] == sorted((row["images"] for row in listed), reverse=True)


def test_the_same_on_one_and_eight_devices_and_for_any_batch_size(world, alone):
    options = dict(label_field="kind", prompts=PROMPTS)
    one = alone.evaluate(ZeroShot(alone.urls, batch_size=SAMPLES, **options))
    for batch_size in (7, 16):
        found = world.evaluate(ZeroShot(world.urls, batch_size=batch_size, **options))
        assert found.metrics == one.metrics and found.details == one.details
        assert found.scores["zero_shot/x"].digest == one.scores["zero_shot/x"].digest


def test_an_evaluation_has_one_set():
    with pytest.raises(ConfigError, match=r"evals\.x: give `urls` of shards, folders or lists, or `source`"):
        make_spec(ZeroShot, {}, "evals.x")
    both = make_spec(ZeroShot, dict(urls="a.csv", source=dict(urls="b.csv", root="photos")), "evals.x")
    with pytest.raises(DataError, match=r"too \(urls='b.csv'\): set --config\.evals\.x\.source\.urls"):
        both.entry("x")
    assert make_spec(ZeroShot, dict(urls="a.csv", source=dict(root="p")), "evals.x").entry("x") == dict(
        urls="a.csv", root="p"
    )
