"""Heads are read by name; a model says what it gives, and where the parameters of a head lie."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest

from xmodal.config import ConfigError
from xmodal.models import presets
from xmodal.models.heads.logits import logits_of
from xmodal.paths import flatten_paths


def test_a_model_says_what_it_gives():
    outputs = helpers.build(helpers.coca()).spec.outputs
    assert outputs["caption.logits"] == helpers.VOCAB
    assert outputs["image.pooled"] == outputs["text.local"] == helpers.WIDTH
    assert "caption.pooled" not in outputs and "image.logits" not in outputs


def test_other_names_have_parameters_of_their_own():
    """DALL-E: one sequence of words and codes, each with its vocabulary."""
    tower = helpers.text(head="none", pool="none")
    tower["reads"] = dict(image=dict(type="linear"))
    for name, segment, size in (("words", "text", helpers.VOCAB), ("patches", "image", 11)):
        tower = presets.with_head(tower, name, type="logits", map="linear", vocab_size=size, segment=segment)
    model = helpers.build(dict(image=helpers.image(), joint=tower))
    params, batch = helpers.random_params(model), helpers.batch(4)
    paths = flatten_paths(params)
    assert paths["joint/words/head/kernel"].shape == (helpers.WIDTH, helpers.VOCAB)
    assert paths["joint/patches/head/kernel"].shape == (helpers.WIDTH, 11)
    out = helpers.forward(model, "joint.words", "joint.patches", "joint.tokens")(params, batch)
    assert out["joint.words"].shape == (4, helpers.LENGTH, helpers.VOCAB)
    assert out["joint.patches"].shape == (4, 1 + helpers.PATCHES, 11)
    patches = np.asarray(out["joint.tokens"].x)[:, : 1 + helpers.PATCHES]
    head = params["joint"]["patches"]["head"]
    np.testing.assert_allclose(out["joint.patches"], patches @ head["kernel"] + head["bias"], atol=1e-5)
    tower = presets.with_head(tower, "words", segment="sound")
    with pytest.raises(ValueError, match="reads the segment 'sound'; the tower's tokens have image, text"):
        model = helpers.build(dict(image=helpers.image(), joint=tower))
        jax.eval_shape(lambda p: model(p, batch, frozenset({"joint.words"})), params)


@pytest.mark.parametrize("head", ["linear", "tied", "masked"])
def test_factors_give_the_logits(head):
    tower = helpers.text(head=head, embed=dict(causal=False))
    model = helpers.build(dict(text=tower))
    out = helpers.forward(model, "text.logits", "text.logit_factors")(helpers.random_params(model), helpers.batch(4))
    np.testing.assert_allclose(logits_of(**out["text.logit_factors"]), out["text.logits"], atol=1e-5)


def test_the_order_of_a_config_decides_nothing():
    tower = helpers.text(head="linear")
    other = dict(tower, heads=dict(reversed(tower["heads"].items())))
    draw = lambda t: flatten_paths(helpers.build(dict(text=t)).init(jax.random.key(1)))
    first, second = draw(tower), draw(other)
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path], err_msg=path)


def test_what_makes_no_sense_is_refused():
    build = lambda tower: helpers.build(dict(image=tower))
    with pytest.raises(ConfigError, match=r"heads.pooled.type: expected one of 'pooled', .* Did you mean 'pooled'"):
        build(presets.with_head(helpers.image(), "pooled", type="poled"))
    with pytest.raises(ValueError, match="the head 'trunk' would be stored as 'trunk', which is taken"):
        build(presets.with_head(helpers.image(), "trunk", type="logits", vocab_size=3))
    model = build(presets.with_head(helpers.image(), "masked_logits", type="masked_logits"))
    with pytest.raises(ValueError, match="reads the head 'logits', which the tower does not have"):
        assert model.spec.outputs
    with pytest.raises(ValueError, match=r"there is no tower 'imag'. Did you mean 'image'"):
        build(helpers.image()).spec.check_output("imag.pooled")
    spec = dataclasses.replace(build(helpers.image()).spec.towers["image"], heads={})
    assert spec.pool == "none" and spec.outputs == {"tokens": helpers.WIDTH}


def test_a_size_below_zero_makes_no_model():
    with pytest.raises(ValueError, match="one of its sizes is negative"):
        helpers.build(dict(text=helpers.text(hidden=-1)))
