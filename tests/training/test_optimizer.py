"""Optimizers against plain optax, and settings by path: freezing, multipliers, decay, clipping, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal.config import ConfigError
from xmodal.configs import base
from xmodal.paths import flatten_paths, map_paths
from xmodal.training.optimizer import ema_update, make_optimizer

LR = 0.01
QUERY = "trunk/layers/0/0/attn/query"
# More layers than rows and columns, so that no axis can stand in for another.
SHAPES = {
    "image/embed/kernel": (4, 6),
    f"image/{QUERY}/bias": (9, 8),
    f"image/{QUERY}/kernel": (9, 6, 8),
    "image/trunk/final_norm/scale": (6,),
    "text/embed/embedding": (160, 130),  # large enough for Adafactor to factor
    f"text/{QUERY}/kernel": (8, 6),
    "objectives/contrastive/logit_scale": (),
}


def tree(values):
    """Nests {path: leaf}."""
    nested = {}
    for path, leaf in values.items():
        *parents, last = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return tree({path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()})


PARAMS, GRADS = random_tree(0), [random_tree(i) for i in (1, 2, 3)]


def options(**changes):
    section = base.get_config().optimizer
    section.update({"rules": (), "clip_norm": 0.0, **changes})
    return section


def plan(params=PARAMS, schedule=None, **changes):
    return make_optimizer(options(**changes), schedule or optax.constant_schedule(LR), params)


def run(tx, params=PARAMS, grads=GRADS):
    """Returns (parameters, state) after one step for each of `grads`."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def assert_same(got, wanted):
    got, wanted = flatten_paths(got), flatten_paths(wanted)
    assert got.keys() == wanted.keys()
    for path in got:
        np.testing.assert_allclose(got[path], wanted[path], rtol=1e-5, atol=1e-7, err_msg=path)


RISE = optax.linear_schedule(0.0, LR, 3)
REFERENCES = {
    "adamw": lambda: optax.adamw(RISE, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2),
    "lion": lambda: optax.lion(RISE, b1=0.9, b2=0.98, weight_decay=0.2),
    "adafactor": lambda: optax.chain(
        optax.adafactor(None, multiply_by_parameter_scale=False, clipping_threshold=None, momentum=0.9),
        optax.scale(-1),
        optax.add_decayed_weights(0.2),
        optax.scale_by_learning_rate(RISE),
    ),
    "sgd": lambda: optax.chain(optax.add_decayed_weights(0.2), optax.sgd(RISE, momentum=0.95)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_without_rules_it_is_plain_optax(name):
    change = {"b2": 1.0} if name == "adafactor" else {}  # optax does not bound the decay
    assert_same(run(plan(schedule=RISE, name=name, **change).tx)[0], run(REFERENCES[name]())[0])


def test_clipping_is_plain_optax_too():
    reference = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(1.0))
    clipped, _ = reference.update(GRADS[0], reference.init(PARAMS))
    _, state = run(plan(clip_norm=0.5).tx, grads=GRADS[:1])
    moments = {p.partition("/mu/")[2]: m for p, m in flatten_paths(state).items() if "/mu/" in p}
    assert_same(moments, {path: -0.1 * g for path, g in flatten_paths(clipped).items()})


def test_muon_is_optax_on_each_matrix_and_adamw_on_the_rest():
    muon = optax.contrib.muon(LR, beta=0.95, weight_decay=0.2, consistent_rms=0.2)
    made = plan(name="muon")
    params, state = run(made.tx)
    got = flatten_paths(params)
    grads = [flatten_paths(g) for g in GRADS]
    start = flatten_paths(PARAMS)

    text = f"text/{QUERY}/kernel"
    wanted, _ = run(muon, {"w": start[text]}, [{"w": g[text]} for g in grads])
    np.testing.assert_allclose(got[text], wanted["w"], rtol=1e-4, atol=1e-6)
    image = f"image/{QUERY}/kernel"
    for layer in (0, 8):
        wanted, _ = run(muon, {"w": start[image][layer]}, [{"w": g[image][layer]} for g in grads])
        np.testing.assert_allclose(got[image][layer], wanted["w"], rtol=1e-4, atol=1e-6)

    rest = [path for path in SHAPES if path not in (text, image)]
    wanted, _ = run(REFERENCE_REST, {p: start[p] for p in rest}, [{p: g[p] for p in rest} for g in grads])
    assert_same({p: got[p] for p in rest}, wanted)
    assert {r.example for r in made.rows if r.method == "muon"} == {text, image}
    second = {p for p in flatten_paths(state) if "/nu/" in p}
    assert len(second) == len(rest)  # Adam's second moments only where Adam is


def test_lamb_is_optax_on_each_layer_and_adamw_on_scalars():
    params, grads = LAYERS, [jax.tree.map(lambda x, i=i: jnp.sin(i + x), LAYERS) for i in (1, 2, 3)]
    got = flatten_paths(run(plan(params, schedule=RISE, name="lamb", clip_norm=0.0).tx, params, grads)[0])
    lamb = optax.lamb(RISE, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)
    start, grads = flatten_paths(params), [flatten_paths(g) for g in grads]
    scalar = "objectives/contrastive/logit_scale"
    wanted, _ = run(REFERENCES["adamw"](), {scalar: start[scalar]}, [{scalar: g[scalar]} for g in grads])
    assert_same({scalar: got.pop(scalar)}, wanted)
    for path in got:
        stack = "/layers/" in path
        for index in range(len(start[path])) if stack else [...]:
            wanted, _ = run(lamb, {"w": start[path][index]}, [{"w": g[path][index]} for g in grads])
            np.testing.assert_allclose(got[path][index], wanted["w"], rtol=1e-5, atol=1e-7, err_msg=f"{path} {index}")


REFERENCE_REST = optax.adamw(LR, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)


def test_adafactor_bounds_its_decay_and_factors():
    _, state = run(plan(name="adafactor", b2=0.0).tx, grads=GRADS[:2])
    state = flatten_paths(state)
    rows = next(v for p, v in state.items() if p.endswith("v_row/text/embed/embedding"))
    assert rows.shape == (130,)
    last = np.square(flatten_paths(GRADS[1])["text/embed/embedding"]).mean(axis=0)
    np.testing.assert_allclose(rows, last, rtol=1e-5)  # a bound of 0 forgets all but the last gradient


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "adafactor", "sgd", "muon"])
def test_each_optimizer_lowers_a_quadratic(name):
    shape = {"trunk": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}}
    target = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape) / x.size, shape)
    loss = lambda p: sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target)))
    tx = make_optimizer(options(name=name, weight_decay=0.0, momentum=0.8), optax.constant_schedule(0.05), shape).tx

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=60))(shape)
    assert float(loss(params)) < 0.05 * float(loss(shape))


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "adafactor", "sgd", "muon"])
def test_frozen_arrays_keep_their_bits_and_have_no_state(name):
    made = plan(name=name, clip_norm=1.0, rules=(("image/.*", {"freeze": True}),))
    broken = [{**g, "image": jax.tree.map(lambda x: x * np.nan, g["image"])} for g in GRADS]
    params, state = run(made.tx, grads=broken)
    for path, value in flatten_paths(params).items():
        assert np.isfinite(value).all(), path  # a frozen gradient does not reach the norm either
        same = np.array_equal(value, flatten_paths(PARAMS)[path])
        assert same == path.startswith("image/"), path
    paths = flatten_paths(state)
    assert not [path for path in paths if "image/" in path]
    assert [path for path in paths if path.endswith("text/embed/embedding")]
    assert flatten_paths(made.frozen) == {path: path.startswith("image/") for path in flatten_paths(PARAMS)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_clipping_sees_the_norm_of_all_that_is_trained(name):
    rules = (("image/embed/.*", {"freeze": True}), ("text/.*", {"lr": 0.5}))
    _, state = run(plan(name=name, clip_norm=0.5, rules=rules, momentum=0.9).tx, grads=GRADS[:1])
    moments = {p.partition("/mu/")[2]: m for p, m in flatten_paths(state).items() if "/mu/" in p}
    assert set(moments) == set(SHAPES) - {"image/embed/kernel"}
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1 * 0.5, rtol=1e-5)  # (1 - decay) * clip_norm


def test_multipliers_scale_the_step_and_its_decay():
    rules = ((r"text/.*", {"lr": 0.25}), (r".*/logit_scale", {"lr": 2, "weight_decay": 0}))
    moved = jax.tree.map(jnp.subtract, run(plan(rules=rules).tx, grads=GRADS[:1])[0], PARAMS)
    plain = jax.tree.map(jnp.subtract, run(plan().tx, grads=GRADS[:1])[0], PARAMS)
    no_decay = jax.tree.map(jnp.subtract, run(plan(weight_decay=0.0).tx, grads=GRADS[:1])[0], PARAMS)
    factor = lambda path: 0.25 if path.startswith("text/") else 1.0
    wanted = map_paths(lambda path, x: factor(path) * x, plain)
    wanted["objectives"] = jax.tree.map(lambda x: 2 * x, no_decay["objectives"])
    for path, value in flatten_paths(moved).items():
        np.testing.assert_allclose(value, flatten_paths(wanted)[path], rtol=1e-3, atol=1e-6, err_msg=path)


def test_the_first_rule_that_matches_decides_alone():
    first = (rf"image/{QUERY}/.*", {"weight_decay": 0.5})
    made = plan(rules=(first, *base.get_config().optimizer.rules))
    decays = {}
    zero = jax.tree.map(jnp.zeros_like, PARAMS)  # without a gradient, Adam only decays
    for path, after in flatten_paths(run(made.tx, grads=[zero])[0]).items():
        before = flatten_paths(PARAMS)[path]
        decays[path] = round(float(((before - after) / before / LR).mean()), 2)
    assert decays == {
        "image/embed/kernel": 0.2,
        f"image/{QUERY}/bias": 0.5,
        f"image/{QUERY}/kernel": 0.5,
        "image/trunk/final_norm/scale": 0.0,
        "text/embed/embedding": 0.2,
        f"text/{QUERY}/kernel": 0.2,
        "objectives/contrastive/logit_scale": 0.0,
    }


def test_rows_tell_what_is_trained_how():
    rules = (
        ("text/.*", {"freeze": True}),
        (r".*/(bias|scale|logit_scale)", {"weight_decay": 0.0, "lr": 0.1}),
    )
    rows = plan(name="muon", rules=rules).rows
    table = {(r.part, r.rule, r.arrays, r.params, r.method, r.lr, r.weight_decay) for r in rows}
    assert table == {
        ("image", "", 1, 24, "adamw", 1.0, 0.2),
        ("image", "", 1, 432, "muon", 1.0, 0.2),
        ("image", rules[1][0], 2, 78, "adamw", 0.1, 0.0),
        ("text", "text/.*", 2, 20848, "frozen", 0.0, 0.0),
        ("objectives", rules[1][0], 1, 1, "adamw", 0.1, 0.0),
    }


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "adafactor", "sgd", "muon"])
def test_state_is_shaped_without_arrays_and_named_by_path(name):
    shapes = jax.eval_shape(lambda: PARAMS)
    tx = make_optimizer(options(name=name), optax.constant_schedule(LR), shapes).tx
    abstract = flatten_paths(jax.eval_shape(tx.init, shapes))
    concrete = flatten_paths(jax.jit(tx.init)(PARAMS))
    assert {p: x.shape for p, x in abstract.items()} == {p: x.shape for p, x in concrete.items()}
    large = [path for path, leaf in abstract.items() if leaf.size > 3]  # not counters and constants
    assert large and all(path.endswith(tuple(f"/{p}" for p in SHAPES)) for path in large)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": "adamv"}, "optimizer.name: expected adamw, lamb, lion, adafactor, sgd, muon, got 'adamv'. Did you"),
        (
            {"rules": ((r"txt/embed/.*", {"lr": 0.1}),)},
            "rules[0]: 'txt/embed/.*' matches no parameter. The closest paths are text/embed/embedding",
        ),
        ({"rules": ((r"logit_scale", {}),)}, "a part of 'objectives/contrastive/logit_scale': add '.*'"),
        (
            {"rules": ((r"text/.*", {"wieght_decay": 0.1}),)},
            "optimizer.rules[0] ('text/.*'): unknown key 'wieght_decay'. Did you mean 'weight_decay'?",
        ),
        ({"rules": ((r"text/.*", {"lr": "low"}),)}, "('text/.*').lr: expected a number, got 'low' (str)"),
        ({"rules": ((r"text/.*", {}), (r"text/.*", {}))}, "optimizer.rules[1]: 'text/.*' is there twice"),
        ({"rules": ((r"text/(", {}),)}, "'text/(' is not a regular expression"),
        ({"rules": ("text/.*",)}, "optimizer.rules[0]: expected (path regex, dict("),
        ({"rules": ((r".*", {"freeze": True}),)}, "every parameter is frozen"),
    ],
)  # fmt: skip
def test_mistakes(changes, wanted):
    with pytest.raises(ConfigError) as error:
        plan(**changes)
    assert wanted in str(error.value)


def test_moving_average():
    params = {"w": jnp.float32(1.0)}
    first = ema_update({"w": jnp.float32(0.0)}, params, 0.999, jnp.int32(0))
    np.testing.assert_allclose(first["w"], 0.9, rtol=1e-6)  # the ramp: 1/10 of the start is kept
    late = ema_update({"w": jnp.float32(0.0)}, params, 0.999, jnp.int32(10**6))
    np.testing.assert_allclose(late["w"], 0.001, rtol=1e-3)
    same = ema_update(PARAMS, PARAMS, 0.99, jnp.int32(3))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(PARAMS)))


STACK = "trunk/layers"
DEEP = tree(
    {
        "image/embed/kernel": jnp.ones((4, 6)),
        f"image/{STACK}/0/0/attn/query/kernel": jnp.ones((3, 6, 8)),
        f"image/{STACK}/1/0/mlp/fc1/bias": jnp.ones((3, 6)),
        "image/trunk/final_norm/scale": jnp.ones(6),
        f"text/{STACK}/0/0/attn/query/kernel": jnp.ones((1, 6, 8)),
        "text/connectors/image/linear/kernel": jnp.ones((4, 6)),
        "objectives/contrastive/logit_scale": jnp.ones(()),
    }
)


def test_layer_decay():
    """Each layer learns at a share of the rate of the one above, alternating patterns included."""
    made = plan(DEEP, layer_decay=0.5, rules=((".*/bias", dict(lr=4.0)),), name="lion", weight_decay=0.0)
    updates, _ = made.tx.update(jax.tree.map(jnp.ones_like, DEEP), made.tx.init(DEEP), DEEP)
    found = {path: -np.asarray(update) / LR for path, update in flatten_paths(updates).items()}
    per_layer = lambda path: found[path].reshape(found[path].shape[0], -1)
    np.testing.assert_allclose(found["image/embed/kernel"], 0.5**7, rtol=1e-6)
    query, bias = per_layer(f"image/{STACK}/0/0/attn/query/kernel"), per_layer(f"image/{STACK}/1/0/mlp/fc1/bias")
    for repeat in range(3):  # six layers: even ones are of the first kind, odd ones of the second
        np.testing.assert_allclose(query[repeat], 0.5 ** (6 - 2 * repeat), rtol=1e-6)
        np.testing.assert_allclose(bias[repeat], 4 * 0.5 ** (5 - 2 * repeat), rtol=1e-6)
    np.testing.assert_allclose(per_layer(f"text/{STACK}/0/0/attn/query/kernel"), 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["text/connectors/image/linear/kernel"], 0.25, rtol=1e-6)
    for path in ("image/trunk/final_norm/scale", "objectives/contrastive/logit_scale"):
        np.testing.assert_allclose(found[path], 1.0, rtol=1e-6)
    assert {row.lr for row in made.rows if isinstance(row.lr, tuple)} == {
        (0.5**6, 0.5**4, 0.5**2), (4 * 0.5**5, 4 * 0.5**3, 4 * 0.5), (0.5,)
    }  # fmt: skip


def test_layer_decay_of_a_convolutional_network_goes_by_stages():
    kernels = ("stem/0", "stages/0/first/conv1", "stages/1/first/conv1", "stages/1/layers/conv2")
    network = tree({f"image/embed/{name}/conv/kernel": jnp.ones((2, 4)) for name in kernels}
                   | {"image/projection/kernel": jnp.ones((4, 4))})  # fmt: skip
    made = plan(network, layer_decay=0.5, name="lion", weight_decay=0.0)
    updates, _ = made.tx.update(jax.tree.map(jnp.ones_like, network), made.tx.init(network), network)
    found = [-np.asarray(update).max() / LR for update in flatten_paths(updates).values()]
    # in the order of the tree: first stage, second stage twice, stem, projection
    np.testing.assert_allclose(found, [0.25, 0.5, 0.5, 0.125, 1.0], rtol=1e-6)


# Layers of unlike sizes, a zero bias, a zero temperature.
LAYERS = map_paths(
    lambda path, x: 0 * x if "bias" in path or "logit" in path else jnp.cos(jnp.arange(x.size)).reshape(x.shape) + x,
    DEEP,
)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.01])
def test_bad_layer_decay(value):
    with pytest.raises(ConfigError, match=r"optimizer\.layer_decay is .*above 0, up to 1"):
        plan(DEEP, layer_decay=value)
