"""Captioning is the mean cross-entropy of all target tokens of the batch, against plain NumPy."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest

from xmodal.models.embed import TokenSpec
from xmodal.models.heads import LogitsSpec
from xmodal.models.heads.logits import logits_of
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
    total, weight, metrics, _ = Captioning()({"caption.logits": logits}, batch, {}, None)
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
    spec = ModelSpec({"caption": TowerSpec(trunk=trunk, embed=embed, heads=dict(logits=LogitsSpec(vocab_size=8)))})
    with pytest.raises(ValueError, match=r"sees the whole caption.*embed\.causal to True"):
        Captioning().check(spec)
    causal = dataclasses.replace(spec.towers["caption"], embed=dataclasses.replace(embed, causal=True))
    Captioning().check(ModelSpec({"caption": causal}))


@pytest.mark.parametrize("head", ["linear", "tied"])
@pytest.mark.parametrize("positions", [3, 16])
def test_parts_of_the_logits_give_the_same_loss_and_gradients(head, positions):
    model, batch = helpers.build(dict(text=helpers.text(head=head))), helpers.batch()
    params, both = helpers.random_params(model), []
    for size in (0, positions):
        objective = Captioning(tower="text", label_smoothing=0.1, positions=size)

        def loss(params, objective=objective):
            total, weight, metrics, _ = objective(model(params, batch, objective.needs), batch, {}, None)
            return total / weight, metrics["accuracy"]

        with jax.set_mesh(helpers.mesh()):
            both.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))
    ((plain, right), grads), ((parts, hits), others) = both
    assert parts == pytest.approx(float(plain), rel=1e-6) and right == hits
    helpers.assert_trees_close(others, grads)


def test_parts_of_the_logits_cost_little_memory():
    """What the compiler plans: neither pass ever holds [batch, seq, vocab]."""
    rows, length, vocab, width = 4, 64, 8192, 16
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
    factors = dict(x=shape(rows, length, width), kernel=shape(width, vocab), bias=shape(vocab))
    texts = dict(text=jax.ShapeDtypeStruct((rows, length), np.int32), text_valid=shape(rows, length))
    plain, parts = Captioning(), Captioning(positions=4)

    def temporary(objective, outputs):
        loss = lambda f, b: objective(outputs(f), b, {}, None)[0]
        return jax.jit(jax.grad(loss)).lower(factors, texts).compile().memory_analysis().temp_size_in_bytes

    whole = temporary(plain, lambda f: {"caption.logits": logits_of(**f)})
    less = temporary(parts, lambda f: {"caption.logit_factors": f})
    assert whole >= 4 * rows * length * vocab > 4 * less


def test_the_batch_says_which_tokens_count():
    """A question and its answer: only the answer is learned."""
    batch, logits = helpers.batch(), np.random.default_rng(0).normal(size=(8, helpers.LENGTH, helpers.VOCAB))
    answer = batch["text_valid"] & (np.arange(helpers.LENGTH) >= 3)
    total, weight, *_ = Captioning()({"caption.logits": logits}, batch | dict(text_loss=answer), {}, None)
    wanted, count, _ = formula(logits, batch | dict(text_valid=answer), 0.0)
    assert weight == count and total == pytest.approx(wanted, rel=1e-5)
