"""A suite evaluates any model with the model's own preparation of pictures and texts."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import xmodal
from tests.data.tiny_shards import encode, write_tar
from tests.interop.folders import hugging_face
from xmodal.__main__ import main
from xmodal.commands.evaluate import evaluate
from xmodal.commands.subject import read_suite
from xmodal.config import ConfigError, make_spec
from xmodal.configs.base import get_config
from xmodal.evaluation import EVALUATORS
from xmodal.reporting.bootstrap import differences
from xmodal.reporting.scores import read_scores

SAMPLES = 30  # no multiple of 8 devices
KINDS = ["w11", "w12 w13"]
TEMPLATES = ["w20 {}", "{} w21"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Held-out shards, a suite that names them, and a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("suite")
    samples = {}
    for i in range(SAMPLES):
        fields = dict(words=f"w{30 + i} w{8 + i}", kind=KINDS[i % 2])
        samples[f"{i:02d}"] = {"png": encode(i, size=(50, 60)), "json": json.dumps(fields).encode()}
    urls = str(write_tar(folder / "held_out.tar", samples))
    (folder / "prompts.txt").write_text("\n".join(TEMPLATES))
    evals = dict(
        pairs=dict(type="retrieval", urls=urls, captions=["{words}"], batch_size=16, examples=0),
        kinds=dict(type="zero_shot", urls=urls, label_field="kind", prompts=str(folder / "prompts.txt"), batch_size=16),
    )
    (folder / "suite.json").write_text(json.dumps(dict(about="tiny", evals=evals)))
    hugging_face(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return evaluate(f"hf:{folder / 'clip'}", suite=folder / "suite.json")


def test_figures_are_those_of_the_loaded_model(folder, found):
    model = xmodal.load(f"hf:{folder / 'clip'}", batch_size=8)
    images = model.embed_image([encode(i, size=(50, 60)) for i in range(SAMPLES)])
    scores = images @ model.embed_text([f"w{30 + i} w{8 + i}" for i in range(SAMPLES)]).T
    rank = np.sum(scores >= np.diag(scores)[:, None], axis=1) - 1
    got = found.results["retrieval"]["pairs"]["image_to_text"]
    assert {k: got[f"R@{k}"] for k in (1, 5, 10)} == {k: np.mean(rank < k) for k in (1, 5, 10)}
    best = np.argmax(
        model.zero_shot([encode(i, size=(50, 60)) for i in range(SAMPLES)], KINDS, templates=TEMPLATES), axis=1
    )
    kinds = found.results["zero_shot"]["kinds"]
    assert kinds["top1"] == np.mean(best == np.arange(SAMPLES) % 2)
    assert kinds["ci95"]["top1"][0] < kinds["top1"] < kinds["ci95"]["top1"][1]
    assert found.results["model"] == f"hf:{folder / 'clip'}" and "step" not in found.results
    assert {row["class"] for row in kinds["per_class"]} == set(KINDS)


def test_the_files_of_a_command(folder, found, tmp_path, capsys):
    command = ["eval", "--model", f"hf:{folder / 'clip'}", "--suite", str(folder / "suite.json"), "--only", "pairs"]
    assert main([*command, "--json", str(tmp_path / "clip.json"), "--intervals", "percentile"]) == 0
    assert "image → text" in capsys.readouterr().out
    written = json.loads((tmp_path / "clip.json").read_text())
    assert written["suite"] == str(folder / "suite.json") and "zero_shot" not in written
    stored = read_scores(tmp_path / "clip.json")
    assert set(stored) == {"retrieval/pairs/image_to_text", "retrieval/pairs/text_to_image"}
    for name, scores in stored.items():
        apart = differences(scores, found.scores[name])
        assert all(d.paired and d.value == d.low == d.high == 0 for d in apart.values())


def test_as_clip_benchmark_has_it(folder, found, tmp_path):
    command = ["eval", "--model", f"hf:{folder / 'clip'}", "--suite", str(folder / "suite.json")]
    assert main([*command, "--json", str(tmp_path / "figures"), "--format", "clip_benchmark"]) == 0
    read = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "figures").iterdir()}
    assert set(read) == {"pairs", "kinds"}
    ways = found.results["retrieval"]["pairs"]
    metrics = read["pairs"].pop("metrics")
    assert metrics["image_retrieval_recall@5"] == ways["text_to_image"]["R@5"]
    assert metrics["text_retrieval_recall@5"] == ways["image_to_text"]["R@5"]
    head = dict(dataset="pairs", pretrained="", task="zeroshot_retrieval", language="en")
    assert read["pairs"] == head | dict(model=f"hf:{folder / 'clip'}")
    kinds = found.results["zero_shot"]["kinds"]
    expected = dict(acc1=kinds["top1"], mean_per_class_recall=kinds["mean_per_class"])
    assert read["kinds"]["metrics"] == expected, "of two classes there is no top-5"


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("{", "suite.json is not JSON"),
        ("[]", "suite.json is no suite"),
        (dict(eval={}), "unknown key 'eval'. Did you mean 'evals'"),
        (dict(evals=[]), "`evals` holds the evaluators"),
        (dict(evals={}, label=dict(feild="cls")), "label: .* has no key 'feild'"),
        (dict(evals=dict(a=dict(type="retreival", urls="x.tar"))), r"evals\.a\.type: .*Did you mean 'retrieval'"),
        (dict(evals=dict(a=dict(type="captioning", urls="x.tar"))), r"evals\.a: there is no tower 'caption'"),
        (dict(evals={}), "has no evaluators"),
    ],
)
def test_what_is_wrong_with_a_suite_is_named(folder, tmp_path, suite, message):
    path = tmp_path / "suite.json"
    path.write_text(suite if isinstance(suite, str) else json.dumps(suite))
    with pytest.raises(ConfigError, match=message):
        evaluate(f"hf:{folder / 'clip'}", suite=path)


def test_a_suite_may_say_what_classes_are(tmp_path):
    (tmp_path / "suite.json").write_text(json.dumps(dict(evals={}, label=dict(field="cls", count=10))))
    config = get_config()
    assert read_suite(tmp_path / "suite.json", config).data.inputs.label.count == 10
    assert "label" not in config.data.inputs, "the model's config is not changed"


def test_shipped_suites_are_valid():
    paths = sorted((Path(__file__).parents[1] / "configs" / "suites").glob("*.json"))
    assert paths
    for path in paths:
        for name, entry in read_suite(path, get_config()).evals.items():
            entry = dict(entry)
            make_spec(EVALUATORS[entry.pop("type")], entry, f"{path}: evals.{name}")


def test_a_model_without_a_suite_has_no_evaluators(folder):
    with pytest.raises(ConfigError, match=r"has no evaluators; name some with --suite FILE"):
        evaluate(f"hf:{folder / 'clip'}")
    assert jax.device_count() == 8
