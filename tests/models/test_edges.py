"""Edges between towers: connectors, positions, items, cuts, conditions, and what a batch may bring or say."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models import presets
from xmodal.models.connectors import ResamplerSpec, Source
from xmodal.models.init import scheme
from xmodal.models.tokens import Tokens, folded

WIDTH, PIXELS = helpers.WIDTH, helpers.PIXELS


def reader(edge, **changes):
    """A text tower that reads images, and the images."""
    towers = helpers.git(text_changes=changes)
    towers["caption"]["reads"] = dict(image=edge)
    return towers


def shapes(model, batch, *want):
    params = jax.eval_shape(model.init, jax.random.key(0))
    return jax.eval_shape(lambda p, b: model(p, b, frozenset(want)), params, batch)


def test_a_resampler_gives_so_many_tokens_and_knows_no_order():
    """Its latents attend to [context, latents]: to permute the context changes nothing, to change it does."""
    spec = ResamplerSpec(latents=3, depth=2, heads=2)
    bind, found = helpers.split(lambda draw: spec.build(Source(12, 5), WIDTH, scheme("clip", WIDTH, 2), draw))
    params = helpers.random_params(found)
    run = jax.jit(lambda tokens: bind(params)(tokens))
    x = np.random.default_rng(0).normal(size=(4, 5, 12)).astype(np.float32)
    valid = jnp.arange(5) < jnp.array([[5], [3], [1], [4]])
    tokens = Tokens(jnp.asarray(x), valid=valid, segments=(("image", 5),))
    out = run(tokens)
    assert out.x.shape == (4, 3, WIDTH) and out.valid is None and out.segments == (("image", 3),)
    order = np.array([4, 2, 0, 1, 3])
    turned = run(tokens.replace(x=tokens.x[:, order], valid=valid[:, order]))
    np.testing.assert_allclose(turned.x, out.x, atol=2e-5)
    padding = run(tokens.replace(x=jnp.where(valid[..., None], tokens.x, 9.0)))
    np.testing.assert_array_equal(padding.x, out.x)
    changed = run(tokens.replace(x=tokens.x.at[:, 0].add(1.0)))
    assert np.all(np.max(np.abs(changed.x - out.x), axis=(1, 2)) > 1e-3)


EDGES = [dict(), dict(type="linear", position="learned"), dict(type="resampler", latents=3, depth=1, heads=2)]


@pytest.mark.parametrize("edge", EDGES)
def test_a_prefix_has_the_length_that_its_edge_gives(edge):
    model, batch = helpers.build(reader(edge)), helpers.batch(2)
    length = 3 if edge.get("type") == "resampler" else 1 + helpers.PATCHES
    out = shapes(model, batch, "caption.tokens", "caption.logits")
    assert out["caption.tokens"].x.shape == (2, length + helpers.LENGTH, WIDTH)
    assert out["caption.logits"].shape == (2, helpers.LENGTH, helpers.VOCAB)
    assert model.spec.length("caption") == length + helpers.LENGTH


def test_positions_are_kept_restarted_or_dropped():
    rotary = dict(rope=100.0)
    for how in ("keep", "restart", "drop"):
        towers = reader(dict(position=how), embed=dict(position="none"), **rotary)
        model = helpers.build(towers)
        if how == "keep":  # two axes of an image, one of a text
            with pytest.raises(ValueError, match=r"positions of \[1, 2\] axes are joined"):
                shapes(model, helpers.batch(2), "caption.logits")
            continue
        out = helpers.forward(model, "caption.tokens")(helpers.random_params(model), helpers.batch(2))
        pos = np.asarray(out["caption.tokens"].pos)[0, : 1 + helpers.PATCHES, 0]
        np.testing.assert_array_equal(pos, np.arange(5) if how == "restart" else 0)


def test_items_become_one_sequence_and_words_see_the_last_image():
    """Flamingo: two images in a document, and every word looks at one of them, or at none."""
    towers = helpers.coca()
    towers["caption"]["attends"] = dict(image=dict(type="resampler", latents=3, depth=1, heads=2, fold=True))
    model, batch = helpers.build(towers), helpers.batch(3)
    params = helpers.random_params(model)
    media = jnp.array([[0, 0, 1, 1, 1, 2, 2, 2]] * 3)
    images = np.random.default_rng(1).normal(size=(3, 2, PIXELS, PIXELS, 3)).astype(np.float32)
    run = helpers.forward(model, "caption.logits")
    full = lambda images, **more: np.asarray(
        run(params, batch | dict(image=images, text_media=media) | more)["caption.logits"]
    )
    base = full(images)
    first, second = images.copy(), images.copy()
    first[:, 0] += 1.0
    second[:, 1] += 1.0
    differs = lambda other: np.abs(other - base).max(axis=(0, 2)) > 1e-5
    np.testing.assert_array_equal(differs(full(second)), media[0] == 2)
    np.testing.assert_array_equal(differs(full(first)), media[0] >= 1)  # self attention passes it on
    there = jnp.array([[True, False]] * 3)
    missing = full(images, image_there=there)
    np.testing.assert_array_equal(full(second, image_there=there), missing)


def test_folded_items_show_a_medium_each():
    tokens = Tokens(jnp.arange(24.0).reshape(4, 3, 2), segments=(("image", 3),))
    out = folded(tokens, 2, jnp.array([[True, True], [True, False]]))
    assert out.x.shape == (2, 6, 2) and out.segments == (("image", 6),)
    np.testing.assert_array_equal(out.shows, [[1, 1, 1, 2, 2, 2]] * 2)
    np.testing.assert_array_equal(out.valid, [[True] * 6, [True] * 3 + [False] * 3])


def test_tokens_of_the_batch_stand_for_running_a_tower():
    model, batch = helpers.build(helpers.coca()), helpers.batch(4)
    params = helpers.random_params(model)
    whole = helpers.forward(model, "image.tokens", "caption.logits", "image.pooled")(params, batch)
    brought = {name: a for name, a in batch.items() if name != "image"} | {"image.tokens": whole["image.tokens"]}
    out = helpers.forward(model, "caption.logits", "image.pooled")(params, brought)
    for name, value in out.items():
        np.testing.assert_allclose(value, whole[name], atol=1e-6)


def test_a_cut_edge_is_a_tower_without_it():
    """BLIP's text tower, once with and once without the image."""
    towers = helpers.coca()
    model, batch = helpers.build(towers), helpers.batch(4)
    params = helpers.random_params(model)
    run = jax.jit(lambda b: model(params, b, frozenset({"caption.tokens"}), cuts=("caption<image",)))
    with jax.set_mesh(helpers.mesh()):
        alone, other = run(batch), run(batch | dict(image=batch["image"] + 1.0))
    np.testing.assert_array_equal(alone["caption.tokens"].x, other["caption.tokens"].x)
    text = {name: a for name, a in batch.items() if name != "image"}
    with jax.set_mesh(helpers.mesh()):  # the image is not even asked for
        np.testing.assert_array_equal(run(text)["caption.tokens"].x, alone["caption.tokens"].x)
    seen = helpers.forward(model, "caption.tokens")(params, batch)["caption.tokens"].x
    assert np.max(np.abs(seen - alone["caption.tokens"].x)) > 0.05
    with pytest.raises(ValueError, match="no edge 'caption<sound' to cut: caption<image, caption<text"):
        model(params, batch, frozenset({"caption.tokens"}), cuts=("caption<sound",))


@pytest.mark.parametrize("routes", [(), (("image", 0), ("text", 1))])
def test_a_condition_modulates_each_segment(routes):
    """DiT and MMDiT: a label tower conditions every layer and the final norm, by its segment."""
    label = helpers.text(embed=dict(input="label", length=1, vocab_size=5), pool="mean", head="none")
    adaln = dict(gate="adaln", condition_width=12, final_adaln=True, final_routes=routes, routes=routes)
    towers = dict(label=label, image=helpers.image(), joint=helpers.text(pool="none", **adaln))
    towers["joint"] |= dict(reads=dict(image={}), condition=dict(label=dict(type="linear")))
    model, batch = helpers.build(towers), helpers.batch(4) | dict(label=np.array([[0], [1], [2], [3]], np.int32))
    params = helpers.random_params(model)
    run, name = helpers.forward(model, "joint.tokens"), "joint.tokens"
    base = run(params, batch)[name].x
    other = run(params, batch | dict(label=np.array([[0], [1], [2], [4]], np.int32)))[name].x
    assert np.abs(other - base).max(axis=(1, 2))[:3].max() == 0 and np.abs(other - base)[3].max() > 1e-3
    if routes:
        final = params["joint"]["trunk"]["final_modulation"]
        final["expert1"]["kernel"] = final["expert1"]["kernel"] + 1.0
        moved = np.abs(run(params, batch)[name].x - base).max(axis=(0, 2)) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(len(moved)) > helpers.PATCHES)
    with pytest.raises(ValueError, match="set the tower's `condition`"):
        free = helpers.build({"joint": helpers.text(pool="none", **adaln | dict(routes=(), final_routes=()))})
        shapes(free, batch, "joint.tokens")


def test_queries_need_no_input_and_can_keep_apart():
    """BLIP-2's Q-Former: learned queries and a text in one tower, which see each other or do not."""
    query = dict(embed=dict(type="query", count=3), trunk=presets.trunk(WIDTH, 0, 2, final_norm=False), heads={})
    joint = helpers.text(pool="none", embed=dict(causal=False)) | dict(reads=dict(query=dict()))
    model, batch = helpers.build(dict(query=query, joint=joint)), helpers.batch(4)
    params = helpers.random_params(model)
    run = helpers.forward(model, "joint.tokens")
    apart = dict(query_media=jnp.ones((4, 3)), text_media=jnp.full((4, helpers.LENGTH), 2))
    apart |= dict(query_shows=apart["query_media"], text_shows=apart["text_media"])
    changed = batch | dict(text=batch["text"][::-1], text_valid=batch["text_valid"][::-1])
    queries = lambda b: np.asarray(run(params, b)["joint.tokens"].x)[:, :3]
    assert np.abs(queries(batch) - queries(changed)).max() > 1e-3
    np.testing.assert_array_equal(queries(batch | apart), queries(changed | apart))


def test_a_batch_says_groups_and_positions():
    """A question that is seen whole, before an answer that is not: data, not code."""
    model, batch = helpers.build(dict(text=helpers.text(pool="none"))), helpers.batch(2)
    batch |= dict(text_valid=np.ones((2, helpers.LENGTH), bool))
    params, run = helpers.random_params(model), helpers.forward(model, "text.tokens")
    tokens = lambda b: np.asarray(run(params, b)["text.tokens"].x)
    group = dict(text_group=jnp.array([[0, 0, 0, 1, 1, 1, 1, 1]] * 2))
    other = batch | dict(text=np.where(np.arange(helpers.LENGTH) == 2, 7, batch["text"]))
    seen = np.abs(tokens(batch | group) - tokens(other | group)).max(axis=(0, 2)) > 0
    assert seen.all()
    assert not (np.abs(tokens(batch) - tokens(other)).max(axis=(0, 2)) > 0)[:2].any()
    order = jnp.broadcast_to(jnp.arange(helpers.LENGTH), (2, helpers.LENGTH))
    np.testing.assert_allclose(tokens(batch | dict(text_pos=order)), tokens(batch), atol=1e-6)
    assert np.abs(tokens(batch | dict(text_pos=order[:, ::-1])) - tokens(batch)).max() > 1e-3
    with pytest.raises(ValueError, match=r"text_group of the batch is \(2, 3\), the tokens are \(2, 8\)"):
        shapes(model, batch | dict(text_group=jnp.ones((2, 3))), "text.tokens")
