"""Presets have the published sizes, start at chance, reach every parameter, and learn a batch by heart."""

import math
import re

import helpers
import jax
import numpy as np
import optax
import pytest

from xmodal.models import presets
from xmodal.objectives.captioning import Captioning
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from xmodal.objectives.masked_text import MaskedText
from xmodal.paths import flatten_paths

CLIP_SIZES = {"B32": ("B", 151_277_313), "B16": ("B", 149_620_737), "L14": ("L", 427_616_513)}


def count(image, text, objective, vocab, length):
    image["embed"]["image_size"] = 224
    text["embed"].update(vocab_size=vocab, length=length)
    shapes = jax.eval_shape(helpers.build(dict(image=image, text=text)).init, jax.random.key(0))
    return sum(math.prod(a.shape) for a in jax.tree.leaves([shapes, objective.init()]))


@pytest.mark.parametrize("variant", CLIP_SIZES)
def test_clip_has_as_many_parameters_as_published(variant):
    size, published = CLIP_SIZES[variant]
    towers = presets.vit(variant), presets.clip_text(size)
    assert count(*towers, SoftmaxContrastive(), 49_408, 77) == published


def test_siglip_has_as_many_parameters_as_published():
    towers = presets.vit("B16", style="siglip"), presets.siglip_text("B16")
    assert count(*towers, SigmoidContrastive(), 32_000, 64) == 203_155_970


def test_presets_name_what_they_do_not_know():
    with pytest.raises(ValueError, match="unknown image tower 'B15': known are Ti16"):
        presets.vit("B15")
    with pytest.raises(ValueError, match="wired to another: use"):
        presets.dual_tower(**helpers.coca())
    with pytest.raises(ValueError, match="'caption' is wired to 'image', which does not exist"):
        helpers.build({name: tower for name, tower in helpers.coca().items() if name != "image"})
    looped = helpers.git()
    looped["image"]["reads"] = dict(caption={})
    with pytest.raises(ValueError, match="cycle: caption -> image -> caption"):
        helpers.build(looped)
    with pytest.raises(ValueError, match='cannot be named "objectives"'):
        helpers.build(dict(objectives=helpers.image()))
    narrow = helpers.git() | dict(image=helpers.image(embed_dim=0))
    narrow["image"]["trunk"].update(width=8)
    narrow["caption"]["reads"] = dict(image={})
    with pytest.raises(ValueError, match="width 8 are read by a tower of width 16: set the `type` of its edge"):
        helpers.build(narrow)


def test_parameters_of_another_model_are_refused_by_name():
    model = helpers.build(helpers.clip())
    params = helpers.random_params(model)
    params["text"]["projector"] = params["text"].pop("projection")
    message = r"missing \['text/projection/kernel'\], unknown \['text/projector/kernel'\]"
    with pytest.raises(ValueError, match=message):
        model.bind(params)
    del params["text"]
    with pytest.raises(ValueError, match=r"missing \['text/embed/embedding', .*\], unknown none"):
        model.bind(params)


MODERN = dict(style="vit", norm="rms", qk_norm=True, glu=True, act="silu", hidden=24, gate="layerscale", gate_init=0.2)
VARIANTS = {
    "rotary": (dict(rope=100.0), dict(position="none", registers=1)),
    "sines": (dict(), dict(position="sincos")),
    "learned": (dict(bias=False), dict(position="learned", class_token=False)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vit_takes_todays_layers_as_arguments(variant):
    """QK-norm, SwiGLU, LayerScale and every kind of position: each is there, is used, and learns."""
    layers, patches = VARIANTS[variant]
    pool = "cls" if patches.get("class_token", True) else "mean"
    tower = helpers.image(**MODERN, pool=pool, embed=patches, **layers)
    model = helpers.build(dict(image=tower))
    params, batch = helpers.random_params(model), helpers.batch(4)
    grads = jax.jit(
        jax.grad(lambda p: jax.numpy.sum(model(p, batch, frozenset({"image.pooled"}))["image.pooled"] ** 2))
    )
    paths = {path.partition("layers/0/")[2] or path: grad for path, grad in flatten_paths(grads(params)).items()}
    wanted = {"0/attn/query_norm/scale", "0/attn/key_norm/scale", "0/gate", "1/gate", "1/mlp/gate/kernel"}
    assert wanted <= paths.keys()
    assert ("image/embed/position" in paths) == (variant == "learned")
    assert ("1/mlp/fc2/bias" in paths) == (variant != "learned")
    for path, grad in paths.items():
        assert np.max(np.abs(grad)) > 1e-6 or path == "0/attn/key/bias", path
    if variant != "learned":
        run = helpers.forward(model, "image.pooled")
        turned = batch | dict(image=np.roll(batch["image"], helpers.PATCH, axis=2))  # the same patches at other places
        assert np.max(np.abs(run(params, turned)["image.pooled"] - run(params, batch)["image.pooled"])) > 1e-3


# ------------------------------------------------------------------------------------------- learning

# Not by the mask: it would make texts of one token equal that are to be told apart.
MASKED = MaskedText(
    rate=0.4, mask_share=0.0, random_share=1.0, mask_id=4, vocab_size=helpers.VOCAB, special_ids=(0, 1, 2, 4)
)
SYSTEMS = {
    "siglip": (helpers.clip(style="siglip"), dict(contrastive=SigmoidContrastive())),
    "coca": (helpers.coca(), dict(contrastive=SoftmaxContrastive(), captioning=Captioning(weight=2.0))),
    "git": (helpers.git(), dict(captioning=Captioning())),
    "bert": (
        dict(text=helpers.bert(head="masked", pooler=False)),
        dict(masked=MASKED),
    ),
}
# A softmax over keys ignores a bias that all keys share, so its true gradient is zero.
ZERO = re.compile(r".*/attn/key/bias")


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request):
    towers, objectives = SYSTEMS[request.param]
    mesh, batch = helpers.mesh(), helpers.batch()
    losses = helpers.losses(towers, objectives, mesh)
    with jax.set_mesh(mesh):
        params = jax.jit(losses.model.init)(jax.random.key(0)) | {"objectives": losses.init_params()}
        run = jax.jit(lambda params: losses.value_and_grad(params, batch, None))
        yield params, run


def test_every_parameter_receives_a_gradient(system):
    params, run = system
    _, grads = run(params)
    grads = flatten_paths(grads)
    assert grads.keys() == flatten_paths(params).keys()
    for path, grad in grads.items():
        assert np.isfinite(grad).all(), path
        assert (np.max(np.abs(grad)) > 1e-7) is not bool(ZERO.fullmatch(path)), path
    # Stacked layers: each of them, not only one.
    for path, grad in grads.items():
        if "/layers/" in path and not ZERO.fullmatch(path):
            assert np.all(np.max(np.abs(grad.reshape(len(grad), -1)), axis=1) > 1e-7), path


def test_one_batch_is_learnt_by_heart(system):
    params, run = system
    schedule = optax.linear_schedule(0.0, 1e-2, 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.95))

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state, course = optimizer.init(params), []
    for _ in range(80):
        (loss, metrics, _), grads = run(params)
        params, state = update(params, state, grads)
        course.append(float(loss))
    assert course[-1] < 0.05 < 1 < course[0], course
    for name, value in metrics.items():
        if name.endswith(("accuracy", "image_to_text", "text_to_image")):
            assert value == 1.0, name
    if "train/contrastive/loss" in metrics:
        assert metrics["health/pair_cosine"] > 0.2


def test_a_fresh_model_starts_at_chance():
    """Wide embeddings, as real models have: those of narrow ones scatter too much."""
    size = dict(width=256, depth=1, heads=4)
    image = presets.image_tower(**size, patch_size=8, embed_dim=512, embed=dict(image_size=16))
    text = presets.text_tower(**size, embed_dim=512, head="linear", embed=dict(vocab_size=64, length=8))
    towers = dict(image=image, text=presets.with_head(text, "logits", vocab_size=64))
    objectives = dict(softmax=SoftmaxContrastive(), sigmoid=SigmoidContrastive(), captioning=Captioning(tower="text"))
    mesh, rows = helpers.mesh(), 32
    losses = helpers.losses(towers, objectives, mesh)
    with jax.set_mesh(mesh):
        params = jax.jit(losses.model.init)(jax.random.key(0)) | {"objectives": losses.init_params()}
        _, metrics = jax.jit(lambda params: losses(params, helpers.batch(rows), None))(params)
    chance = {name: o.chance_loss(rows, losses.model.spec) for name, o in objectives.items()}
    assert chance["softmax"] == pytest.approx(math.log(rows))
    assert chance["captioning"] == pytest.approx(math.log(64))
    for name in ("softmax", "captioning"):
        assert metrics[f"train/{name}/loss"] == pytest.approx(chance[name], rel=0.06), name
    # SigLIP starts with a bias of -10, which is the best constant for batches of exp(10): in a small batch its
    # positives cost 10 each and its negatives nothing.
    assert metrics["train/sigmoid/loss"] == pytest.approx(10.0, rel=0.06)
    assert chance["sigmoid"] < 10.0
