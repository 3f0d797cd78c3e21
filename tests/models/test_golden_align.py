"""ConvNeXt, EfficientNet and ALIGN agree with their reference implementations: see tests/golden/README.md."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_golden import assert_close, load, part, run

from xmodal.config import make_spec
from xmodal.interop import huggingface
from xmodal.interop.align import SMOOTHING
from xmodal.models import presets
from xmodal.models.batch_norm import STATISTICS, updated
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.contrastive import SoftmaxContrastive, normalize
from xmodal.paths import flatten_paths

ALL = ("convnext", "convnext_classifier", "efficientnet", "efficientnet_classifier", "align")
IMAGES = ALL[:4]
WANT = frozenset({"image.tokens", "image.pooled", STATISTICS})


def spec_of(golden, **embed):
    config = huggingface.model_config(json.loads(str(golden["config"])))
    config.towers.image.embed.update(embed)
    return make_spec(ModelSpec, config, where="model")


def losses(golden, spec):
    """Jitted f(params, pixels, inputs, keys) -> ((loss, outputs), gradients) of an image tower."""
    model = Functional.build(spec)

    def loss(params, pixels, inputs, keys):
        outputs = model(params, dict(image=pixels), WANT, keys)
        found = dict(tokens=outputs["image.tokens"].x, pooled=outputs["image.pooled"])
        everything = found | {STATISTICS: outputs[STATISTICS]}
        if "labels" in inputs:
            losses = optax.softmax_cross_entropy_with_integer_labels(found["pooled"], inputs["labels"])
            return losses.mean(), everything
        return sum(jnp.mean(found[key] * inputs[f"{key}_weight"]) for key in found), everything

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("name", IMAGES)
def test_outputs_loss_and_gradients_agree_with_the_reference(name):
    golden, how = load(name), dict(scan=False, remat="full") if "classifier" in name else dict(scan=True)
    inputs, wanted = part(golden, "inputs/"), part(golden, "outputs/")
    spec = spec_of(golden, **how)
    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    (value, outputs), (param_grads, pixel_grads) = losses(golden, spec)(params, inputs["pixel_values"], inputs, None)
    assert_close(value, golden["loss"], "loss")
    for key in wanted:
        assert_close(outputs[key], wanted[key], key)
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the pixels")
    param_grads.setdefault("statistics", params.get("statistics", {}))
    grads, wanted = huggingface.to_huggingface(param_grads, spec), part(golden, "grads/")
    for weight in wanted:
        assert_close(grads[weight], wanted[weight], weight)
    assert len(wanted) > 30


@pytest.mark.parametrize("name", ALL)
def test_conversion_gives_every_parameter_once_and_goes_both_ways(name):
    golden = load(name)
    spec, weights = spec_of(golden), part(golden, "weights/")
    params = huggingface.from_huggingface(weights, spec)
    expected = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    shapes = lambda tree: {p: leaf.shape for p, leaf in flatten_paths(tree).items() if "objectives" not in p}
    assert shapes(params) == shapes(expected)
    back = huggingface.to_huggingface(params, spec)
    back = {weight: a for weight, a in back.items() if not weight.endswith("num_batches_tracked")}
    assert back.keys() == weights.keys()
    for weight in weights:
        if "text_model.pooler" in weight:  # the reference has one and does not read it
            assert back[weight].shape == weights[weight].shape and not back[weight].any()
        elif weight == "temperature":  # through its logarithm
            np.testing.assert_allclose(back[weight], weights[weight], rtol=1e-6)
        else:
            np.testing.assert_array_equal(back[weight], weights[weight], err_msg=weight)


@pytest.mark.parametrize("name", ALL)
def test_the_configuration_comes_back(name):
    settings = json.loads(str(load(name)["config"]))
    spec = make_spec(ModelSpec, huggingface.model_config(settings), where="model")
    family = huggingface.family_for(spec)
    assert family.model_type == settings["model_type"]
    written = json.loads(json.dumps(family.to_config(spec)))
    assert make_spec(ModelSpec, family.model_config(written), where="model") == spec
    settings, written = flatten_paths(settings), flatten_paths(written)
    known = {key: settings[key] for key in written if key in settings and "label" not in key}
    assert {key: written[key] for key in known} == known and len(known) > 10


def test_training_mode_agrees_with_the_reference():
    """Statistics of the batch in every norm, gradients through them, and what is kept of them."""
    golden = load("efficientnet")
    spec = spec_of(golden, norm_momentum=0.9)  # the file's config has 0.1, which its library counts the other way
    inputs = part(golden, "inputs/") | part(golden, "train/inputs/")
    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    keys = jax.random.split(jax.random.key(0), len(inputs["pixel_values"]))
    (value, outputs), (grads, pixel_grads) = losses(golden, spec)(params, inputs["pixel_values"], inputs, keys)
    assert_close(value, golden["train/loss"], "loss")
    for key, wanted in part(golden, "train/outputs/").items():
        assert_close(outputs[key], wanted, key)
    assert_close(pixel_grads, golden["train/input_grads/pixel_values"], "gradient of the pixels")
    wanted, grads = part(golden, "train/grads/"), huggingface.to_huggingface(grads, spec)
    assert wanted
    for weight in wanted:
        assert_close(grads[weight], wanted[weight], weight)

    after = {**params, STATISTICS: updated(params[STATISTICS], outputs[STATISTICS])}
    found, wanted = huggingface.to_huggingface(after, spec), part(golden, f"train/{STATISTICS}/")
    for name in wanted:
        assert_close(found[name], wanted[name], name)
    assert len(wanted) == 2 * sum(name.endswith("running_mean") for name in found)


def test_align_agrees_with_the_reference():
    golden = load("align")
    spec = spec_of(golden)
    loss, outputs, grads, pixel_grads = run(golden, SoftmaxContrastive(label_smoothing=SMOOTHING), spec)
    assert_close(loss, golden["loss"], "loss")
    for tower in ("image", "text"):
        assert_close(normalize(outputs[f"{tower}.pooled"]), golden[f"outputs/{tower}_embeds"], tower)
    assert_close(outputs["image.tokens"].x, golden["outputs/vision_tokens"], "image tokens")
    assert_close(outputs["text.tokens"].x, golden["outputs/text_last_hidden_state"], "text tokens")
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the pixels")
    wanted, temperature = part(golden, "grads/"), float(golden["weights/temperature"])
    own = grads["objectives"]["contrastive"].pop("logit_scale")  # -log(temperature)
    assert_close(-own / temperature, wanted.pop("temperature"), "gradient of the temperature")
    grads["objectives"]["contrastive"]["logit_scale"] = np.float32(0)
    grads = huggingface.to_huggingface(grads, spec)
    for weight in wanted:
        floor = np.max(np.abs(wanted[weight.replace(".key.", ".query.")])) if "key.bias" in weight else 0.0
        assert_close(grads[weight], wanted[weight], weight, floor)
    assert len(wanted) > 100


def test_align_refuses_what_it_cannot_be():
    golden = load("align")
    settings = json.loads(str(golden["config"]))
    with pytest.raises(ValueError, match=r"projection_dim is 640, and the image tower, .*, gives 24 channels"):
        huggingface.model_config(settings | dict(projection_dim=640))
    weights, spec = part(golden, "weights/"), spec_of(golden)
    with pytest.raises(ValueError, match=r"temperature is -0\.5: similarities cannot be divided"):
        huggingface.from_huggingface(weights | dict(temperature=np.float32(-0.5)), spec)
    config = huggingface.model_config(settings)
    config.towers.text.heads.pooled.pool = "mean"
    with pytest.raises(ValueError, match="text/heads/pooled/pool: is 'mean', needs 'cls'"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
    config.towers.image = presets.efficientnet("B0", embed_dim=24, image_size=33)
    with pytest.raises(ValueError, match="image/heads/pooled/embed_dim: is 24, needs 0"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))


PUBLISHED = {"T": 28_589_128, "B7": 66_347_960}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_classifiers_have_as_many_parameters_as_published(variant):
    make = presets.efficientnet if variant[-1].isdigit() else presets.convnext
    model = presets.dual_tower(image=presets.classifier(make(variant, image_size=224), 1000))
    shapes = jax.eval_shape(Functional.build(make_spec(ModelSpec, model, where="model")).init, jax.random.key(0))
    shapes.pop(STATISTICS, None)
    assert sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes)) == PUBLISHED[variant]


def test_presets_are_the_references_defaults():
    spec = lambda config: make_spec(ModelSpec, config, where="model")
    tiny = presets.dual_tower(image=presets.convnext("T", image_size=224))
    assert spec(huggingface.model_config(dict(model_type="convnext", layer_norm_eps=1e-6))) == spec(tiny)
    largest = presets.dual_tower(image=presets.efficientnet("B7", image_size=600))
    assert spec(huggingface.model_config(dict(model_type="efficientnet", depthwise_padding=[18]))) == spec(largest)


def test_what_the_references_do_not_have_is_refused():
    settings = json.loads(str(load("efficientnet")["config"]))
    for change, message in (
        (dict(pooling_type="max"), "pooling_type is 'max', needs 'mean'"),
        (dict(hidden_dim=1280), "hidden_dim is 1280, needs 304"),
        (dict(in_channels=[32, 16, 24, 41]), "in_channels is .*, needs "),
        (dict(hidden_act="mish"), "hidden_act 'mish' is not known"),
        (dict(strides=[1, 2]), "are not of the same stages"),
        (dict(architectures=["EfficientNetBackbone"]), "architectures is EfficientNetBackbone"),
    ):
        with pytest.raises(ValueError, match=message):
            huggingface.model_config(settings | change)
    config = huggingface.model_config(settings)
    config.towers.image.embed.top = 0
    config.towers.image.trunk.width = 24
    with pytest.raises(ValueError, match="image/embed/top: is 0, needs 1280"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
    config = huggingface.model_config(json.loads(str(load("convnext")["config"])))
    config.towers.image.heads.pooled.pool_norm = False
    with pytest.raises(ValueError, match="image/heads/pooled/pool_norm: is False, needs True"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
