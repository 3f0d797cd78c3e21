"""ConvNeXt, EfficientNet and ALIGN agree with their reference implementations: see tests/golden/README.md."""

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

IMAGES = ("convnext", "convnext_classifier")
WANT = frozenset({"image.tokens", "image.pooled"})


def spec_of(golden, **embed):
    config = huggingface.model_config(json.loads(str(golden["config"])))
    config.towers.image.embed.update(embed)
    return make_spec(ModelSpec, config, where="model")


def losses(golden, spec):
    """Jitted f(params, pixels, keys) -> ((loss, outputs), gradients) of an image tower."""
    model = Functional.build(spec)

    def loss(params, pixels, inputs, keys):
        outputs = model(params, dict(image=pixels), WANT, keys)
        found = dict(tokens=outputs["image.tokens"].x, pooled=outputs["image.pooled"])
        if "labels" in inputs:
            return optax.softmax_cross_entropy_with_integer_labels(found["pooled"], inputs["labels"]).mean(), found
        return sum(jnp.mean(found[key] * inputs[f"{key}_weight"]) for key in found), found

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("how", [dict(scan=True), dict(scan=False, remat="full")], ids=["scan", "unrolled"])
def test_outputs_loss_and_gradients_agree_with_the_reference(name, how):
    golden = load(name)
    inputs, wanted = part(golden, "inputs/"), part(golden, "outputs/")
    spec = spec_of(golden, **how)
    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    (value, outputs), (param_grads, pixel_grads) = losses(golden, spec)(params, inputs["pixel_values"], inputs, None)
    assert_close(value, golden["loss"], "loss")
    for key in wanted:
        assert_close(outputs[key], wanted[key], key)
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the pixels")
    grads, wanted = huggingface.to_huggingface(param_grads, spec), part(golden, "grads/")
    for weight in wanted:
        assert_close(grads[weight], wanted[weight], weight)
    assert len(wanted) > 30


@pytest.mark.parametrize("name", IMAGES)
def test_conversion_gives_every_parameter_once_and_goes_both_ways(name):
    golden = load(name)
    spec, weights = spec_of(golden), part(golden, "weights/")
    params = huggingface.from_huggingface(weights, spec)
    expected = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    shapes = lambda tree: {path: leaf.shape for path, leaf in flatten_paths(tree).items()}
    assert shapes(params) == shapes(expected)
    back = huggingface.to_huggingface(params, spec)
    assert back.keys() == weights.keys()
    for weight in weights:
        np.testing.assert_array_equal(back[weight], weights[weight], err_msg=weight)


@pytest.mark.parametrize("name", IMAGES)
def test_the_configuration_comes_back(name):
    settings = json.loads(str(load(name)["config"]))
    spec = make_spec(ModelSpec, huggingface.model_config(settings), where="model")
    family = huggingface.family_for(spec)
    assert family.model_type == settings["model_type"]
    written = json.loads(json.dumps(family.to_config(spec)))
    assert make_spec(ModelSpec, family.model_config(written), where="model") == spec
    known = {key: settings[key] for key in written if key in settings and key not in ("id2label", "label2id")}
    assert {key: written[key] for key in known} == known


CONVNEXTS = {"T": 27_820_128, "S": 49_454_688, "B": 87_566_464, "L": 196_230_336, "XL": 348_147_968}


@pytest.mark.parametrize("variant", CONVNEXTS)
def test_convnexts_have_as_many_parameters_as_published(variant):
    model = presets.dual_tower(image=presets.convnext(variant, image_size=224))
    shapes = jax.eval_shape(Functional.build(make_spec(ModelSpec, model, where="model")).init, jax.random.key(0))
    assert sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes)) == CONVNEXTS[variant]


def test_the_preset_is_the_reference_by_default():
    config = dict(model_type="convnext", layer_norm_eps=1e-6)
    tiny = presets.dual_tower(image=presets.convnext("T", image_size=224))
    assert make_spec(ModelSpec, huggingface.model_config(config), where="") == make_spec(ModelSpec, tiny, where="")
