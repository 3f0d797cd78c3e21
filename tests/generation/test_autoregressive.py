"""Decoding with a cache gives what the whole model gives, token by token."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.generation.autoregressive import Sampling, generate

ROWS = 6
MODELS = {
    "coca": helpers.coca(),
    "coca_unrolled": helpers.coca(scan=False),
    "git": helpers.git(),
    "git_unrolled_rotary": helpers.git(scan=False, rope=100.0),
    "git_grouped": helpers.git(kv_heads=1, qk_norm=True),
}


def build(name, dtype="float32"):
    model = helpers.build(MODELS[name], dtype)
    params = helpers.random_params(model)
    text = params["text" if "text" in params else "caption"]["embed"]
    text["position"] = 6 * text["position"]  # so that the text is more than one word again and again
    return model, params, dict(image=helpers.batch(ROWS)["image"])


def decoder(model, params, **options):
    """Jitted f(batch, keys=None) -> ids."""
    options = dict(tower="caption", length=helpers.LENGTH, bos_id=1, eos_id=2, pad_id=0) | options
    run = jax.jit(lambda batch, keys: generate(model, params, batch, keys=keys, **options))

    def call(batch, keys=None):
        with jax.set_mesh(helpers.mesh()):
            return np.asarray(run(batch, keys))

    return call


def argmax_loop(model, params, batch, eos):
    """Without a cache: the whole model on the text so far, again for every token."""
    forward = helpers.forward(model, "caption.logits")
    ids = np.zeros((ROWS, helpers.LENGTH), np.int32)
    ids[:, 0] = 1
    for place in range(1, helpers.LENGTH):
        logits = forward(params, batch | dict(text=ids))["caption.logits"]
        ids[:, place] = np.argmax(logits[:, place - 1], axis=-1)
    for row in ids:
        ends = np.flatnonzero(row == eos)
        if len(ends):
            row[ends[0] + 1 :] = 0
    return ids


@pytest.mark.parametrize("name", MODELS)
def test_greedy_decoding_equals_the_argmax_of_the_whole_model(name):
    model, params, batch = build(name)
    free = decoder(model, params, eos_id=-1)(batch)
    assert free.shape == (ROWS, helpers.LENGTH)
    assert free.dtype == np.int32
    np.testing.assert_array_equal(free, argmax_loop(model, params, batch, eos=-1))
    assert len(np.unique(free, axis=0)) > 1  # the image decides
    assert any(len(np.unique(row[1:])) > 2 for row in free)

    eos = int(free[0, 3])  # a token that does occur ends the sequences it occurs in
    ended = decoder(model, params, eos_id=eos)(batch)
    np.testing.assert_array_equal(ended, argmax_loop(model, params, batch, eos))
    assert np.all(ended[0, np.flatnonzero(ended[0] == eos)[0] + 1 :] == 0)


def test_decoding_in_bfloat16_runs_and_ignores_text_in_the_batch():
    model, params, batch = build("coca", "bfloat16")
    run = decoder(model, params, eos_id=-1)
    ids = run(batch)
    assert ids.min() >= 0
    assert ids.max() < helpers.VOCAB
    np.testing.assert_array_equal(run(helpers.batch(ROWS)), ids)


def test_sampling_belongs_to_the_sample_and_its_key():
    model, params, batch = build("git")
    run = decoder(model, params, sampling=Sampling(1.0), eos_id=-1)
    keys = helpers.sample_keys(ROWS)
    ids = run(batch, keys)
    np.testing.assert_array_equal(run(batch, keys), ids)
    chosen = np.array([4, 1])
    np.testing.assert_array_equal(run(helpers.rows(batch, chosen), keys[chosen]), ids[chosen])
    assert np.all(np.any(run(batch, helpers.sample_keys(ROWS, seed=1)) != ids, axis=1))

    same = helpers.rows(batch, np.zeros(ROWS, int))
    assert len(np.unique(run(same, keys), axis=0)) == ROWS
    with pytest.raises(ValueError, match="needs per-sample random keys"):
        run(batch)


def test_samples_follow_the_softmax():
    model, params, batch = build("git")
    rows, temperature = 3000, 2.0
    image = np.repeat(batch["image"][:1], rows, axis=0)
    first = decoder(model, params, length=2, sampling=Sampling(temperature), eos_id=-1)(
        dict(image=image), helpers.sample_keys(rows)
    )[:, 1]
    text = np.ones((1, 1), np.int32)
    logits = helpers.forward(model, "caption.logits")(params, dict(image=image[:1], text=text))["caption.logits"]
    wanted = np.asarray(jax.nn.softmax(logits[0, 0] / temperature))
    share = np.bincount(first, minlength=helpers.VOCAB) / rows
    np.testing.assert_allclose(share, wanted, atol=5 * np.sqrt(0.25 / rows))
    assert np.sum(share > 0.01) > 3


def test_nearly_no_temperature_is_greedy():
    model, params, batch = build("coca")
    greedy = decoder(model, params, eos_id=-1)(batch)
    cold = decoder(model, params, eos_id=-1, sampling=Sampling(1e-4))(batch, helpers.sample_keys(ROWS))
    np.testing.assert_array_equal(cold, greedy)


@pytest.mark.parametrize("name", ["coca", "git"])
def test_caches_hold_what_was_written(name):
    model, params, batch = build(name)
    module = model.bind(params)
    caches = module.init_caches("caption", ROWS, helpers.LENGTH)
    prefix = helpers.PATCHES + 1 if name == "git" else 0
    assert caches.keys() == ({"caption"} if name == "git" else {"caption", "text"})
    inputs = batch | dict(text=jnp.ones((ROWS, 1), jnp.int32), text_pos=jnp.zeros((ROWS, 1), jnp.int32))
    with jax.set_mesh(helpers.mesh()):
        out = jax.jit(lambda b, c: model.bind(params)(b, frozenset({"caption.logits"}), caches=c))(inputs, caches)
    assert out["caption.logits"].shape == (ROWS, 1, helpers.VOCAB)
    for cache in out["caches"].values():
        assert int(cache.index) == prefix + 1
        assert cache.valid.shape == (ROWS, prefix + helpers.LENGTH)
        assert cache.valid.sum(1).tolist() == [prefix + 1] * ROWS


def test_lengths_that_cannot_be_decoded_are_refused():
    model, params, batch = build("coca")
    with pytest.raises(ValueError, match="'text' has 8 positions, too few for 9 tokens"):
        decoder(model, params, length=9)(batch)
    with pytest.raises(ValueError, match="at least one token after it, got 1"):
        decoder(model, params, length=1)(batch)
    assert decoder(model, params, length=2)(batch).shape == (ROWS, 2)
