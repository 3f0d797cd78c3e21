"""FILIP, SPARC and FLAIR against plain NumPy formulas: values, and gradients by finite differences in float64."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.config import make_spec
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives import fine_grained
from xmodal.objectives.fine_grained import Filip, Flair, Sparc

ROWS, PATCHES, WORDS, DIM, HEADS = 8, 5, 4, 6, 2
CASES = [("plain", (1, 1, 1)), ("plain", (2, 2, 2)), ("ring", (1, 1, 1)), ("ring", (8, 1, 1)), ("ring", (2, 2, 2))]
RUNS = [(kind, *case, 1) for kind in ("filip", "flair") for case in CASES] + [("sparc", *case, 1) for case in CASES[:2]]
RUNS += [("flair", *CASES[i], 3) for i in (0, 3, 4)]
KINDS = {"filip": Filip, "sparc": Sparc, "flair": Flair}


def case(kind, seed=0, captions=1):
    """Leaves that have gradients, validity of patches and words, and the batch: rows 1 and 6 share a caption.

    With several captions it is the first of row 1 and the last of row 6.
    """
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    leaves = dict(patches=draw(ROWS, PATCHES, DIM), words=draw(ROWS, WORDS, DIM), text=draw(ROWS * captions, DIM))
    params = dict(logit_scale=np.float32(1.3))
    if kind == "flair":
        params["logit_bias"] = np.float32(-0.7)
        params |= {name: {"kernel": draw(DIM, DIM)} for name in ("query", "key", "value", "out")}
    valid_words = np.arange(WORDS)[None] < rng.integers(1, WORDS + 1, ROWS)[:, None]
    valid_patches = np.arange(PATCHES)[None] < rng.integers(2, PATCHES + 1, ROWS)[:, None]
    valid = dict(patches=valid_patches.astype(np.float32), words=valid_words.astype(np.float32))
    key, caption = np.arange(ROWS), 100 + np.arange(ROWS * captions).reshape(ROWS, captions)
    caption[6, -1] = caption[1, 0]
    caption = caption[:, 0] if captions == 1 else caption
    wide = lambda ids: np.stack([ids * 0 + 5, ids], axis=-1).astype(np.uint32)
    return dict(leaves, params=params), valid, dict(key_id=wide(key), caption_id=wide(caption))


def run(objective, mesh, leaves, valid, batch):
    def loss(leaves, valid, batch):
        outputs = {
            "image.local": {"x": leaves["patches"], "valid": valid["patches"]},
            "text.local": {"x": leaves["words"], "valid": valid["words"]},
            "text.pooled": leaves["text"],
        }
        total, weight, metrics, _ = objective(outputs, batch, leaves["params"], mesh)
        return total / weight, metrics

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(leaves, valid, batch)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


POSITIVE = np.eye(ROWS)
POSITIVE[1, 6] = POSITIVE[6, 1] = 1


def filip(leaves, valid):
    """Yao et al. 2022: loops over all pairs."""
    patches, words = unit(leaves["patches"]), unit(leaves["words"])
    of_images, of_texts = np.zeros((2, ROWS, ROWS))
    for i in range(ROWS):
        for j in range(ROWS):
            cosines = (patches[i] @ words[j].T)[valid["patches"][i] > 0][:, valid["words"][j] > 0]
            of_images[i, j], of_texts[j, i] = cosines.max(1).mean(), cosines.max(0).mean()
    scale, target = np.exp(leaves["params"]["logit_scale"]), POSITIVE / POSITIVE.sum(1, keepdims=True)
    return -sum(t @ log_softmax(scale * row) for m in (of_images, of_texts) for t, row in zip(target, m)) / 2 / ROWS


def sparc(leaves, valid):
    """Bica et al. 2024: loops over samples and words."""
    total = 0.0
    for b in range(ROWS):
        patches, words = leaves["patches"][b][valid["patches"][b] > 0], leaves["words"][b][valid["words"][b] > 0]
        groups = []
        for word in words:
            s = patches @ word
            s = (s - s.min()) / (s.max() - s.min())
            s = np.where(s < 1 / len(patches), 0, s)
            groups.append((s / s.sum()) @ patches)
        logits = np.exp(leaves["params"]["logit_scale"]) * unit(words) @ unit(np.array(groups)).T
        total -= sum(log_softmax(z[k])[k] for z in (logits, logits.T) for k in range(len(words))) / 2 / len(words)
    return total / ROWS


def flair(leaves, valid):
    """Xiao et al. 2025: loops over pairs and heads, with an explicit token of zeros.

    Of several captions an image sees its own ones and the first of each other image, of which 1's is also one of 6's.
    """
    p, captions = leaves["params"], len(leaves["text"]) // ROWS
    kernel, text, total = lambda name: p[name]["kernel"], unit(leaves["text"]), 0.0
    right = POSITIVE if captions == 1 else np.eye(ROWS) + (np.arange(ROWS) == 1) * (np.arange(ROWS) == 6)[:, None]
    for i in range(ROWS):
        pairs = [(j * captions, right[i, j]) for j in range(ROWS)] + [(i * captions + k, 1) for k in range(1, captions)]
        seen = unit(leaves["patches"][i][valid["patches"][i] > 0])
        keys, values = (np.vstack([seen @ kernel(name), np.zeros(DIM)]) for name in ("key", "value"))
        for j, positive in pairs:
            parts = []
            for h in np.split(np.arange(DIM), HEADS):
                weights = np.exp(log_softmax(keys[:, h] @ (text[j] @ kernel("query"))[h] / np.sqrt(DIM / HEADS)))
                parts.append(weights @ values[:, h])
            z = np.exp(p["logit_scale"]) * unit(np.concatenate(parts) @ kernel("out")) @ text[j] + p["logit_bias"]
            total += np.log1p(np.exp(-z if positive else z))
    return total / (ROWS + captions - 1)


FORMULAS = dict(filip=filip, sparc=sparc, flair=flair)


def slope(formula, leaves, valid, direction, step=1e-6):
    move = lambda sign: jax.tree.map(lambda a, d: np.float64(a) + sign * step * d, leaves, direction)
    return (formula(move(1), valid) - formula(move(-1), valid)) / (2 * step)


@pytest.mark.parametrize("kind,form,shape,captions", RUNS)
def test_losses_and_gradients_follow_the_formula(kind, form, shape, captions, monkeypatch):
    monkeypatch.setattr(fine_grained, "COLUMNS", 3)  # divides neither 8 nor a device's columns
    monkeypatch.setattr(fine_grained, "SLICE", 40)  # slices of a single row
    options = {} if kind == "sparc" else dict(form=form)
    objective = KINDS[kind](**options, **(dict(heads=HEADS) if kind == "flair" else {}))
    leaves, valid, batch = case(kind, captions=captions)
    (loss, metrics), grads = run(objective, helpers.mesh(*shape), leaves, valid, batch)
    if kind == "flair":
        assert metrics["health/duplicate_share"] == (2 if captions == 1 else 1) / ROWS
    formula, exact = FORMULAS[kind], jax.tree.map(np.float64, leaves)
    np.testing.assert_allclose(loss, formula(exact, valid), rtol=1e-5)
    rng = np.random.default_rng(1)
    for name in ("patches", "words" if kind != "flair" else "text", "params"):
        for _ in range(3):
            direction = jax.tree.map(lambda a: 0.0 * a, exact)
            direction[name] = jax.tree.map(lambda a: rng.normal(size=np.shape(a)), exact[name])
            got = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction)))
            np.testing.assert_allclose(got, slope(formula, leaves, valid, direction), rtol=2e-4, atol=1e-6)


def test_padding_changes_nothing():
    for kind, cls in KINDS.items():
        leaves, valid, batch = case(kind)
        objective = cls(heads=HEADS) if kind == "flair" else cls()
        other = dict(leaves)
        for name in ("patches", "words"):
            noise = np.random.default_rng(3).normal(size=leaves[name].shape).astype(np.float32)
            other[name] = np.where(valid[name][..., None] > 0, leaves[name], noise)
        assert any((other[name] != leaves[name]).any() for name in ("patches", "words"))
        (a, _), (b, _) = (run(objective, helpers.mesh(), x, valid, batch)[0] for x in (leaves, other))
        assert a == b, kind


def test_what_metrics_say():
    leaves, valid, batch = case("filip")
    leaves["words"] = leaves["patches"][:, :WORDS]  # each caption's words are patches of its own image
    valid = jax.tree.map(np.ones_like, valid)
    (_, metrics), _ = run(Filip(), helpers.mesh(), leaves, valid, batch)
    assert metrics["text_to_image"] == 1.0 and metrics["health/duplicate_share"] == 2 / ROWS
    leaves["patches"] = np.tile(np.eye(PATCHES, DIM, dtype=np.float32), (ROWS, 1, 1))
    leaves["words"] = leaves["patches"][:, :WORDS]
    (loss, metrics), _ = run(Sparc(logit_scale=3.0), helpers.mesh(), leaves, valid, batch)
    assert metrics["word_to_group"] == 1.0 and metrics["patches_of_a_word"] == pytest.approx(1 / PATCHES)
    assert loss < np.log(WORDS)


def model(**image):
    image = presets.image_tower(16, 1, 2, patch_size=8, embed_dim=8, embed=dict(image_size=16, registers=1), **image)
    text = presets.text_tower(16, 1, 2, embed_dim=8, embed=dict(vocab_size=20, length=WORDS))
    return Functional.build(make_spec(ModelSpec, presets.dual_tower(image=image, text=text), where="model"))


def test_local_outputs_are_patches_and_words_in_the_shared_space():
    built = model()
    params = helpers.random_params(built)
    batch = dict(
        image=jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32),
        text=jnp.array([[1, 5, 2, 0], [1, 6, 7, 2]]), text_valid=jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
    )  # fmt: skip
    want = {"image.local", "text.local", "image.tokens", "image.pooled", "text.pooled"}
    out = built(params, batch, frozenset(want))
    image, text = out["image.local"], out["text.local"]
    assert image["x"].shape == (2, 4, 8) and text["x"].shape == (2, WORDS, 8)  # no class token, no register
    assert image["valid"].all() and text["valid"].tolist() == batch["text_valid"].astype(float).tolist()
    kernel = params["image"]["projection"]["kernel"]
    np.testing.assert_allclose(image["x"], out["image.tokens"].x[:, 2:] @ kernel, rtol=1e-5, atol=1e-6)
    end = text["x"][jnp.arange(2), jnp.array([2, 3])]  # pooled at the end mark: the same map of the same token
    np.testing.assert_allclose(end, out["text.pooled"], rtol=1e-5, atol=1e-6)


def test_chance_of_several_captions():
    logits = np.linspace(-8, 2, 10_001)
    for captions in (1, 3):
        pairs = 16 * captions, 16 * 15  # that belong together, and that do not
        constant = pairs[0] * np.log1p(np.exp(-logits)) + pairs[1] * np.log1p(np.exp(logits))
        chance = Flair().chance_loss(16, None, captions)
        assert chance == pytest.approx(constant.min() / (16 + captions - 1), rel=1e-5)


def test_flair_has_an_attention_of_its_own_and_heads_that_fit():
    spec = model().spec
    params = Flair(heads=2).init(jax.random.key(0), spec)
    assert {name: params[name]["kernel"].shape for name in ("query", "key", "value", "out")} == dict.fromkeys(
        ("query", "key", "value", "out"), (8, 8)
    )
    assert float(jnp.abs(params["query"]["kernel"] - params["key"]["kernel"]).max()) > 0.1
    with pytest.raises(ValueError, match="heads=3 must divide the width 8"):
        Flair(heads=3).check(spec)
