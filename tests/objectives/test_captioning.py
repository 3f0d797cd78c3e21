"""Captioning is the mean cross-entropy of all target tokens of the batch, against plain NumPy."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest

from xmodal.models.embed import TokenSpec
from xmodal.models.model import ModelSpec
from xmodal.models.spec import Sublayer
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec
from xmodal.objectives.captioning import Captioning


def formula(logits, batch, smoothing):
    """Loops over samples and positions: (sum, count, right)."""
    total, count, right = 0.0, 0, 0
    for row in range(len(logits)):
        for place in range(helpers.LENGTH - 1):
            if not batch["text_valid"][row, place + 1]:
                continue
            scores, target = np.float64(logits[row, place]), batch["text"][row, place + 1]
            log_p = scores - np.log(np.sum(np.exp(scores)))
            wanted = np.full(helpers.VOCAB, smoothing / helpers.VOCAB)
            wanted[target] += 1 - smoothing
            total, count = total - wanted @ log_p, count + 1
            right += scores.argmax() == target
    return total, count, right


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_follows_the_formula(smoothing):
    objective = Captioning(tower="caption", label_smoothing=smoothing)
    batch = helpers.batch()
    logits = 2 * np.random.default_rng(0).normal(size=(8, helpers.LENGTH, helpers.VOCAB)).astype(np.float32)
    logits[:4, :-1][np.arange(helpers.VOCAB) == batch["text"][:4, 1:, None]] += 6  # some are right

    def loss(logits):
        total, weight, metrics, _ = objective({"caption.logits": logits}, batch, {}, None)
        return total, (weight, metrics)

    (total, (weight, metrics)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    wanted, count, right = formula(logits, batch, smoothing)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    assert weight == count == batch["text_valid"][:, 1:].sum()
    assert metrics["accuracy"] == pytest.approx(right / count)
    assert 0 < right < count

    # Only what predicts a real token is trained; the end mark is a target, nothing follows it.
    trained = np.any(np.asarray(grad) != 0, axis=-1)
    np.testing.assert_array_equal(trained[:, :-1], batch["text_valid"][:, 1:])
    assert not trained[:, -1].any()


def test_long_captions_weigh_more_than_short_ones():
    """The mean is over the tokens of the whole batch, not over the means of samples."""
    objective, batch = Captioning(), helpers.batch()
    logits = np.random.default_rng(0).normal(size=(8, helpers.LENGTH, helpers.VOCAB)).astype(np.float32)
    parts = [objective({"caption.logits": logits[i : i + 1]}, helpers.rows(batch, [i]), {}, None) for i in range(8)]
    total, weight, *_ = objective({"caption.logits": logits}, batch, {}, None)
    np.testing.assert_allclose(total, sum(part[0] for part in parts), rtol=1e-5)
    assert weight == sum(part[1] for part in parts)
    mean_of_means = np.mean([part[0] / part[1] for part in parts])
    assert abs(total / weight - mean_of_means) > 1e-3


def test_a_batch_without_targets_gives_no_loss():
    batch = helpers.batch() | dict(text_valid=np.zeros((8, helpers.LENGTH), bool))
    logits = np.ones((8, helpers.LENGTH, helpers.VOCAB), np.float32)
    total, weight, metrics = Captioning()({"caption.logits": logits}, batch, {}, None)
    assert total == weight == metrics["accuracy"] == 0.0


def test_chance_is_the_log_of_the_vocabulary():
    linear = helpers.build(helpers.coca()).spec
    assert Captioning().chance_loss(8, linear) == pytest.approx(np.log(helpers.VOCAB))
    tied = helpers.build(helpers.git()).spec
    assert Captioning().chance_loss(8, tied) == pytest.approx(np.log(helpers.VOCAB))
    assert Captioning(tower="text").needs == {"text.logits"}


def test_text_that_sees_the_answer_is_refused():
    embed = TokenSpec(vocab_size=8, length=4, causal=False)
    trunk = TrunkSpec(width=8, depth=1, pattern=((Sublayer("self", heads=2),),))
    spec = ModelSpec({"caption": TowerSpec(trunk=trunk, embed=embed, head="linear", vocab_size=8)})
    with pytest.raises(ValueError, match=r"sees the whole caption.*embed\.causal to True"):
        Captioning().check(spec)
    causal = dataclasses.replace(spec.towers["caption"], embed=dataclasses.replace(embed, causal=True))
    Captioning().check(ModelSpec({"caption": causal}))
