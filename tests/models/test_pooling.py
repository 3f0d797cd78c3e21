"""Pooling takes the token it names, and padding never changes an embedding."""

import helpers
import numpy as np
import pytest

# Towers whose text may be padded to any length; the rest of a row is invisible to what is pooled.
PADDED = {
    "eos_causal": dict(),
    "eos_full": dict(embed=dict(causal=False)),
    "cls": dict(pool="cls", embed=dict(causal=False)),
    "mean": dict(pool="mean", embed=dict(causal=False)),
    "mean_causal": dict(pool="mean"),
    "map": dict(pool="map", embed=dict(causal=False)),
}


def text_model(**changes):
    return helpers.build(dict(text=helpers.text(pool_heads=2, **changes)))


@pytest.mark.parametrize("name", PADDED)
def test_padding_never_changes_an_embedding(name):
    model = text_model(**PADDED[name])
    params, batch = helpers.random_params(model), helpers.batch()
    forward = helpers.forward(model, "text.pooled")
    whole = forward(params, batch)["text.pooled"]

    other = np.where(batch["text_valid"], batch["text"], 9)
    np.testing.assert_array_equal(forward(params, batch | dict(text=other))["text.pooled"], whole)

    length = int(np.sort(batch["text_valid"].sum(1))[3])  # half of the captions fit in a shorter row
    short = batch["text_valid"].sum(1) <= length
    cut = dict(text=batch["text"][short, :length], text_valid=batch["text_valid"][short, :length])
    np.testing.assert_allclose(forward(params, cut)["text.pooled"], whole[short], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", ["clip", "siglip"])
@pytest.mark.parametrize("pool", ["cls", "eos", "last", "mean"])
def test_pooling_takes_the_token_it_names(pool, style):
    model = text_model(pool=pool, embed_dim=0, style=style)
    params, batch = helpers.random_params(model), helpers.batch()
    out = helpers.forward(model, "text.tokens", "text.pooled")(params, batch)
    tokens, valid = np.asarray(out["text.tokens"].x), batch["text_valid"]
    if style == "siglip":  # no padding mask: padding is part of the text
        assert out["text.tokens"].valid is None
        valid = np.ones_like(valid)
    for row in range(len(tokens)):
        words = tokens[row][valid[row]]
        wanted = dict(cls=tokens[row, 0], eos=words[-1], last=tokens[row, -1], mean=words.mean(0))[pool]
        np.testing.assert_allclose(out["text.pooled"][row], wanted, rtol=1e-5, atol=1e-6)


def test_projection_follows_the_pooling():
    for bias in (False, True):
        tower = helpers.text(embed_dim=5, projection_bias=bias)
        model, plain = helpers.build(dict(text=tower)), text_model(embed_dim=0)
        params, batch = helpers.random_params(model), helpers.batch()
        own = params["text"].pop("projection")
        pooled = helpers.forward(plain, "text.pooled")(params, batch)["text.pooled"]
        params["text"]["projection"] = own
        wanted = pooled @ own["kernel"] + own.get("bias", 0.0)
        assert ("bias" in own) is bias
        got = helpers.forward(model, "text.pooled")(params, batch)["text.pooled"]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_outputs_that_do_not_exist_are_refused():
    model = helpers.build(helpers.git())
    params, batch = helpers.random_params(model), helpers.batch()
    wrong = {
        "image.pooled": "the tower 'image' gives tokens, local: set model.towers.image.heads.pooled",
        "image.logits": "needs image.logits", "audio.pooled": "there is no tower 'audio'",
        "caption.pooling": "needs caption.pooling, and the tower 'caption' gives tokens, local, logit_factors, logits",
    }  # fmt: skip
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            helpers.forward(model, name)(params, batch)
    with pytest.raises(ValueError, match=r"expects 16 pixels, got images \(8, 8, 16, 3\)"):
        helpers.forward(model, "image.tokens")(params, batch | dict(image=batch["image"][:, :8]))
