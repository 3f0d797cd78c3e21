"""CLIP and SigLIP agree with their reference implementations: golden files, see tests/golden/README.md."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.config import make_spec
from xmodal.interop import OPEN_CLIP, huggingface, open_clip
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive, normalize
from xmodal.paths import flatten_paths

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 2e-5  # of the largest absolute value of each array
PAD = 1
OBJECTIVES = {"clip_vit": SoftmaxContrastive(form="plain"), "siglip": SigmoidContrastive(form="plain")}
WANT = frozenset(f"{tower}.{what}" for tower in ("image", "text") for what in ("tokens", "pooled"))


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def part(golden, prefix):
    """The arrays under a prefix, half precision widened (the files hold exactly representable values)."""
    wide = lambda a: a.astype(np.float32) if a.dtype == np.float16 else a
    return {name.removeprefix(prefix): wide(a) for name, a in golden.items() if name.startswith(prefix)}


def family_of(golden):
    """The family of the reference, and the configuration in its words."""
    config = json.loads(str(golden["config"]))
    if "model_cfg" in config:
        return OPEN_CLIP[open_clip.kind_of(config["model_cfg"])], config["model_cfg"]
    return huggingface.family_of(config), config


def spec_of(golden, **trunk):
    config = huggingface.model_config(json.loads(str(golden["config"])))
    for tower in config.towers.values():
        tower.trunk.update(trunk)
    return make_spec(ModelSpec, config, where="model")


def one_device():
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def batch_of(golden):
    inputs = part(golden, "inputs/")
    ids = inputs["input_ids"]
    number = np.arange(len(ids), dtype=np.uint32)
    identity = np.stack([number, number], axis=1)
    valid = inputs.get("attention_mask", ids != PAD).astype(bool)  # SigLIP must not heed it
    return {
        "image": inputs["pixel_values"],
        "text": ids,
        "text_valid": valid,
        "key_id": identity,
        "caption_id": identity,
    }


def run(golden, objective, spec):
    """Loss, outputs and gradients with respect to all parameters and the pixels."""
    family, _ = family_of(golden)
    model, mesh, batch = Functional.build(spec), one_device(), batch_of(golden)

    def loss(params, pixels):
        outputs = model(params, batch | dict(image=pixels), WANT)
        total, weight, *_ = objective(outputs, batch, params["objectives"]["contrastive"], mesh)
        return total / weight, outputs

    params = family.to_params(part(golden, "weights/"), spec)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    with jax.set_mesh(mesh):
        (value, outputs), grads = gradient(params, batch["image"])
    return value, outputs, *grads


def assert_close(got, want, what, floor=0.0):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    error = np.max(np.abs(got - want)) / max(np.max(np.abs(want)), floor)
    assert error < TOLERANCE, f"{what}: differs by {error:.2e} of its largest value"


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("trunk", [dict(scan=True), dict(scan=False, remat="full")], ids=["scan", "unrolled"])
def test_outputs_loss_and_gradients_agree_with_the_reference(name, trunk):
    golden = load(name)
    spec = spec_of(golden, **trunk)
    loss, outputs, param_grads, pixel_grads = run(golden, OBJECTIVES[name], spec)
    wanted = part(golden, "outputs/")

    assert_close(loss, golden["loss"], "loss")
    for tower in ("image", "text"):
        assert_close(normalize(outputs[f"{tower}.pooled"]), wanted[f"{tower}_embeds"], tower)
    hidden = wanted["vision_last_hidden_state"]
    if name == "clip_vit":  # the reference normalises only the class token of the last layer
        weights = part(golden, "weights/vision_model.post_layernorm.")
        centred = hidden - hidden.mean(-1, keepdims=True)
        hidden = centred / np.sqrt(hidden.var(-1, keepdims=True) + 1e-3) * weights["weight"] + weights["bias"]
    assert_close(outputs["image.tokens"].x, hidden, "image tokens")
    assert_close(outputs["text.tokens"].x, wanted["text_last_hidden_state"], "text tokens")

    assert_gradients(golden, spec, param_grads, pixel_grads)


def assert_gradients(golden, spec, param_grads, pixel_grads):
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the pixels")
    family, _ = family_of(golden)
    grads, wanted = family.to_weights(param_grads, spec), part(golden, "grads/")
    assert grads.keys() == wanted.keys()
    for weight in wanted:
        # Softmax ignores what all keys share: the true gradient of a key bias is zero and the reference's one
        # is rounding noise. It is compared on the scale of the query bias beside it.
        floor = np.max(np.abs(wanted[weight.replace("k_proj", "q_proj")])) if "k_proj.bias" in weight else 0.0
        assert_close(grads[weight], wanted[weight], weight, floor)


@pytest.mark.parametrize("name", ["clip_vit_wide", "siglip_wide"])
def test_images_need_not_be_square(name):
    golden = load(name)
    family, config = family_of(golden)
    if "vision_config" in config:  # as many patches as in the square that this says
        config["vision_config"]["image_size"] = golden["inputs/pixel_values"].shape[1:3]
    spec = make_spec(ModelSpec, family.model_config(config), where="model")
    loss, outputs, *grads = run(golden, OBJECTIVES[name.removesuffix("_wide")], spec)
    assert_close(loss, golden["loss"], "loss")
    for tower in ("image", "text"):
        assert_close(normalize(outputs[f"{tower}.pooled"]), golden[f"outputs/{tower}_embeds"], tower)
    assert_gradients(golden, spec, *grads)


@pytest.mark.parametrize("form", ["plain", "ring"])
@pytest.mark.parametrize("case", ["softmax", "softmax_multi", "sigmoid", "sigmoid_multi"])
def test_contrastive_losses_agree_with_float64(case, form):
    golden = load("contrastive_loss")
    kind = SoftmaxContrastive if case.startswith("softmax") else SigmoidContrastive
    objective = kind(multi_positive=case.endswith("multi"), form=form)
    inputs = part(golden, "inputs/")
    batch = {name: inputs[name] for name in ("key_id", "caption_id")}
    wanted = part(golden, f"{case}/grads/")
    leaves = {name: jnp.asarray(inputs[name], jnp.float32) for name in wanted}
    devices = jax.device_count() // 2 if form == "ring" else 1
    mesh = jax.make_mesh(
        (devices, jax.device_count() // devices if form == "ring" else 1, 1), ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )  # fmt: skip

    def loss(leaves):
        outputs = {"image.pooled": leaves["image"], "text.pooled": leaves["text"]}
        total, weight, *_ = objective(outputs, batch, leaves, mesh)
        return total / weight

    with jax.set_mesh(mesh):
        value, grads = jax.jit(jax.value_and_grad(loss))(leaves)
    assert_close(value, golden[f"{case}/loss"], "loss")
    for name in wanted:
        assert_close(grads[name], wanted[name], name)


def test_presets_equal_the_defaults_of_the_reference():
    spec = lambda config: make_spec(ModelSpec, config, where="model")
    image, words = {"image_size": 224}, {"vocab_size": 49408, "length": 77}
    clip = presets.dual_tower(
        image=presets.vit("B32", hidden=3072, embed=image),
        text=presets.clip_text("B", hidden=2048, embed=words),
    )
    assert spec(huggingface.model_config({"model_type": "clip"})) == spec(clip)

    words = {"vocab_size": 32000, "length": 64}
    siglip = presets.dual_tower(
        image=presets.vit("B16", style="siglip", hidden=3072, embed=image),
        text=presets.siglip_text("B16", hidden=3072, embed=words),
    )
    assert spec(huggingface.model_config({"model_type": "siglip"})) == spec(siglip)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_conversion_gives_every_parameter_once_and_goes_both_ways(name):
    golden = load(name)
    spec, weights = spec_of(golden), part(golden, "weights/")
    params = huggingface.from_huggingface(weights, spec)
    expected = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    towers = {tower: params[tower] for tower in spec.towers}
    shapes = lambda tree: {path: leaf.shape for path, leaf in flatten_paths(tree).items()}
    assert shapes(towers) == shapes(expected)
    assert params["objectives"]["contrastive"].keys() == OBJECTIVES[name].init().keys()

    back = huggingface.to_huggingface(params, spec)
    assert back.keys() == weights.keys()
    for weight in weights:
        np.testing.assert_array_equal(back[weight], weights[weight], err_msg=weight)


def test_weights_that_do_not_fit_are_all_named():
    golden = load("siglip")
    spec, weights = spec_of(golden), part(golden, "weights/")
    weights["vision_model.encoder.layers.3.mlp.fc1.bias"] = np.zeros(80, np.float32)
    weights["text_model.embeddings.position_embedding.weight"] = np.zeros((13, 32), np.float32)
    weights["text_model.embeddings.position_ids"] = np.arange(12)[None]  # a buffer of older files: fine
    del weights["vision_model.head.probe"]
    with pytest.raises(ValueError, match="do not fit") as error:
        huggingface.from_huggingface(weights, spec)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  missing: vision_model.head.probe (1, 1, 48)",
        "  shape: text_model.embeddings.position_embedding.weight is (13, 32), the model needs (12, 32)",
        "  unexpected: vision_model.encoder.layers.3.mlp.fc1.bias",
    ]
    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    del params["image"]["pool"]["probe"]
    with pytest.raises(ValueError, match="missing: image/pool/probe"):
        huggingface.to_huggingface(params, spec)


def test_models_that_the_reference_cannot_express_are_refused():
    golden = load("clip_vit")
    config = huggingface.model_config(json.loads(str(golden["config"])))
    config.towers.image.embed.pre_norm = False
    config.towers.image.trunk.pattern[0][0]["qk_norm"] = True
    config.towers.text.heads.pooled.pool = "mean"
    with pytest.raises(ValueError, match="CLIPModel has no such model") as error:
        huggingface.table(make_spec(ModelSpec, config, where="model"))
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in sorted(lines)] == [
        "image/embed/pre_norm",
        "image/trunk/pattern/0/0/qk_norm",
        "text/heads/pooled/pool",
    ]
    with pytest.raises(ValueError, match="'blip' cannot be converted: known are clip, siglip"):
        huggingface.model_config(dict(model_type="blip"))
