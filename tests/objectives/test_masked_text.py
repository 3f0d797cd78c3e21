"""Masked language modelling: what is hidden, that it cannot be seen, and the loss against plain NumPy."""

import dataclasses
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.text.tokenizers import train_bpe, train_wordpiece
from xmodal.models import presets
from xmodal.objectives.masked_text import MaskedText, MaskTokens

MASK, SPECIAL, VOCAB = 4, (0, 1, 2, 4), 200  # 3 is an ordinary id between marks
VIEW = MaskTokens(mask_id=MASK, vocab_size=VOCAB, special_ids=SPECIAL)


def texts(rows=3000, length=42, seed=0):
    """Texts of 0 to 40 ordinary tokens between marks."""
    rng = np.random.default_rng(seed)
    ordinary = np.setdiff1d(np.arange(VOCAB), SPECIAL)
    ids = rng.choice(ordinary, (rows, length)).astype(np.int32)
    own, place = (np.arange(rows) % 41)[:, None], np.arange(length)
    ids[:, 0] = 1
    ids = np.where(place == own + 1, 2, np.where(place > own + 1, 0, ids)).astype(np.int32)
    return dict(text=ids, text_valid=place <= own + 1)


@pytest.fixture(scope="module")
def hidden():
    batch = texts()
    return batch, jax.tree.map(np.asarray, jax.jit(VIEW)(batch, helpers.sample_keys(len(batch["text"]))))


def test_every_text_has_its_share_hidden_and_never_a_mark(hidden):
    batch, view = hidden
    own, counts = batch["text_valid"].sum(1) - 2, view["text_targets_valid"].sum(1)
    wanted = np.minimum(np.clip(np.round(np.float32(0.15) * own.astype(np.float32)), 1, 6), own)
    np.testing.assert_array_equal(counts, wanted)
    assert view["text_places"].shape == (len(own), 6) and counts.max() == 6 and counts.min() == 0
    changed = view["text"] != batch["text"]
    rows, columns = np.nonzero(view["text_targets_valid"])
    places = view["text_places"][rows, columns]
    named = np.zeros_like(changed)
    named[rows, places] = True
    assert named.sum() == len(rows), "no place twice"
    assert not (changed & ~named).any()
    assert not (named & (~batch["text_valid"] | np.isin(batch["text"], SPECIAL))).any()
    np.testing.assert_array_equal(view["text_targets"][rows, columns], batch["text"][rows, places])
    long = own == 40  # every place of a text is as likely
    share = named[long][:, 1:41].mean(0)
    assert abs(share - 0.15).max() < 5 * math.sqrt(0.15 * 0.85 / long.sum())


def test_of_ten_hidden_tokens_eight_are_masks_one_is_random_and_one_is_left(hidden):
    _, view = hidden
    rows, columns = np.nonzero(view["text_targets_valid"])
    new, old = view["text"][rows, view["text_places"][rows, columns]], view["text_targets"][rows, columns]
    close = lambda found, share: abs(found - share) < 4 * math.sqrt(share * (1 - share) / len(new))
    assert close(np.mean(new == MASK), 0.8)
    left = new[new != MASK]
    ordinary = VOCAB - len(SPECIAL)
    assert close(np.mean(new == old), 0.1 + 0.1 / ordinary)
    drawn = left[left != old[new != MASK]]
    assert not np.isin(drawn, SPECIAL).any() and drawn.min() == 3 and drawn.max() == VOCAB - 1
    spread = np.bincount(drawn, minlength=VOCAB)
    mean = len(drawn) / ordinary
    assert spread.max() < mean + 6 * math.sqrt(mean)


def test_a_draw_belongs_to_its_sample():
    batch, keys = texts(64), helpers.sample_keys(64)
    order = np.random.default_rng(0).permutation(64)
    turned = VIEW(helpers.rows(batch, order), keys[order])
    for name, array in VIEW(batch, keys).items():
        np.testing.assert_array_equal(turned[name], np.asarray(array)[order], err_msg=name)
    other = VIEW(batch, helpers.sample_keys(64, seed=1))
    assert np.any(other["text_places"] != VIEW(batch, keys)["text_places"])
    fixed = VIEW(batch, None)
    np.testing.assert_array_equal(fixed["text"], VIEW(batch, None)["text"])
    assert np.any(fixed["text"] != batch["text"])


OBJECTIVE = MaskedText(rate=0.4, mask_id=4, vocab_size=helpers.VOCAB, special_ids=(0, 1, 2, 4))


def batch_of(rows=8):
    """Tokens of `helpers.batch` that are no mask."""
    batch = helpers.batch(rows)
    return batch | dict(text=np.where(batch["text"] == 4, 5, batch["text"]))


def test_what_is_hidden_cannot_be_seen():
    """Texts that differ in hidden tokens alone give the same guesses; where a token is left as it is they differ."""
    model, keys, batch = helpers.build(dict(text=helpers.bert(head="masked"))), helpers.sample_keys(), batch_of()
    params = helpers.random_params(model)
    run = helpers.forward(model, "text.masked_logits")
    seen = {}
    for name, (mask, random) in dict(masked=(1.0, 0.0), random=(0.0, 1.0), left=(0.0, 0.0)).items():
        view = dataclasses.replace(OBJECTIVE, mask_share=mask, random_share=random).view
        first = view(batch, keys)
        other = np.array(batch["text"])
        rows, columns = np.nonzero(first["text_targets_valid"])
        places = np.asarray(first["text_places"])[rows, columns]
        other[rows, places] = np.where(other[rows, places] == 7, 8, 7)
        second = view(batch | dict(text=other), keys)
        assert np.any(first["text_targets"] != second["text_targets"])
        logits = [run(params, v)["text.masked_logits"] for v in (first, second)]
        seen[name] = float(np.max(np.abs(logits[0] - logits[1])))
    assert seen["masked"] == seen["random"] == 0.0 < seen["left"]


def test_loss_is_the_mean_over_the_hidden_tokens():
    model, batch = helpers.build(dict(text=helpers.bert(head="masked"))), batch_of()
    params = helpers.random_params(model)
    view = OBJECTIVE.view(batch, helpers.sample_keys())
    run = helpers.forward(model, "text.logits", "text.masked_logits")
    outputs = run(params, view)
    logits, total, right, count = np.asarray(outputs["text.logits"], np.float64), 0.0, 0, 0
    for row in range(8):
        for k, place in enumerate(np.asarray(view["text_places"][row])):
            scores = logits[row, place]
            np.testing.assert_allclose(outputs["text.masked_logits"][row, k], scores, rtol=1e-4, atol=1e-5)
            if view["text_targets_valid"][row, k]:
                target = batch["text"][row, place]
                total += np.log(np.sum(np.exp(scores))) - scores[target]
                right, count = right + (scores.argmax() == target), count + 1
    loss, weight, metrics, _ = OBJECTIVE(outputs, view, {}, None)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert weight == count > 8 and metrics["accuracy"] == pytest.approx(right / count)
    nothing = view | dict(text_targets_valid=jnp.zeros_like(view["text_targets_valid"]))
    assert [float(x) for x in OBJECTIVE(outputs, nothing, {}, None)[:2]] == [0.0, 0.0]


def test_a_fresh_model_starts_at_chance():
    losses = helpers.losses(dict(text=helpers.bert(head="masked")), dict(masked=OBJECTIVE), helpers.mesh())
    with jax.set_mesh(helpers.mesh()):
        params = jax.jit(losses.model.init)(jax.random.key(0)) | {"objectives": {}}
        loss, _ = jax.jit(lambda p: losses(p, batch_of(), helpers.sample_keys()))(params)
    assert OBJECTIVE.chance_loss(8, losses.model.spec) == pytest.approx(math.log(helpers.VOCAB))
    assert loss == pytest.approx(math.log(helpers.VOCAB), rel=0.02)


def test_what_the_config_leaves_open_comes_from_the_tokenizer():
    words = train_wordpiece(["red heart", "a heart"], 40)
    found = MaskedText.settle({}, words)
    assert found == dict(mask_id=4, vocab_size=words.vocab_size, special_ids=(0, 1, 2, 3, 4))
    assert MaskedText.settle(dict(mask_id=9, vocab_size=7, special_ids=(1,)), words) == dict(
        mask_id=9, vocab_size=7, special_ids=(1,)
    )
    bpe = train_bpe(["red heart"], 300)
    with pytest.raises(ValueError, match=r"the tokenizer has no mask \(\[MASK\] or <mask>\)"):
        MaskedText.settle({}, bpe)
    assert MaskedText.settle(dict(mask_id=299), bpe)["special_ids"] == (0, 1, 2)


def test_towers_and_shares_that_make_no_sense_are_refused():
    spec = lambda **changes: helpers.build(dict(text=helpers.bert(head="masked", **changes))).spec
    OBJECTIVE.check(spec())
    with pytest.raises(ValueError, match=r"sees only what comes before a token: set .*embed\.causal to False"):
        OBJECTIVE.check(spec(embed=dict(causal=True)))
    with pytest.raises(ValueError, match="mask_id=32 is no row of the token table of tower 'text', which has 32"):
        dataclasses.replace(OBJECTIVE, mask_id=32).check(spec())
    with pytest.raises(ValueError, match="embeds no text"):
        dataclasses.replace(OBJECTIVE, tower="image").check(helpers.build(helpers.clip()).spec)
    with pytest.raises(ValueError, match=r"rate=1\.5: expected a share above 0"):
        MaskedText(rate=1.5)
    with pytest.raises(ValueError, match="shares from 0 whose sum"):
        MaskedText(mask_share=0.8, random_share=0.3)
    with pytest.raises(ValueError, match="head='masked' is tied to a token table"):
        helpers.build(dict(image=presets.with_head(helpers.image(), "logits", type="logits", map="masked")))
