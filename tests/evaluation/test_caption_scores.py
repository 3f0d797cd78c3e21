"""Caption scores against their definition, and against the best answers that ignore the image."""

import numpy as np
import pytest

from xmodal.evaluation.captioning import baselines, grade

BOS, EOS, PAD = 1, 2, 0


def rows(*texts, length=7):
    ids = np.full((len(texts), length), PAD, np.int32)
    for row, text in zip(ids, texts):
        tokens = [BOS, *text, EOS]
        row[: len(tokens)] = tokens
    return ids, np.arange(length) <= np.argmax(ids == EOS, axis=1)[:, None]


TRUTH = [(5, 6), (5, 6), (5, 6), (7,), (8, 9, 10)]
NAMES = ["red sun", "red sun", "red sun", "moon", "blue star two"]


def score(*written):
    ids, valid = rows(*TRUTH)
    answers, _ = rows(*written)
    right = np.array([a == b for a, b in zip(written, TRUTH)])
    return grade(answers, ids, valid, right).figures() | baselines(ids, valid, NAMES)


def test_perfect_captions_score_one():
    got = score(*TRUTH)
    assert (got["exact_match"], got["token_accuracy"], got["images"]) == (1, 1, 5)


def test_the_most_common_caption_reaches_exactly_the_chance_of_exact_match():
    got = score(*[(5, 6)] * 5)
    assert got["exact_match"] == got["chance/exact_match"] == 3 / 5


def test_token_accuracy_counts_end_marks_and_no_padding():
    # True tokens: 3 + 3 + 3 + 2 + 4 = 15. Right: 3, 0, 2 (first and second), 1 (first; no end there), 3.
    got = score((5, 6), (9, 9, 9, 9), (5, 6, 6), (7, 7), (8, 9, 11))
    assert got["token_accuracy"] == pytest.approx((3 + 0 + 2 + 1 + 3) / 15)
    assert got["exact_match"] == 1 / 5


def test_the_best_constant_caption_is_the_chance_of_both_scores():
    chance = score(*TRUTH)
    constants = [score(*[caption] * 5) for caption in set(TRUTH)]
    assert chance["chance/token_accuracy"] == pytest.approx(max(got["token_accuracy"] for got in constants))
    assert chance["chance/exact_match"] == max(got["exact_match"] for got in constants)


def test_the_chance_of_token_accuracy_may_lie_with_a_rare_caption():
    ids, valid = rows((5, 5), (6, 6), (5, 7), (6, 7))
    got = baselines(ids, valid, ["a", "b", "c", "d"])
    assert got["chance/token_accuracy"] == pytest.approx(
        2 * (2 + 2 + 4) / 2 / 12
    )  # (5, 7): 2 firsts, 2 seconds, 4 ends
    assert got["chance/exact_match"] == 1 / 4
