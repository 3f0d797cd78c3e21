"""Every figure, query score, detail and interval is the same on one device and on eight, and for any batch size."""

import jax
import numpy as np
import pytest
from tiny_world import OPTIONS, SAMPLES, options_of

from xmodal.config import make_spec
from xmodal.evaluation import EVALUATORS
from xmodal.reporting.bootstrap import intervals

BATCHES = (7, 16)  # neither divides the samples; on eight devices 7 is rounded up to 8
# Means of real numbers, which are summed in another order. All other figures count something.
REAL = ("loss", "perplexity", "uniformity", "alignment", "effective_rank", "mean_norm", "modality_gap")


@pytest.mark.parametrize("kind", EVALUATORS)
def test_the_same_on_one_and_eight_devices_and_for_any_batch_size(kind, contexts, every_model, train):
    results = []
    for (own, context), batch_size in zip(contexts, BATCHES):
        evaluator = make_spec(
            EVALUATORS[kind], dict(urls=own.urls, batch_size=batch_size) | options_of(kind, train), "x"
        )
        with jax.set_mesh(own.mesh):
            results.append(evaluator.prepare("x", context)(every_model[1]))
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


def test_the_world_tells_devices_and_batches_apart(contexts, every_model):
    """What is compared above is not the same for a trivial reason: figures lie between nothing and everything."""
    (own, context), _ = contexts
    with jax.set_mesh(own.mesh):
        evaluator = make_spec(EVALUATORS["zero_shot"], dict(urls=own.urls) | OPTIONS["zero_shot"], "evals.x")
        found = evaluator.prepare("x", context)(every_model[1]).metrics
    assert 0 < found["zero_shot/x/top1"] < 1
    assert [c.mesh.devices.size for _, c in contexts] == [1, 8] and all(SAMPLES % b for b in (*BATCHES, 8))
