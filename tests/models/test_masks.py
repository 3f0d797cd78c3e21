"""Who sees whom: the mask rule on data, and nothing leaks through whole models."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models.tokens import Tokens, attention_mask, concatenate

RULES = {
    "full": ([0, 0, 0], ["111", "111", "111"]),
    "causal": ([1, 1, 1], ["100", "110", "111"]),
    "prefix": ([0, 0, 1, 1], ["1100", "1100", "1110", "1111"]),
    "interleaved": ([0, 0, 1, 0, 1], ["11000", "11000", "11110", "11110", "11111"]),
}


def bits(mask):
    return ["".join(str(int(v)) for v in row) for row in np.asarray(mask)]


@pytest.mark.parametrize("name", RULES)
def test_masks_are_data(name):
    marks, wanted = RULES[name]
    group = jnp.cumsum(jnp.array([marks]), axis=1)
    assert bits(attention_mask(group, group, None)[0, 0]) == wanted


def test_padding_is_seen_by_nobody_and_no_rule_means_no_mask():
    group, valid = jnp.array([[1, 2, 3]]), jnp.array([[True, False, True]])
    assert bits(attention_mask(group, group, valid)[0, 0]) == ["100", "100", "101"]
    assert bits(attention_mask(None, None, valid)[0, 0]) == ["101"]
    assert attention_mask(None, None, None) is None


def test_media_rule_shows_each_query_its_own_medium():
    mask = attention_mask(None, None, jnp.array([[True, True, False]]), jnp.array([[0, 1, 2]]), jnp.array([[1, 2, 2]]))
    assert bits(mask[0, 0]) == ["000", "100", "010"]


def test_concatenation_fills_in_what_a_part_leaves_open():
    image = Tokens(jnp.zeros((2, 3, 4)), segments=(("image", 3),))
    text = Tokens(
        jnp.ones((2, 2, 4)), valid=jnp.zeros((2, 2), bool), group=jnp.ones((2, 2), jnp.int32),
        pos=jnp.full((2, 2, 1), 5), segments=(("text", 2),),
    )  # fmt: skip
    joined = concatenate([image, text])
    assert joined.segments == (("image", 3), ("text", 2))
    assert joined.valid[0].tolist() == [True, True, True, False, False]
    assert joined.group[0].tolist() == [0, 0, 0, 1, 1]
    assert joined.pos[0, :, 0].tolist() == [0, 0, 0, 5, 5]
    assert joined.media is None
    last = joined.segment(-1)
    assert last.segments == (("text", 2),)
    jax.tree.map(np.testing.assert_array_equal, last, text)


# ------------------------------------------------------------------------------------------- whole models


def influence(towers, *want):
    """Returns f(batch, **changed arrays): for each wanted output, bool [batch, ...], where the change shows.

    Masked values enter with weight exactly zero, so "not seen" is compared to the last bit.
    """
    model = helpers.build(towers)
    params, base, forward = helpers.random_params(model), helpers.batch(), helpers.forward(model, *want)
    value = lambda out: np.asarray(out.x if isinstance(out, Tokens) else out)
    outputs = lambda batch: {name: value(out) for name, out in forward(params, batch).items()}
    before = outputs(base)

    def compare(**changed):
        after = outputs(base | changed)
        return {k: np.any(before[k] != after[k], axis=-1) for k in before}

    return base, compare


def altered(ids, row, place):
    ids = ids.copy()
    ids[row, place] = 3 + (ids[row, place] - 2) % (helpers.VOCAB - 3)
    return ids


def lengths(batch):
    return batch["text_valid"].sum(1)


def test_clip_text_is_causal_and_blind_to_padding():
    base, compare = influence(helpers.clip(), "text.tokens", "text.pooled", "image.pooled")
    seen = compare(text=altered(base["text"], 3, 2))
    assert np.argwhere(seen["text.tokens"]).tolist() == [[3, t] for t in range(2, helpers.LENGTH)]
    assert np.flatnonzero(seen["text.pooled"]).tolist() == [3]
    assert not seen["image.pooled"].any()

    row = int(np.argmin(lengths(base)))
    padding = slice(int(lengths(base)[row]), None)
    seen = compare(text=altered(base["text"], row, padding))
    assert not seen["text.pooled"].any()
    assert not seen["text.tokens"][:, : padding.start].any()


def test_full_attention_sees_all_but_the_padding():
    towers = helpers.clip(text_changes=dict(embed=dict(causal=False), pool="mean"))
    base, compare = influence(towers, "text.tokens", "text.pooled")
    row, length = 3, int(lengths(base)[3])
    seen = compare(text=altered(base["text"], row, length - 2))
    assert seen["text.tokens"][row, :length].all()
    assert seen["text.pooled"].tolist() == [i == row for i in range(8)]
    seen = compare(text=altered(base["text"], row, slice(length, None)))
    assert not seen["text.pooled"].any()
    assert not seen["text.tokens"][row, :length].any()


def test_siglip_text_sees_its_padding():
    base, compare = influence(helpers.clip(style="siglip"), "text.tokens", "text.pooled")
    assert not base["text_valid"][0, -1]
    seen = compare(text=altered(base["text"], 0, -1))
    assert seen["text.tokens"][0].all()
    assert seen["text.pooled"][0]


def test_coca_images_are_blind_to_text_and_captions_to_their_future():
    wanted = ("image.tokens", "image.pooled", "text.pooled", "caption.logits")
    base, compare = influence(helpers.coca(), *wanted)
    seen = compare(text=altered(base["text"], 5, 3))
    assert not seen["image.tokens"].any()
    assert not seen["image.pooled"].any()
    assert np.argwhere(seen["caption.logits"]).tolist() == [[5, t] for t in range(3, helpers.LENGTH)]

    seen = compare(image=base["image"] + (np.arange(8) == 5)[:, None, None, None])
    assert seen["caption.logits"][5].all()
    assert not np.delete(seen["caption.logits"], 5, axis=0).any()
    assert not seen["text.pooled"].any()


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "unrolled"])
def test_git_prefix_is_blind_to_text_and_text_is_causal(scan):
    base, compare = influence(helpers.git(scan=scan), "caption.tokens", "caption.logits", "image.tokens")
    prefix = helpers.PATCHES + 1
    seen = compare(text=altered(base["text"], 2, 2))
    assert not seen["image.tokens"].any()
    expected = [[2, prefix + t] for t in range(2, helpers.LENGTH)]
    assert np.argwhere(seen["caption.tokens"]).tolist() == expected
    assert seen["caption.logits"].shape == (8, helpers.LENGTH)

    seen = compare(image=base["image"] + (np.arange(8) == 2)[:, None, None, None])
    assert seen["caption.tokens"][2].all()
    assert not np.delete(seen["caption.tokens"], 2, axis=0).any()
