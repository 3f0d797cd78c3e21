"""DINOv2 and ViT agree with their reference implementations: golden files, see tests/golden/README.md."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_golden import assert_close, load, part

from xmodal.config import make_spec
from xmodal.interop import huggingface
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.paths import flatten_paths

NAMES = ("dinov2", "dinov2_with_registers", "vit", "vit_classifier")
WANT = frozenset({"image.tokens", "image.pooled"})
MASK = "embeddings.mask_token"  # of DINOv2's training; no tower has it


def spec_of(golden, images, **trunk):
    config = huggingface.model_config(json.loads(str(golden["config"])))
    tower = config.towers.image
    tower.trunk.update(trunk)
    if tower.embed.get("position_size"):  # made for other sizes than it was trained with
        with tower.embed.ignore_type():
            tower.embed.image_size = images.shape[1:3]
    return make_spec(ModelSpec, config, where="model")


def weights_of(golden):
    weights = part(golden, "weights/")
    weights.pop(MASK, None)
    return weights


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trunk", [dict(scan=True), dict(scan=False, remat="full")], ids=["scan", "unrolled"])
def test_outputs_loss_and_gradients_agree_with_the_reference(name, trunk):
    golden = load(name)
    inputs, wanted = part(golden, "inputs/"), part(golden, "outputs/")
    spec = spec_of(golden, inputs["pixel_values"], **trunk)
    model = Functional.build(spec)

    def loss(params, pixels):
        outputs = model(params, dict(image=pixels), WANT)
        found = dict(tokens=outputs["image.tokens"].x, pooled=outputs["image.pooled"])
        if "labels" in inputs:
            return optax.softmax_cross_entropy_with_integer_labels(found["pooled"], inputs["labels"]).mean(), found
        return sum(jnp.mean(found[key] * inputs[f"{key}_weight"]) for key in wanted), found

    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, outputs), (param_grads, pixel_grads) = gradient(params, inputs["pixel_values"])

    assert_close(value, golden["loss"], "loss")
    for key in wanted:
        assert_close(outputs[key], wanted[key], key)
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the pixels")
    grads, wanted = huggingface.to_huggingface(param_grads, spec), part(golden, "grads/")
    assert grads.keys() - {MASK} == wanted.keys()
    for weight in wanted:  # softmax ignores what all keys share: the gradient of a key bias is rounding noise
        floor = np.max(np.abs(wanted[weight.replace(".key.", ".query.")])) if "key.bias" in weight else 0.0
        assert_close(grads[weight], wanted[weight], weight, floor)


@pytest.mark.parametrize("name", NAMES)
def test_conversion_gives_every_parameter_once_and_goes_both_ways(name):
    golden = load(name)
    spec, weights = spec_of(golden, golden["inputs/pixel_values"]), weights_of(golden)
    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    expected = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    shapes = lambda tree: {path: leaf.shape for path, leaf in flatten_paths(tree).items()}
    assert shapes(params) == shapes(expected)
    back = huggingface.to_huggingface(params, spec)
    if "dinov2" in name:  # the reference has one, and starts it at zero
        assert back.pop(MASK).shape == golden[f"weights/{MASK}"].shape
    assert back.keys() == weights.keys()
    for weight in weights:
        np.testing.assert_array_equal(back[weight], weights[weight], err_msg=weight)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_comes_back(name):
    settings = json.loads(str(load(name)["config"]))
    model = huggingface.model_config(settings)
    spec = make_spec(ModelSpec, model, where="model")
    family = huggingface.family_for(spec)
    assert family.model_type == settings["model_type"]
    written = json.loads(json.dumps(family.to_config(spec)))
    again = family.model_config(written)
    assert make_spec(ModelSpec, again, where="model") == spec
    known = {key: settings[key] for key in written if key in settings and key not in ("id2label", "label2id")}
    assert {key: written[key] for key in known} == known


def test_presets_equal_the_published_settings():
    spec = lambda config: make_spec(ModelSpec, config, where="model")
    config = dict(model_type="dinov2", hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, image_size=518,
                  use_swiglu_ffn=True, layerscale_value=1e-5)  # fmt: skip
    giant = presets.dual_tower(image=presets.dinov2("g14", embed=dict(image_size=518)))
    assert spec(huggingface.model_config(config)) == spec(giant)
    config = dict(model_type="dinov2_with_registers", hidden_size=384, num_attention_heads=6, image_size=518,
                  patch_size=14, layerscale_value=1e-5)  # fmt: skip
    small = presets.dual_tower(image=presets.dinov2("S14", registers=4, embed=dict(image_size=518)))
    assert spec(huggingface.model_config(config)) == spec(small)
    vit = presets.dual_tower(image=presets.vit("B16", style="vit", hidden=3072, norm_eps=1e-12, pooler=True,
                                               embed=dict(image_size=224)))  # fmt: skip
    assert spec(huggingface.model_config(dict(model_type="vit"))) == spec(vit)


def test_what_the_references_do_not_have_is_refused():
    settings = json.loads(str(load("dinov2")["config"]))
    with pytest.raises(ValueError, match="qkv_bias is False, needs True"):
        huggingface.model_config(settings | dict(qkv_bias=False))
    with pytest.raises(ValueError, match="Dinov2ForImageClassification: known are"):
        huggingface.model_config(settings | dict(architectures=["Dinov2ForImageClassification"]))
    config = huggingface.model_config(settings)
    config.towers.image.embed.registers = 2
    config.towers.image.embed.update(image_size=56, position_filter="bicubic")
    with pytest.raises(ValueError, match="position_filter: is 'bicubic', needs 'bicubic_antialias'"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
    config.towers.image.heads.pooled.pool = "mean"
    with pytest.raises(ValueError, match="no known Hugging Face model has the towers image"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
