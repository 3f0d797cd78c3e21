"""Scan, rematerialisation, random keys and precision change nothing that they should not change."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models.attention import attend
from xmodal.models.init import Draws, scheme
from xmodal.models.patches import random_patches
from xmodal.models.spec import Flow, Sublayer
from xmodal.models.sublayer import Residual
from xmodal.models.tokens import Tokens
from xmodal.models.trunk import Trunk, TrunkSpec

SELF, CROSS, MLP = Sublayer("self", heads=2), Sublayer("cross", heads=2, gate="tanh"), Sublayer("mlp", hidden=16)


def inputs(rows=6, seq=4, width=8):
    rng = np.random.default_rng(1)
    x = lambda *shape: jnp.asarray(rng.normal(size=(rows, *shape)), jnp.float32)
    tokens = Tokens(x(seq, width), group=jnp.ones((rows, seq), jnp.int32), segments=(("text", seq),))
    return tokens, Tokens(x(3, width), segments=(("image", 3),))


def drop(sublayer):
    return Sublayer(**(vars(sublayer) | dict(dropout=0.2)))


def stack(scan=True, remat="none"):
    pattern = ((drop(SELF), MLP), (SELF, CROSS, drop(MLP)))  # a pattern of two unlike layers, repeated
    spec = TrunkSpec(width=8, depth=4, pattern=pattern, drop_path=0.3, scan=scan, remat=remat)
    return helpers.split(lambda draw: Trunk(spec, context_width=8, draw=draw))


def value_and_grads(bind, params, keys):
    tokens, context = inputs()

    def total(params, x):
        out = bind(params)(tokens.replace(x=x), context=context, keys=keys)
        return jnp.sum(jnp.sin(out.x)), out.x

    (_, out), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, tokens.x)
    return dict(out=out, grads=grads)


@pytest.fixture(scope="module")
def scanned():
    bind, shapes = stack()
    params, keys = helpers.random_params(shapes), helpers.sample_keys(6)
    return params, keys, value_and_grads(bind, params, keys)


@pytest.mark.parametrize("scan,remat", [(True, "full"), (False, "none"), (False, "dots")])
def test_scan_and_rematerialisation_change_nothing(scanned, scan, remat):
    params, keys, expected = scanned
    bind, shapes = stack(scan, remat)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    helpers.assert_trees_close(value_and_grads(bind, params, keys), expected)


def test_layers_of_a_stack_start_from_different_draws():
    apply_init = jax.jit(lambda: nnx.state(Trunk(TrunkSpec(8, 3, ((MLP,),)), draw=Draws(jax.random.key(0)))))
    kernel = np.asarray(apply_init()["layers"]["0"]["0"]["mlp"]["fc1"]["kernel"][...])
    assert kernel.shape == (3, 8, 16)
    assert np.abs(np.corrcoef(kernel.reshape(3, -1)) - np.eye(3)).max() < 0.4


def test_a_wrong_trunk_is_refused():
    build = lambda spec, context: helpers.split(lambda draw: Trunk(spec, context_width=context, draw=draw))
    with pytest.raises(ValueError, match="depth 3 is not a multiple of the 2 layers"):
        build(TrunkSpec(8, 3, ((MLP,), (MLP,))), 0)
    with pytest.raises(ValueError, match="needs something to attend to"):
        build(TrunkSpec(8, 1, ((CROSS,),)), 0)
    with pytest.raises(ValueError, match="heads that divide the width 8, got 3"):
        build(TrunkSpec(8, 1, ((Sublayer("self", heads=3),),)), 0)


# ------------------------------------------------------------------------------------------- random keys


def everything_random():
    noisy = dict(dropout=0.2, attn_dropout=0.2, drop_path=0.3)
    return helpers.coca(
        image_changes=dict(embed=dict(patch_dropout=0.5)), text_changes=dict(embed=dict(dropout=0.2)), **noisy
    )


def test_keys_of_several_uses_are_those_of_each():
    keys, names = helpers.sample_keys(), ["0/0", "0/1", "1/0"]
    each = key_tools.fold_each(keys, names)
    assert each.shape == (3, 8)
    for own, name in zip(each, names):
        np.testing.assert_array_equal(jax.random.key_data(own), jax.random.key_data(key_tools.fold(keys, name)))


def test_randomness_belongs_to_the_sample():
    model = helpers.build(everything_random())
    params, batch, keys = helpers.random_params(model), helpers.batch(), helpers.sample_keys()
    want = ("image.pooled", "text.pooled", "caption.logits")
    forward = helpers.forward(model, *want)
    whole, again = forward(params, batch, keys), forward(params, batch, keys)
    jax.tree.map(np.testing.assert_array_equal, whole, again)

    chosen = np.array([5, 2])  # in another batch, at another place
    part = forward(params, helpers.rows(batch, chosen), keys[chosen])
    helpers.assert_trees_close(part, helpers.rows(whole, chosen))

    other = forward(params, batch, helpers.sample_keys(seed=1))
    fixed = forward(params, batch)
    for name in want:
        for different in (other, fixed):
            assert np.all(np.any(np.abs(different[name] - whole[name]) > 1e-3, axis=-1)), name


def test_equal_samples_with_different_keys_differ():
    model = helpers.build(everything_random())
    same = helpers.rows(helpers.batch(), np.zeros(8, int))
    out = helpers.forward(model, "text.pooled")(helpers.random_params(model), same, helpers.sample_keys())
    assert len(np.unique(np.round(out["text.pooled"], 4), axis=0)) == 8


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.ones((64, 200))
    out = np.asarray(key_tools.dropout(x, 0.3, helpers.sample_keys(64)))
    np.testing.assert_allclose(np.unique(out), [0.0, 1 / 0.7], rtol=1e-6)
    assert abs(np.mean(out == 0) - 0.3) < 0.02  # five deviations
    shares = np.mean(out == 0, axis=1)
    assert np.std(shares) < 2 * np.sqrt(0.21 / 200)
    assert key_tools.dropout(x, 0.3, None) is x


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_dropout_of_attention_weights_keeps_the_mean_and_never_shows_a_hidden_key(softcap):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.float32(np.repeat(rng.normal(size=(1, 3, 2, 4)), 4000, axis=0)) for _ in range(3))
    mask = jnp.array([[True, False, False], [True, True, False], [True, True, True]])[None, None]
    exact = attend(q, k, v, mask, softcap)
    noisy = jax.jit(attend, static_argnums=(4, 5))(q, k, v, mask, softcap, 0.3, helpers.sample_keys(4000))
    np.testing.assert_allclose(np.mean(noisy, axis=0), exact[0], atol=0.08)  # some five deviations
    kept = np.isclose(noisy[:, 0, 0, 0], exact[0, 0, 0, 0] / 0.7, rtol=1e-4)  # the first query has one key
    assert abs(kept.mean() - 0.7) < 0.04 and np.all(noisy[~kept, 0, 0, 0] == 0)
    assert len(np.unique(np.round(noisy[:, 2, 0, 0], 4))) == 8, "each of three keys is there or not"
    np.testing.assert_array_equal(attend(q, k, v, mask, softcap, 0.3, None), exact)


@pytest.mark.parametrize(
    "depth,sublayers,wanted",
    [(3, 1, [1 / 8, 1 / 8, 3 / 8, 3 / 8]), (2, 2, [1 / 4] * 4)],
    ids=["layers", "sublayers"],
)
def test_stochastic_depth_rises_linearly_and_draws_each_sublayer_anew(depth, sublayers, wanted):
    """Rates rise from 0 to 1/2, so equal samples end in four places, with known shares."""
    layer = (Sublayer("mlp", hidden=4),) * sublayers
    bind, shapes = helpers.split(lambda draw: Trunk(TrunkSpec(4, depth, (layer,), drop_path=0.5), draw=draw))
    tokens = Tokens(jnp.ones((2000, 1, 4)) * jnp.arange(4.0), segments=(("x", 1),))
    run = jax.jit(lambda params, keys: bind(params)(tokens, keys=keys).x[:, 0])
    out = run(helpers.random_params(shapes), helpers.sample_keys(2000))
    _, counts = np.unique(np.round(out, 4), axis=0, return_counts=True)
    np.testing.assert_allclose(sorted(counts / 2000), wanted, atol=0.05)


def test_stochastic_depth_drops_whole_samples_and_rescales_the_rest():
    bind, shapes = helpers.split(
        lambda draw: Residual(Sublayer("mlp"), 4, context_width=0, condition_width=0, scheme=scheme("clip", 4, 1),
                              draw=draw)
    )  # fmt: skip
    layer, x = bind(helpers.random_params(shapes)), np.random.default_rng(0).normal(size=(64, 3, 4)).astype(np.float32)
    flow = Flow((("x", 3),))
    full, _ = layer(x, flow)
    kept, _ = layer(x, flow, keys=helpers.sample_keys(64), drop_path=0.5)
    dropped = np.all(np.asarray(kept == x), axis=(1, 2))
    assert 15 < dropped.sum() < 49
    np.testing.assert_allclose((kept - x)[~dropped], 2 * (full - x)[~dropped], rtol=1e-4, atol=1e-5)


def test_patch_dropout_keeps_the_order():
    rows, patches = 400, 10
    kept = np.asarray(random_patches(helpers.sample_keys(rows), patches, 0.6))
    assert kept.shape == (rows, 4)
    assert np.all(np.diff(kept, axis=1) > 0)
    share = np.bincount(kept.ravel(), minlength=patches) / rows
    np.testing.assert_allclose(share, 0.4, atol=0.12)  # each patch alike, within five deviations
    assert random_patches(helpers.sample_keys(rows), patches, 0.99).shape[1] == 1


def test_patch_dropout_shortens_the_sequence_only_in_training():
    towers = helpers.clip(image_changes=dict(embed=dict(patch_dropout=0.5)))
    model, batch = helpers.build(towers), helpers.batch()
    params = helpers.random_params(model)
    tokens = lambda keys: helpers.forward(model, "image.tokens")(params, batch, keys)["image.tokens"]
    assert tokens(None).x.shape[1] == 1 + helpers.PATCHES and tokens(None).index is None
    train = tokens(helpers.sample_keys())
    assert train.x.shape[1] == 1 + helpers.PATCHES // 2
    assert train.segments == (("image", 1 + helpers.PATCHES // 2),)
    assert train.pos.shape[:2] == train.x.shape[:2]


# ------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("head", ["linear", "tied"])
def test_bfloat16_computes_coarsely_but_keeps_parameters_and_outputs_fine(head):
    names = ("text.tokens", "text.pooled", "text.logits")
    batch, outputs = helpers.batch(), {}
    for dtype in ("float32", "bfloat16"):
        model = helpers.build(dict(text=helpers.text(head=head)), dtype)
        params = helpers.random_params(model)
        assert {a.dtype.name for a in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))} == {"float32"}

        def total(params, model=model):
            out = model(params, batch, frozenset(names))
            return sum(jnp.sum(jnp.sin(out[name])) for name in names[1:]), out

        with jax.set_mesh(helpers.mesh()):
            (_, outputs[dtype]), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        assert {a.dtype.name for a in jax.tree.leaves(grads)} == {"float32"}
        assert outputs[dtype]["text.tokens"].x.dtype == dtype
    for name in names[1:]:
        fine, coarse = outputs["float32"][name], outputs["bfloat16"][name]
        assert coarse.dtype == jnp.float32, name
        error = np.sqrt(np.mean(np.square(fine - coarse)) / np.mean(np.square(fine)))
        assert 1e-5 < error < 0.03, name


@pytest.mark.parametrize("head", ["linear", "tied"])
def test_outputs_are_not_rounded_to_bfloat16(head):
    """Op by op, because a compiled program may keep more digits than it promises."""
    model = helpers.build(dict(text=helpers.text(head=head)), "bfloat16")
    params = helpers.random_params(model)
    if head == "linear":
        params["text"]["head"]["bias"] *= 0.0  # adding it in float32 would hide a rounded product
    tower = model.bind(params).text
    tokens = Tokens(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, helpers.WIDTH)), jnp.bfloat16),
                    segments=(("text", 3),))  # fmt: skip
    for out in (tower.read(name, tokens, {}) for name in ("logits", "pooled")):
        assert out.dtype == jnp.float32
        assert np.any(out != out.astype(jnp.bfloat16))


def test_image_towers_embed_in_bfloat16_too():
    model = helpers.build(dict(image=helpers.image(style="siglip", embed_dim=8)), "bfloat16")
    out = helpers.forward(model, "image.tokens", "image.pooled")(helpers.random_params(model), helpers.batch())
    assert out["image.tokens"].x.dtype == jnp.bfloat16
    assert out["image.pooled"].dtype == jnp.float32
