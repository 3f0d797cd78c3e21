"""Alarms: said when certain, once, and again only after recovery."""

import pytest

from xmodal.reporting.health import Alarms


def first_steps(alarms, scalars, steps):
    """(step, message) of every alarm while `scalars(step)` are pushed."""
    return [(step, text) for step in steps for text in alarms.check(step, scalars(step))]


def test_a_loss_at_chance_is_told_after_a_twentieth_of_the_run_and_once():
    alarms = Alarms({"contrastive": 5.545, "captioning": 7.6}, total_steps=10_000)
    found = first_steps(
        alarms, lambda step: {"train/contrastive/loss": 5.54, "train/captioning/loss": 3.0}, range(10, 3000, 10)
    )
    ((step, text),) = found
    assert step == 510 and text.startswith("contrastive: the loss (5.54) has been at chance (5.545) for 500 steps")
    assert "learning rate" in text and "tokenizer" in text


def test_a_learning_run_and_a_slow_start_are_quiet():
    loss = lambda step: {"train/contrastive/loss": 5.545 if step < 300 else 4.0}
    assert first_steps(Alarms({"contrastive": 5.545}, 10_000), loss, range(10, 5000, 10)) == []


def test_the_same_cause_is_told_again_only_after_recovery():
    alarms = Alarms({})
    bad, good, between = ({"health/image_mean_cosine": c} for c in (0.99, 0.5, 0.93))
    assert alarms.check(50, bad) == []  # a fresh transformer looks collapsed
    (text,) = alarms.check(200, bad)
    assert text.startswith("image embeddings collapse")
    assert alarms.check(210, bad) == [] and alarms.check(220, between) == [] and alarms.check(230, bad) == []
    assert alarms.check(240, good) == []
    assert len(alarms.check(250, bad)) == 1


def test_vanishing_embeddings_but_not_a_small_gradient():
    row = {"health/text_mean_cosine": 0.1, "health/text_norm": 1e-5, "train/grad_norm": 1e-6, "health/grad_norm": 1e-6}
    (text,) = Alarms({}).check(1, row)
    assert text.startswith("text embeddings vanish")


def test_temperature_is_judged_only_where_it_has_a_bound():
    row = {"train/softmax/logit_scale": 100.0, "train/sigmoid/logit_scale": 117.0}
    (text,) = Alarms({}, max_logit_scale={"softmax": 100.0}).check(1, row)
    assert text.startswith("softmax: the temperature is at its bound")
    assert Alarms({}).check(1, row) == []


@pytest.mark.parametrize(
    "name, word", [("throughput/data_wait", "data.threads"), ("health/duplicate_share", "data.group_key")]
)
def test_shares_must_stay_high(name, word):
    assert first_steps(Alarms({}), lambda step: {name: 0.6 if step % 20 else 0.0}, range(5, 200, 5)) == []
    ((step, text),) = first_steps(Alarms({}), lambda step: {name: 0.6}, range(5, 200, 5))
    assert step == 25 and word in text


def test_each_burst_of_skipped_steps_is_told():
    alarms = Alarms({})
    total = {10: 0, 20: 1, 30: 2, 40: 2, 50: 3}
    found = first_steps(alarms, lambda step: {"health/nonfinite_total": total[step]}, total)
    assert [step for step, _ in found] == [20, 50]
    assert found[0][1].startswith("1 step skipped") and found[1][1].startswith("3 steps skipped")


def test_missing_and_not_finite_scalars_are_not_judged():
    assert Alarms({"contrastive": 5.5}).check(1000, {"train/contrastive/loss": float("nan")}) == []
