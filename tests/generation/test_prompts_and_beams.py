"""Prompts, nucleus sampling and beam search, against the whole model without a cache."""

import itertools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.generation.autoregressive import Prompt, Sampling, beam_search, generate
from xmodal.models import presets

ROWS, LENGTH = 4, helpers.LENGTH
MARKS = dict(tower="caption", bos_id=1, eos_id=2, pad_id=0)
MODELS = {"coca": helpers.coca(), "git_rotary": helpers.git(rope=100.0)}


def build(name):
    model = helpers.build(MODELS[name])
    params = helpers.random_params(model)
    text = params["text" if "text" in params else "caption"]["embed"]
    text["position"] = 6 * text["position"]
    return model, params, dict(image=helpers.batch(ROWS)["image"])


def prompt_of(lengths, size=4):
    """Left-padded prompts of these lengths, and the same texts without padding."""
    ids = np.random.default_rng(5).integers(3, helpers.VOCAB, (len(lengths), size)).astype(np.int32)
    valid = np.arange(size) >= size - np.array(lengths)[:, None]
    return Prompt(jnp.asarray(np.where(valid, ids, 0)), jnp.asarray(valid)), [
        row[size - n :] for row, n in zip(ids, lengths)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_continued_as_without_a_cache(name):
    model, params, batch = build(name)
    prompt, texts = prompt_of([4, 2, 3, 1])
    options = MARKS | dict(eos_id=-1, length=LENGTH)
    with jax.set_mesh(helpers.mesh()):
        run = jax.jit(lambda batch, prompt: generate(model, params, batch, prompt=prompt, **options))
        found = np.asarray(run(batch, prompt))
    np.testing.assert_array_equal(found[:, :4], prompt.ids)
    forward = helpers.forward(model, "caption.logits")
    ids, ends = np.zeros((ROWS, LENGTH), np.int32), [len(text) for text in texts]
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    for _ in range(LENGTH - 4):
        logits = forward(params, batch | dict(text=ids))["caption.logits"]
        for row in range(ROWS):
            ids[row, ends[row]] = np.argmax(logits[row, ends[row] - 1])
            ends[row] += 1
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(found[row, 4:], ids[row, len(text) : ends[row]])
    assert len(np.unique(found[:, 4:])) > 2


def test_cached_logits_of_a_prompt_are_those_of_the_whole_model():
    """Group by group: a question that sees all of itself, then an answer that does not."""
    model, params, batch = build("git_rotary")
    prompt, _ = prompt_of([3] * ROWS, 3)
    prompt = Prompt(prompt.ids, None, group=jnp.array([[1, 0, 0]] * ROWS))
    with jax.set_mesh(helpers.mesh()):
        found = jax.jit(lambda b: generate(model, params, b, prompt=prompt, **MARKS | dict(eos_id=-1, length=6)))(batch)
    group = jnp.array([[1, 0, 0, 1, 1, 1]] * ROWS)
    logits = helpers.forward(model, "caption.logits")(params, batch | dict(text=found, text_group=group))
    greedy = np.argmax(logits["caption.logits"], axis=-1)
    np.testing.assert_array_equal(greedy[:, 2:-1], found[:, 3:])


def test_prompts_that_cannot_be_used_are_refused():
    model, params, batch = build("coca")
    prompt, _ = prompt_of([4] * ROWS)
    with pytest.raises(ValueError, match=r"begin token or prompt \(4\) and at least one token after it, got 4"):
        generate(model, params, batch, prompt=prompt, length=4, **MARKS)
    blind = helpers.build(helpers.coca(text_changes=dict(embed=dict(mask_padding=False))))
    with pytest.raises(ValueError, match="the tower 'text' sees padding"):
        generate(blind, helpers.random_params(blind), batch, prompt=prompt, length=6, **MARKS)


def test_only_the_best_tokens_are_sampled():
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.15, 0.1, 0.05]]))
    kept = lambda **how: np.isfinite(np.asarray(Sampling(1.0, **how).kept(logits)))[0].tolist()
    assert kept(top_k=2) == [True, True, False, False, False]
    assert kept(top_p=0.6) == [True, True, False, False, False]
    assert kept(top_p=0.71) == [True, True, True, False, False]
    assert kept(top_p=0.01) == [True, False, False, False, False]
    assert kept(top_k=4, top_p=0.85) == [True, True, True, False, False]
    keys = helpers.sample_keys(4000)
    ids = Sampling(1.0, top_p=0.6).choose(jnp.repeat(logits, 4000, axis=0), keys)
    np.testing.assert_allclose(np.bincount(ids, minlength=5) / 4000, [5 / 7, 2 / 7, 0, 0, 0], atol=0.04)
    for wrong in (dict(top_p=0.0), dict(top_k=-1), dict(temperature=-1.0)):
        with pytest.raises(ValueError, match="top_p is above 0"):
            Sampling(**dict(temperature=1.0) | wrong)
    with pytest.raises(ValueError, match="set temperature above 0"):
        Sampling(top_k=3)


# ------------------------------------------------------------------------------------------- beams

SMALL, EOS, NEW = 5, 2, 4


def small_model():
    caption = helpers.text(embed_dim=0, pool="none", head="linear", embed=dict(vocab_size=SMALL))
    caption = presets.with_head(caption, "logits", vocab_size=SMALL)
    towers = dict(image=helpers.git()["image"], caption=caption | dict(reads=dict(image=dict(type="linear_norm"))))
    model = helpers.build(towers)
    params = helpers.random_params(model)
    params["caption"]["head"]["kernel"] = 8 * params["caption"]["head"]["kernel"]
    return model, params, dict(image=helpers.batch(ROWS)["image"])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_is_exhaustive_search(penalty):
    model, params, batch = small_model()
    with jax.set_mesh(helpers.mesh()):
        options = MARKS | dict(length=1 + NEW, beams=(SMALL - 1) ** NEW, length_penalty=penalty)
        ids, score = jax.jit(lambda b: beam_search(model, params, b, **options))(batch)
    forward = helpers.forward(model, "caption.logits")
    texts = np.array(list(itertools.product(range(SMALL), repeat=NEW)), np.int32)
    ended = np.array([text.tolist().index(EOS) + 1 if EOS in text else NEW for text in texts])
    for row in range(ROWS):
        image = np.repeat(batch["image"][row : row + 1], len(texts), axis=0)
        whole = np.concatenate([np.ones((len(texts), 1), np.int32), texts], axis=1)
        logits = np.asarray(forward(params, dict(image=image, text=whole))["caption.logits"])
        chance = np.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), texts[..., None], axis=2)[..., 0]
        total = np.where(np.arange(NEW) < ended[:, None], chance, 0).sum(1) / ended**penalty
        best = int(np.argmax(total))
        wanted = np.where(np.arange(NEW) < ended[best], texts[best], 0)
        np.testing.assert_array_equal(ids[row, 1:], wanted)
        np.testing.assert_allclose(score[row], total[best], atol=1e-4)
    assert len(np.unique(ids, axis=0)) > 1


def test_one_beam_is_greedy_and_more_are_never_worse():
    model, params, batch = small_model()
    options, scores = MARKS | dict(length=1 + NEW, eos_id=-1, length_penalty=0.0), []
    with jax.set_mesh(helpers.mesh()):
        greedy = generate(model, params, batch, **MARKS | dict(length=1 + NEW, eos_id=-1))
        for beams in (1, 25):
            ids, score = beam_search(model, params, batch, beams=beams, **options)
            scores.append(np.asarray(score))
            if beams == 1:
                np.testing.assert_array_equal(ids, greedy)
    assert np.all(scores[1] >= scores[0] - 1e-5)


def test_a_prompt_starts_a_beam_and_broken_weights_show():
    model, params, batch = build("coca")
    prompt, _ = prompt_of([4, 2, 3, 1])
    options = MARKS | dict(length=LENGTH, eos_id=-1)
    with jax.set_mesh(helpers.mesh()):
        ids, _ = beam_search(model, params, batch, prompt=prompt, beams=1, **options)
        np.testing.assert_array_equal(ids, generate(model, params, batch, prompt=prompt, **options))
        params["caption"]["head"]["bias"] = np.full_like(params["caption"]["head"]["bias"], np.nan)
        ids, score = beam_search(model, params, batch, beams=2, **options)
    assert np.all(np.asarray(ids)[:, 1:] == -1) and np.isnan(score).all()
