"""Every option of a sublayer computes the formula of its paper, written here in plain NumPy, and can be trained."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from xmodal.models.init import Draws
from xmodal.models.spec import Sublayer
from xmodal.models.tokens import Tokens
from xmodal.models.trunk import Trunk, TrunkSpec
from xmodal.paths import flatten_paths

WIDTH, ROWS, SEQ, CONTEXT, HEADS = 8, 3, 5, 4, 2
ROPE = 100.0


# ------------------------------------------------------------------------------------------- the formulas

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def norm(x, p, spec):
    if spec.norm == "ln":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + spec.norm_eps) * p["scale"] + p[
            "bias"
        ]
    scale = p["scale"] + (spec.norm == "rms1p")
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.norm_eps) * scale


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def rotate(x, pos, axis, axes):
    """Rotates one head [seq, dim] in the part that belongs to one axis of the positions."""
    dim = x.shape[-1] // axes
    out = x.copy()
    for i in range(dim // 2):
        a, b = axis * dim + i, axis * dim + i + dim // 2
        angle = pos * ROPE ** (-2 * i / dim)
        out[:, a] = x[:, a] * np.cos(angle) - x[:, b] * np.sin(angle)
        out[:, b] = x[:, b] * np.cos(angle) + x[:, a] * np.sin(angle)
    return out


def attention(x, p, spec, context, pos, mask):
    """One sample: x [seq, width], context [keys, width], pos [seq, axes], mask bool [seq, keys]."""
    q, k, v = linear(x, p["query"]), linear(context, p["key"]), linear(context, p["value"])
    dim, share = q.shape[-1] // spec.heads, spec.heads // (spec.kv_heads or spec.heads)
    heads = []
    for h in range(spec.heads):
        mine, theirs = slice(h * dim, (h + 1) * dim), slice(h // share * dim, (h // share + 1) * dim)
        qh, kh = q[:, mine], k[:, theirs]
        if spec.qk_norm:
            qh, kh = norm(qh, p["query_norm"], spec), norm(kh, p["key_norm"], spec)
        if spec.rope:
            for axis in range(pos.shape[-1]):
                qh, kh = (rotate(a, pos[:, axis], axis, pos.shape[-1]) for a in (qh, kh))
        logits = qh @ kh.T / np.sqrt(dim)
        logits = spec.softcap * np.tanh(logits / spec.softcap) if spec.softcap else logits
        weights = np.where(mask, np.exp(logits), 0.0)
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, theirs])
    y = np.concatenate(heads, axis=-1)
    return linear(norm(y, p["inner_norm"], spec) if spec.inner_norm else y, p["out"])


def mlp(x, p, spec):
    h = linear(x, p["fc1"])
    h = ACTIVATIONS[spec.act](linear(x, p["gate"])) * h if spec.glu else ACTIVATIONS[spec.act](h)
    return linear(norm(h, p["inner_norm"], spec) if spec.inner_norm else h, p["fc2"])


def residual(x, p, spec, context, pos, condition):
    """x [seq, width] -> [seq, width]."""
    h = x if spec.place == "post" else norm(x, p["norm"], spec)
    if spec.gate == "adaln":
        shift, scale, gate = np.split(linear(ACTIVATIONS["silu"](condition), p["modulation"]), 3)
        h = h * (1 + scale) + shift
    if spec.kind == "mlp":
        h = mlp(h, p["mlp"], spec)
    else:
        cross = spec.kind == "cross"
        mask = np.ones((SEQ, CONTEXT)) if cross else np.tri(SEQ)
        h = attention(h, p["attn"], spec, context if cross else h, pos, mask.astype(bool))
    h = norm(h, p["after"], spec) if spec.place == "sandwich" else h
    gates = dict(none=1.0, tanh=np.tanh(p.get("gate", 0.0)), layerscale=p.get("gate"))
    h = h * (gate if spec.gate == "adaln" else gates[spec.gate])
    return norm(x + h, p["norm"], spec) if spec.place == "post" else x + h


# ------------------------------------------------------------------------------------------- the options

ATTENTION = {
    "plain": dict(),
    "post": dict(place="post"),
    "sandwich": dict(place="sandwich"),
    "rms": dict(norm="rms"),
    "rms1p": dict(norm="rms1p", norm_eps=1e-3),
    "softcap": dict(softcap=0.7),
    "qk_norm": dict(qk_norm=True),
    "qk_norm_rms": dict(qk_norm=True, norm="rms"),
    "kv_heads": dict(heads=4, kv_heads=2),
    "softcap_kv_heads": dict(heads=4, kv_heads=1, softcap=1.0),
    "head_dim": dict(head_dim=6),
    "no_bias": dict(bias=False),
    "no_key_bias": dict(key_bias=False),
    "inner_norm": dict(inner_norm=True),
    "tanh": dict(gate="tanh"),
    "layerscale": dict(gate="layerscale"),
    "adaln": dict(gate="adaln"),
    "adaln_post": dict(gate="adaln", place="post"),
}
CASES = {f"self_{name}": dict(kind="self", heads=HEADS) | options for name, options in ATTENTION.items()}
CASES |= {
    f"cross_{name}": dict(kind="cross", heads=HEADS) | ATTENTION[name]
    for name in ("plain", "sandwich", "qk_norm", "kv_heads", "inner_norm", "tanh", "adaln")
}
CASES |= {
    "rope": dict(kind="self", heads=HEADS, rope=ROPE),
    "rope_grid": dict(kind="self", heads=HEADS, rope=ROPE),
    "rope_everything": dict(kind="self", heads=4, kv_heads=2, head_dim=4, rope=ROPE, qk_norm=True, softcap=2.0),
    "mlp_hidden": dict(kind="mlp", hidden=6), "mlp_glu": dict(kind="mlp", glu=True, act="silu", bias=False),
    "mlp_inner_norm": dict(kind="mlp", inner_norm=True), "mlp_post": dict(kind="mlp", place="post"),
    "mlp_glu_inner_norm": dict(kind="mlp", glu=True, inner_norm=True, norm="rms"),
    "mlp_layerscale": dict(kind="mlp", gate="layerscale"), "mlp_adaln": dict(kind="mlp", gate="adaln"),
} | {f"mlp_{act}": dict(kind="mlp", act=act) for act in ACTIVATIONS}  # fmt: skip
ZERO = "attn/key/bias"  # a softmax ignores what is common to all of its logits


def one_layer(*sublayers, depth=1, **options):
    spec = TrunkSpec(WIDTH, depth, (sublayers,), final_norm=False, scan=False, **options)
    context = WIDTH if any(s.kind == "cross" for s in sublayers) else 0
    return helpers.split(lambda draw: Trunk(spec, context_width=context, draw=draw))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stream(x=None, axes=1, **fields):
    x = random(ROWS, SEQ, WIDTH) if x is None else x
    pos = np.random.default_rng(2).integers(0, 9, (ROWS, x.shape[1], axes)).astype(np.int32)
    tokens = Tokens(x, group=np.ones(x.shape[:2], np.int32), pos=pos, segments=(("text", x.shape[1]),))
    return tokens.replace(**fields)


def context(**fields):
    return Tokens(random(ROWS, CONTEXT, WIDTH, seed=1), segments=(("image", CONTEXT),), **fields)


@pytest.mark.parametrize("name", CASES)
def test_options_compute_their_formula_and_receive_gradients(name):
    spec = Sublayer(**CASES[name])
    adaln = spec.gate == "adaln"
    bind, shapes = one_layer(spec, condition_width=3 if adaln else 0)
    params = helpers.random_params(shapes)
    tokens = stream(axes=2 if name == "rope_grid" else 1)
    condition = random(ROWS, 3, seed=3) if adaln else None
    source = context() if spec.kind == "cross" else None

    def total(params):
        out = bind(params)(tokens, context=source, condition=condition).x
        return jnp.sum(jnp.sin(3 * out)), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    layer = jax.tree.map(lambda a: np.float64(a[0]), params["layers"]["0"]["0"])
    for row in range(ROWS):
        inputs = [np.float64(a[row]) for a in (tokens.x, context().x, tokens.pos, random(ROWS, 3, seed=3))]
        expected = residual(inputs[0], layer, spec, *inputs[1:])
        np.testing.assert_allclose(out[row], expected, rtol=1e-4, atol=1e-5)
    for path, grad in flatten_paths(grads).items():
        zero = path.endswith(ZERO) and not (spec.softcap or spec.rope or spec.qk_norm)
        assert (np.max(np.abs(grad)) > 1e-4) is not zero, path


def test_gated_layers_start_as_the_identity():
    gates = [Sublayer("self", heads=2, gate="tanh"), Sublayer("mlp", gate="adaln")]
    tokens, condition = stream(), random(ROWS, 3)
    for gate in gates:
        build = lambda draw, gate=gate: Trunk(
            TrunkSpec(WIDTH, 2, ((gate,),), final_norm=False, condition_width=3), draw=draw
        )
        out = jax.jit(lambda build=build: build(Draws(jax.random.key(0)))(tokens, condition=condition).x)()
        np.testing.assert_array_equal(out, tokens.x)


def test_rotary_attention_depends_on_distances_only():
    bind, shapes = one_layer(Sublayer("self", heads=2, rope=ROPE))
    params, tokens = helpers.random_params(shapes), stream()
    run = jax.jit(lambda pos: bind(params)(tokens.replace(pos=pos)).x)
    np.testing.assert_allclose(run(tokens.pos), run(tokens.pos + 11), atol=1e-5)
    assert np.max(np.abs(run(tokens.pos) - run(2 * tokens.pos))) > 1e-3
    with pytest.raises(ValueError, match="tokens carry none"):
        bind(params)(tokens.replace(pos=None))


def test_a_decoder_with_rotary_positions_keeps_those_of_the_text_it_reads():
    towers = helpers.coca()
    for sublayer in towers["caption"]["trunk"]["pattern"][0]:
        sublayer["rope"] = ROPE
    model = helpers.build(towers)
    params, batch = helpers.random_params(model), helpers.batch()
    logits = helpers.forward(model, "caption.logits")(params, batch)["caption.logits"]
    assert np.isfinite(logits).all()


# ------------------------------------------------------------------------------------------- routing by segment

SEGMENTS = (("image", 3), ("text", 2))


def expert(params, index):
    """The parameters of one expert, as a module without routes holds them."""
    if not isinstance(params, dict):
        return params
    if f"expert{index}" in params:
        return expert(params[f"expert{index}"], index)
    return {name: expert(value, index) for name, value in params.items()}


@pytest.mark.parametrize("options", [dict(glu=True, inner_norm=True), dict(place="sandwich", norm="rms")])
def test_each_segment_goes_through_its_own_expert(options):
    routed, shapes = one_layer(Sublayer("mlp", routes=(("text", 1),), **options))
    plain, _ = one_layer(Sublayer("mlp", **options))
    params, tokens = helpers.random_params(shapes), stream(segments=SEGMENTS)
    out = jax.jit(lambda params: routed(params)(tokens).x)(params)
    for index, part in enumerate((slice(0, 3), slice(3, 5))):
        alone = plain(expert(params, index))(stream(tokens.x[:, part])).x
        np.testing.assert_allclose(out[:, part], alone, atol=1e-6)


def test_attention_of_experts_mixes_their_segments():
    """With a causal mask the first segment sees only itself, so it is as if the second expert did not exist."""
    routed, shapes = one_layer(Sublayer("self", heads=2, inner_norm=True, routes=(("text", 1),)))
    plain, _ = one_layer(Sublayer("self", heads=2, inner_norm=True))
    params, tokens = helpers.random_params(shapes), stream(segments=SEGMENTS)
    out = jax.jit(lambda params: routed(params)(tokens).x)(params)
    np.testing.assert_allclose(out[:, :3], plain(expert(params, 0))(tokens).x[:, :3], atol=1e-6)

    def alike(params):
        """Both experts become the first."""
        if "expert0" in params:
            return dict(expert0=params["expert0"], expert1=params["expert0"])
        return {k: alike(v) if isinstance(v, dict) else v for k, v in params.items()}

    same = routed(alike(params))(tokens).x
    np.testing.assert_allclose(same, plain(expert(params, 0))(tokens).x, atol=1e-6)
    assert np.max(np.abs(same - out)[:, 3:]) > 1e-3

    grads = jax.grad(lambda params: jnp.sum(jnp.sin(routed(params)(tokens).x)))(params)
    for path, grad in flatten_paths(grads).items():
        assert (np.max(np.abs(grad)) > 1e-4) is not ("/key/" in path and path.endswith("expert0/bias")), path


def test_cross_attention_routes_its_queries_only():
    bind, shapes = one_layer(Sublayer("cross", heads=2, routes=(("text", 1),)))
    attention = shapes["layers"]["0"]["0"]["attn"]
    assert attention["query"].keys() == attention["out"].keys() == {"expert0", "expert1"}
    assert attention["key"].keys() == attention["value"].keys() == {"kernel", "bias"}
    out = bind(helpers.random_params(shapes))(stream(segments=SEGMENTS), context=context()).x
    assert np.isfinite(out).all()


# ------------------------------------------------------------------------------------------- media


def test_text_sees_only_its_medium_and_nothing_without_one():
    bind, shapes = one_layer(Sublayer("cross", heads=2))
    params = helpers.random_params(shapes)
    looks_at = np.tile(np.array([0, 1, 1, 2, 2], np.int32), (ROWS, 1))
    shows = np.tile(np.array([1, 1, 2, 2], np.int32), (ROWS, 1))
    tokens, media = stream(media=looks_at), context(shows=shows)
    run = jax.jit(lambda x: bind(params)(tokens, context=media.replace(x=x)).x)
    out = run(media.x)
    np.testing.assert_array_equal(out[:, 0], tokens.x[:, 0])
    assert np.all(np.any(out[:, 1:] != tokens.x[:, 1:], axis=-1))

    changed = run(media.x + (shows == 2)[..., None])
    assert np.any(out != changed, axis=(0, 2)).tolist() == [False, False, False, True, True]


def test_decoding_keeps_to_the_medium():
    spec = TrunkSpec(WIDTH, 2, ((Sublayer("cross", heads=2), Sublayer("self", heads=2)),))
    bind, shapes = helpers.split(lambda draw: Trunk(spec, context_width=WIDTH, draw=draw))
    trunk = bind(helpers.random_params(shapes))
    looks_at = np.tile(np.array([0, 1, 1, 2, 2], np.int32), (ROWS, 1))
    tokens = stream(media=looks_at)
    media = context(shows=np.tile(np.array([1, 1, 2, 2], np.int32), (ROWS, 1)), valid=np.ones((ROWS, CONTEXT), bool))
    whole = trunk(tokens, context=media).x
    cache = trunk.init_cache(ROWS, SEQ, CONTEXT, jnp.float32)
    run = jax.jit(lambda tokens, cache, context=None: trunk(tokens, cache=cache, context=context))
    valid = np.ones((ROWS, SEQ), bool)
    for start, end in ((0, 1), (1, 3), (3, 5)):  # the first call brings the media, later ones bring several tokens
        fields = (a[:, start:end] for a in (tokens.x, valid, tokens.group, tokens.pos, looks_at))
        new = Tokens(*fields, segments=(("text", end - start),))
        out, cache = run(new, cache, media) if start == 0 else run(new, cache)
        np.testing.assert_allclose(out.x, whole[:, start:end], atol=1e-5)
