"""Every figure, query score, detail and interval is the same on one device and on eight, and for any batch size."""

import dataclasses
import json

import helpers
import jax
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, held_out

from data_pipelines.text.tokenizers import train_wordpiece
from tests.data.tiny_shards import write_tar
from xmodal.config import make_spec
from xmodal.evaluation import EVALUATORS
from xmodal.models import presets
from xmodal.reporting.bootstrap import intervals

BATCHES = (7, 16)  # neither divides the samples; on eight devices 7 is rounded up to 8
OPTIONS = dict(
    retrieval=dict(caption_list="lines", by="side", examples=0),
    zero_shot=dict(label_field="kind", prompts=("{label}", "a {label}")),
    pointing=dict(label_field="kind", pairs=13),
    captioning=dict(captions=("{kind}",), examples=SAMPLES),
    classification=dict(),
    masked_text=dict(captions=("{lines}",)),
    linear_probe=dict(label_field="kind", l2=(1e-3, 1e-1), iterations=30),
    few_shot=dict(label_field="kind", shots=(1, 4), draws=2),
    pairs=dict(captions=("{kind}",), wrong=("side",), by="side"),
    embeddings=dict(),
)
# Means of real numbers, which are summed in another order. All other figures count something.
REAL = ("loss", "perplexity", "uniformity", "alignment", "effective_rank", "mean_norm", "modality_gap")


@pytest.fixture(scope="module")
def model():
    """Towers for every evaluator: a classifier's width, masked words, and one that writes."""
    texts = sorted({text.lower() for i in range(SAMPLES) for text in json.loads(held_out(i)["json"])["lines"]})
    words = train_wordpiece(texts, 80)
    embed = dict(vocab_size=words.vocab_size, length=helpers.LENGTH)
    text = presets.bert_tower(**helpers.SIZE, head="masked", embed_dim=helpers.WIDTH, embed=embed)
    caption = helpers.git(text_changes=dict(embed=embed))["caption"]
    built = helpers.build(dict(image=helpers.image(), text=text, caption=caption))
    return built, helpers.random_params(built), words


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Samples that probes learn from."""
    folder = tmp_path_factory.mktemp("train")
    return str(write_tar(folder / "train.tar", {f"{i:03d}": held_out(i) for i in range(SAMPLES, 2 * SAMPLES)}))


@pytest.fixture(scope="module")
def contexts(world, alone, model):
    """(urls, context) on eight devices and on one."""

    def context(own):
        data = own.context.data.copy_and_resolve_references()
        classes = (*KINDS, *(f"none {i}" for i in range(helpers.WIDTH - len(KINDS))))
        data.label.update(field="kind", classes=classes)
        return dataclasses.replace(own.context, model=model[0], tokenizer=model[2], data=data)

    return [(own, context(own)) for own in (alone, world)]


@pytest.mark.parametrize("kind", EVALUATORS)
def test_the_same_on_one_and_eight_devices_and_for_any_batch_size(kind, contexts, model, train):
    results = []
    for (own, context), batch_size in zip(contexts, BATCHES):
        options = OPTIONS[kind] | (dict(train=train) if kind in ("linear_probe", "few_shot") else {})
        evaluator = make_spec(EVALUATORS[kind], dict(urls=own.urls, batch_size=batch_size) | options, "evals.x")
        with jax.set_mesh(own.mesh):
            results.append(evaluator.prepare("x", context)(model[1]))
    one, eight = results
    assert one.metrics and one.metrics.keys() == eight.metrics.keys()
    for name, value in one.metrics.items():
        if name.endswith(REAL):
            assert eight.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
        else:
            assert eight.metrics[name] == value, name
    written = lambda result: [entry["generated"] for entry in result.gallery["captioning/x"]["captions"]]
    if kind == "captioning":  # by a model without training: all wrong, and not all alike
        assert written(one) == written(eight) and len(set(written(one))) > 5
    assert one.details == eight.details and one.scores.keys() == eight.scores.keys()
    for name, scores in one.scores.items():
        again = eight.scores[name]
        assert scores.digest == again.digest
        for figure, values in scores.values.items():
            np.testing.assert_array_equal(values, again.values[figure], err_msg=f"{name}/{figure}")
        assert intervals(scores, resamples=200) == intervals(again, resamples=200), name


def test_the_world_tells_devices_and_batches_apart(contexts, model):
    """What is compared above is not the same for a trivial reason: figures lie between nothing and everything."""
    (own, context), _ = contexts
    with jax.set_mesh(own.mesh):
        evaluator = make_spec(EVALUATORS["zero_shot"], dict(urls=own.urls) | OPTIONS["zero_shot"], "evals.x")
        found = evaluator.prepare("x", context)(model[1]).metrics
    assert 0 < found["zero_shot/x/top1"] < 1
    assert [c.mesh.devices.size for _, c in contexts] == [1, 8] and all(SAMPLES % b for b in (*BATCHES, 8))
