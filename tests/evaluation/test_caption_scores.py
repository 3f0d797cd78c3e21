"""Caption scores against their definition, and against the best answers that ignore the image."""

import numpy as np
import pytest

from xmodal.evaluation.captioning import scores

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
    return scores(answers, ids, valid, right, NAMES)


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


def test_the_best_constant_tokens_are_the_chance_of_token_accuracy():
    ids, valid = rows(*TRUTH)
    best = 0
    for place in range(1, ids.shape[1]):
        here = ids[valid[:, place], place]
        best += max((np.sum(here == token) for token in set(here.tolist())), default=0)
    assert score(*TRUTH)["chance/token_accuracy"] == pytest.approx(best / 15)


def test_no_constant_answer_beats_the_chance():
    rng = np.random.default_rng(0)
    chance = score(*TRUTH)
    for _ in range(200):
        same = tuple(rng.integers(5, 11, rng.integers(1, 5)).tolist())
        got = score(*[same] * 5)
        assert got["token_accuracy"] <= chance["chance/token_accuracy"]
        assert got["exact_match"] <= chance["chance/exact_match"]
