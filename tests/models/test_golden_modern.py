"""The modern text tower agrees with Qwen3's layers: golden file, see tests/golden/README.md."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from test_golden import assert_close, load, part

from xmodal.interop.tables import Entry, linear, to_params, to_weights
from xmodal.models import presets

WIDTH, INNER, HEADS, KV_HEADS, DIM, DEPTH = 32, 56, 4, 2, 8, 2


def table():
    """Names of the reference and paths here; the tower has no projection."""
    scale = lambda name, path, width, layer=None: Entry(f"{name}.weight", f"text/{path}/scale", (width,), layer=layer)
    rows = [Entry("embed_tokens.weight", "text/embed/embedding", (99, WIDTH)), scale("norm", "trunk/final_norm", WIDTH)]
    attention, mlp = "trunk/layers/0/0", "trunk/layers/0/1"
    for i in range(DEPTH):
        layer = f"layers.{i}"
        maps = [("q_proj", "query", WIDTH, HEADS * DIM), ("k_proj", "key", WIDTH, KV_HEADS * DIM),
                ("v_proj", "value", WIDTH, KV_HEADS * DIM), ("o_proj", "out", HEADS * DIM, WIDTH)]  # fmt: skip
        for theirs, ours, *sizes in maps:
            path = f"text/{attention}/attn/{ours}"
            rows += linear(f"{layer}.self_attn.{theirs}", path, *sizes, bias=False, layer=i)
        rows += [
            scale(f"{layer}.self_attn.q_norm", f"{attention}/attn/query_norm", DIM, i),
            scale(f"{layer}.self_attn.k_norm", f"{attention}/attn/key_norm", DIM, i),
            scale(f"{layer}.input_layernorm", f"{attention}/norm", WIDTH, i),
            scale(f"{layer}.post_attention_layernorm", f"{mlp}/norm", WIDTH, i),
        ]
        maps = (
            ("up_proj", "fc1", WIDTH, INNER),
            ("gate_proj", "gate", WIDTH, INNER),
            ("down_proj", "fc2", INNER, WIDTH),
        )
        for theirs, ours, *sizes in maps:
            rows += linear(f"{layer}.mlp.{theirs}", f"text/{mlp}/mlp/{ours}", *sizes, bias=False, layer=i)
    return rows


def test_outputs_loss_and_gradients_agree_with_the_reference():
    golden = load("qwen3")
    inputs, weights = part(golden, "inputs/"), part(golden, "weights/")
    tower = presets.modern_text_tower(
        WIDTH, DEPTH, HEADS, causal=True, qk_norm=True, kv_heads=KV_HEADS, hidden=INNER, norm_eps=1e-3,
        embed=dict(vocab_size=99, length=12),
    )  # fmt: skip
    model, params = helpers.build(dict(text=tower)), to_params(weights, table())
    batch = dict(text=inputs["input_ids"], text_valid=inputs["attention_mask"].astype(bool))

    def loss(params):
        tokens = model(params, batch, frozenset({"text.tokens"}))["text.tokens"].x
        return jnp.mean(tokens * inputs["tokens_weight"]), tokens

    (value, tokens), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    valid = batch["text_valid"][..., None]  # what is computed on padding means nothing
    assert_close(value, golden["loss"], "loss")
    assert_close(tokens * valid, golden["outputs/tokens"] * valid, "tokens")
    grads, wanted = to_weights(grads, table()), part(golden, "grads/")
    assert grads.keys() == wanted.keys() == weights.keys()
    for name in wanted:
        assert_close(grads[name], wanted[name], name)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(params), "every parameter, and none that it has not"


def test_a_tower_that_sees_everything_is_pooled_by_its_mean():
    embed = dict(vocab_size=helpers.VOCAB, length=helpers.LENGTH)
    tower = presets.modern_text_tower(**helpers.SIZE, embed_dim=8, qk_norm=True, embed=embed)
    assert (tower["heads"]["pooled"]["pool"], tower["trunk"]["pattern"][0][1]["hidden"]) == ("mean", 64)
    assert presets.modern_text("B")["trunk"]["pattern"][0][1]["hidden"] == 1408
    assert presets.modern_text_tower(**helpers.SIZE, causal=True)["heads"]["pooled"]["pool"] == "eos"
    model, batch = helpers.build(dict(text=tower)), helpers.batch()
    params = helpers.random_params(model)
    assert not [path for path in map(str, jax.tree_util.tree_leaves_with_path(params)) if "bias" in path]
    run = helpers.forward(model, "text.tokens", "text.pooled")
    got = run(params, batch)
    longer = {**batch, "text": np.where(batch["text_valid"], batch["text"], 9)}  # other padding changes nothing
    np.testing.assert_allclose(run(params, longer)["text.pooled"], got["text.pooled"], rtol=1e-5, atol=1e-6)
    mean = np.stack([x[valid].mean(0) for x, valid in zip(np.asarray(got["text.tokens"].x), batch["text_valid"])])
    np.testing.assert_allclose(got["text.pooled"], mean @ params["text"]["projection"]["kernel"], rtol=1e-4, atol=1e-5)
    last = np.array(batch["text"])
    last[:, 3] = 5
    changed = run(params, batch | dict(text=last))["text.tokens"].x[:, 1] - got["text.tokens"].x[:, 1]
    assert np.max(np.abs(changed)) > 1e-3, "a token sees those after it"
