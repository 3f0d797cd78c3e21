"""SigLIP 2 with packed patches agrees with `Siglip2Model`: golden files, see tests/golden/README.md."""

import json

import jax
import numpy as np
import pytest
from test_golden import PAD, WANT, assert_close, load, one_device, part

from xmodal.config import make_spec
from xmodal.interop import huggingface
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.contrastive import SigmoidContrastive, normalize
from xmodal.paths import flatten_paths


@pytest.fixture(scope="module")
def golden():
    return load("siglip2")


def spec_of(golden, **trunk):
    config = huggingface.model_config(json.loads(str(golden["config"])))
    for tower in config.towers.values():
        tower.trunk.update(trunk)
    return make_spec(ModelSpec, config, where="model")


def batch_of(golden):
    inputs = part(golden, "inputs/")
    number = np.arange(len(inputs["input_ids"]), dtype=np.uint32)
    identity = np.stack([number, number], axis=1)
    return dict(
        image=inputs["pixel_values"], image_grid=inputs["spatial_shapes"], text=inputs["input_ids"],
        text_valid=inputs["input_ids"] != PAD, key_id=identity, caption_id=identity,
    )  # fmt: skip


@pytest.mark.parametrize("trunk", [dict(scan=True), dict(scan=False, remat="full")], ids=["scan", "unrolled"])
def test_outputs_loss_and_gradients_agree_with_the_reference(golden, trunk):
    spec, batch = spec_of(golden, **trunk), batch_of(golden)
    model, objective, mesh = Functional.build(spec), SigmoidContrastive(form="plain"), one_device()

    def loss(params, pixels):
        outputs = model(params, batch | dict(image=pixels), WANT)
        total, weight, *_ = objective(outputs, batch, params["objectives"]["contrastive"], mesh)
        return total / weight, outputs

    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    with jax.set_mesh(mesh):
        (value, outputs), (param_grads, pixel_grads) = gradient(params, batch["image"])

    wanted = part(golden, "outputs/")
    assert_close(value, golden["loss"], "loss")
    for tower in ("image", "text"):
        assert_close(normalize(outputs[f"{tower}.pooled"]), wanted[f"{tower}_embeds"], tower)
    # Padding, too: it gets the position of the first patch.
    assert_close(outputs["image.tokens"].x, wanted["vision_last_hidden_state"], "image tokens")
    assert_close(outputs["text.tokens"].x, wanted["text_last_hidden_state"], "text tokens")
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the patches")
    room = np.prod(batch["image_grid"], axis=1)
    assert not any(np.any(grad[n:]) for grad, n in zip(pixel_grads, room)), "padding has a gradient"
    grads, wanted = huggingface.to_huggingface(param_grads, spec), part(golden, "grads/")
    assert grads.keys() == wanted.keys()
    for weight in wanted:  # softmax ignores what all keys share: the gradient of a key bias is rounding noise
        floor = np.max(np.abs(wanted[weight.replace("k_proj", "q_proj")])) if "k_proj.bias" in weight else 0.0
        assert_close(grads[weight], wanted[weight], weight, floor)


def test_conversion_gives_every_parameter_once_and_goes_both_ways(golden):
    spec, weights = spec_of(golden), part(golden, "weights/")
    params = huggingface.from_huggingface(weights, spec)
    expected = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    shapes = lambda tree: {path: leaf.shape for path, leaf in flatten_paths(tree).items()}
    assert shapes({tower: params[tower] for tower in spec.towers}) == shapes(expected)
    back = huggingface.to_huggingface(params, spec)
    assert back.keys() == weights.keys()
    for weight in weights:
        np.testing.assert_array_equal(back[weight], weights[weight], err_msg=weight)


def test_the_configuration_comes_back(golden):
    settings = json.loads(str(golden["config"]))
    spec = spec_of(golden)
    family = huggingface.family_for(spec)
    assert family.model_type == "siglip2"
    written = family.to_config(spec)
    assert make_spec(ModelSpec, family.model_config(written), where="model") == spec
    for section in ("vision_config", "text_config"):
        assert {key: settings[section][key] for key in written[section]} == written[section]


def test_presets_equal_the_published_settings():
    spec = lambda config: make_spec(ModelSpec, config, where="model")
    words = dict(vocab_size=256_000, length=64)
    base = presets.dual_tower(
        image=presets.naflex(presets.vit("B16", style="siglip", hidden=3072)),
        text=presets.siglip_text("B16", hidden=3072, embed=words),
    )
    published = dict(model_type="siglip2", text_config=dict(vocab_size=256_000))
    assert spec(huggingface.model_config(published)) == spec(base)

    so400m = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
    giant = dict(hidden_size=1536, intermediate_size=6144, num_hidden_layers=40, num_attention_heads=16)
    for variant, vision, size in (("So400m14", so400m, 384), ("So400m16", so400m, 384), ("gopt16", giant, 384)):
        patch = int(variant[-2:])
        published = dict(
            model_type="siglip", vision_config=vision | dict(image_size=size, patch_size=patch),
            text_config=so400m | dict(vocab_size=256_000, projection_size=vision["hidden_size"]),
        )  # fmt: skip
        image = dict(image_size=size, ragged=variant == "So400m14")  # 27 patches of 14 pixels, and 6 are left
        own = dict(hidden=6144) if variant == "gopt16" else {}
        towers = presets.dual_tower(
            image=presets.vit(variant, style="siglip", embed=image, **own),
            text=presets.siglip_text(variant, embed=words),
        )
        imported = spec(huggingface.model_config(published))
        assert imported == spec(towers), variant
        assert imported.towers["image"].embed.grid == (size // patch, size // patch)


def test_what_the_reference_does_not_have_is_refused(golden):
    settings = json.loads(str(golden["config"]))
    settings["vision_config"]["num_patches"] = 24
    with pytest.raises(ValueError, match="num_patches is 24 and patch_size 4: needs the number of a square grid"):
        huggingface.model_config(settings)
    settings["vision_config"].update(num_patches=25, vision_use_head=False)
    with pytest.raises(ValueError, match="without its pooling head"):
        huggingface.model_config(settings)
    config = huggingface.model_config(json.loads(str(golden["config"])))
    config.towers.image.trunk.pattern[0][0]["qk_norm"] = True
    with pytest.raises(ValueError, match="Siglip2Model has no such model:\n  image/trunk/pattern/0/0/qk_norm"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
