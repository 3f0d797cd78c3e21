"""ResNets agree with transformers and open_clip, with running statistics and with those of a batch: golden files."""

import dataclasses
import json

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_golden import assert_close, family_of, load, one_device, part

from xmodal.config import make_spec
from xmodal.interop import OPEN_CLIP, huggingface
from xmodal.models import presets
from xmodal.models.batch_norm import updated
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.contrastive import SoftmaxContrastive, normalize
from xmodal.paths import flatten_paths

NAMES = ("resnet", "resnet_v1", "resnet_classifier", "clip_resnet")
HOW = {
    "unrolled": dict(),
    "scan": dict(scan=True, remat="convolutions"),
    "remat": dict(remat="full"),
}
SPEC = lambda model: make_spec(ModelSpec, model, where="model")


def reference_of(golden):
    """The family and what it makes of the configuration."""
    family, config = family_of(golden)
    model = family.model_config(config)
    height, width = golden["inputs/pixel_values"].shape[1:3]
    with model.towers.image.embed.ignore_type():
        model.towers.image.embed.image_size = height if height == width else (height, width)
    return family, SPEC(model)


def changed(spec, golden, **how):
    """The model with the epsilon and momentum of the golden file, which the references fix."""
    own = dict(norm_eps=float(golden["eps"]), momentum=1.0 - float(golden["momentum"])) | how
    image = spec.towers["image"]
    image = dataclasses.replace(image, embed=dataclasses.replace(image.embed, **own))
    return Functional.build(dataclasses.replace(spec, towers=spec.towers | dict(image=image)))


def batch_of(golden):
    inputs = part(golden, "inputs/")
    if "input_ids" not in inputs:
        return dict(image=inputs["pixel_values"])
    number = np.arange(len(inputs["input_ids"]), dtype=np.uint32)
    identity = np.stack([number, number], axis=1)
    return dict(image=inputs["pixel_values"], text=inputs["input_ids"], key_id=identity, caption_id=identity,
                text_valid=inputs["attention_mask"].astype(bool))  # fmt: skip


def loss_of(golden, model, mode):
    """Returns (params, pixels) -> (loss, (outputs by the golden file's names, moments))."""
    inputs, batch = part(golden, "inputs/"), batch_of(golden)
    keys = helpers.sample_keys(len(batch["image"])) if mode == "train" else None
    want = {"statistics"} if mode == "train" else set()
    clip = "text" in batch

    def loss(params, pixels):
        want_of = {"image.pooled", "text.pooled"} if clip else {"image.pooled", "image.tokens"}
        outputs = model(params, batch | dict(image=pixels), frozenset(want | want_of), keys)
        moments = outputs.get("statistics")
        if clip:
            found = {f"{tower}_embeds": normalize(outputs[f"{tower}.pooled"]) for tower in ("image", "text")}
            own = params["objectives"]["contrastive"]
            total, weight, *_ = SoftmaxContrastive(form="plain")(outputs, batch, own, one_device())
            return total / weight, (found, moments)
        found = dict(tokens=outputs["image.tokens"].x, pooled=outputs["image.pooled"])
        if "labels" in inputs:
            value = optax.softmax_cross_entropy_with_integer_labels(found["pooled"], inputs["labels"]).mean()
            return value, (dict(pooled=found["pooled"]), moments)
        return sum(jnp.mean(value * inputs[f"{key}_weight"]) for key, value in found.items()), (found, moments)

    return loss


@pytest.mark.parametrize(
    "name,mode,how",
    [
        ("resnet", "eval", "scan"),
        ("resnet", "train", "unrolled"),
        ("resnet_v1", "eval", "unrolled"),
        ("resnet_v1", "train", "scan"),
        ("resnet_classifier", "eval", "scan"),
        ("resnet_classifier", "train", "remat"),
        ("clip_resnet", "eval", "unrolled"),
        ("clip_resnet", "train", "scan"),
    ],
)
def test_outputs_loss_gradients_and_statistics_agree_with_the_reference(name, mode, how):
    golden = load(name)
    family, spec = reference_of(golden)
    model = changed(spec, golden, **HOW[how])
    params = family.to_params(part(golden, "weights/"), spec)
    gradient = jax.jit(jax.value_and_grad(loss_of(golden, model, mode), argnums=(0, 1), has_aux=True))
    with jax.set_mesh(one_device()):
        (value, (outputs, moments)), (grads, pixel_grads) = gradient(params, batch_of(golden)["image"])

    wanted = part(golden, f"{mode}/outputs/")
    assert_close(value, golden[f"{mode}/loss"], "loss")
    assert outputs.keys() == wanted.keys()
    for key in wanted:
        assert_close(outputs[key], wanted[key], key)
    assert_close(pixel_grads[:1], golden[f"{mode}/input_grads/pixel_values"], "gradient of the pixels")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["statistics"]))
    found, wanted = family.to_weights(grads, spec), part(golden, f"{mode}/grads/")
    assert wanted.keys() == {name for name in found if "running_" not in name and not name.endswith("batches_tracked")}
    # What a batch's own statistics subtract again leaves differences of large terms, and float32 has an error on the
    # scale of those; the gradient of the pool's key bias is zero (softmax ignores it) and rounding noise there.
    large = 0.02 * max(np.max(np.abs(grad)) for grad in wanted.values())
    for weight in wanted:
        rounding = mode == "train" or weight.endswith("attnpool.k_proj.bias")
        assert_close(found[weight], wanted[weight], weight, large if rounding else 0.0)
    if mode == "train":
        moved = family.to_weights(params | dict(statistics=updated(params["statistics"], moments)), spec)
        for name, statistic in part(golden, "train/statistics/").items():
            assert_close(moved[name], statistic, name)
            assert np.max(np.abs(statistic - golden[f"weights/{name}"])) > 1e-3, "the test is not an empty one"


def test_pictures_of_any_shape_go_through_clips_pool():
    golden = load("clip_resnet")
    family, spec = reference_of(golden)
    model = changed(spec, golden, image_size=(45, 70))
    params = family.to_params(part(golden, "weights/"), spec)
    params["image"]["pool"]["position"] = params["image"]["pool"]["position"][:3]
    images = part(golden, "wide/inputs/")["pixel_values"]
    keys = helpers.sample_keys(len(images))
    run = jax.jit(lambda p, x: model(p, dict(image=x), frozenset({"image.pooled"}), keys)["image.pooled"])
    with jax.set_mesh(one_device()):
        assert_close(normalize(run(params, images)), golden["wide/train/image_embeds"], "image")


@pytest.mark.parametrize("name", NAMES)
def test_conversion_gives_every_parameter_once_and_goes_both_ways(name):
    golden = load(name)
    family, spec = reference_of(golden)
    weights = part(golden, "weights/")
    params = family.to_params(weights, spec)
    own = dict(params)
    own.pop("objectives", None)
    shapes = lambda tree: {path: leaf.shape for path, leaf in flatten_paths(tree).items()}
    assert shapes(own) == shapes(jax.eval_shape(Functional.build(spec).init, jax.random.key(0)))
    back = family.to_weights(params, spec)
    counters = {key for key in back if key.endswith(".num_batches_tracked")}
    assert back.keys() - counters == weights.keys()
    assert len(counters) == sum(key.endswith(".running_var") for key in weights)
    assert all(back[key].dtype == np.int64 for key in counters)
    for key in weights:
        np.testing.assert_array_equal(back[key], weights[key], err_msg=key)
    assert family.to_params(back, spec).keys() == params.keys()  # a file with the counters is read as well


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_comes_back(name):
    family, config = family_of(load(name))
    spec = SPEC(family.model_config(config))
    written = json.loads(json.dumps(family.to_config(spec)))
    assert SPEC(family.model_config(written)) == spec
    known = {key: config[key] for key in written if key in config and key not in ("id2label", "label2id", "text_cfg")}
    assert {key: written[key] for key in known} == known


def test_presets_equal_the_published_settings():
    published = huggingface.model_config(dict(model_type="resnet"))
    assert SPEC(published) == SPEC(presets.dual_tower(image=presets.resnet("50", image_size=224)))
    basic = dict(model_type="resnet", layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    assert SPEC(huggingface.model_config(basic)) == SPEC(presets.dual_tower(image=presets.resnet("18", image_size=224)))
    # open_clip's RN50x4.json; its release with OpenAI's weights has quick_gelu
    text = dict(context_length=77, vocab_size=49408, width=640, heads=10, layers=12)
    config = dict(embed_dim=640, quick_gelu=True, text_cfg=text,
                  vision_cfg=dict(image_size=288, layers=[4, 6, 10, 6], width=80, patch_size=None))  # fmt: skip
    tokens = dict(vocab_size=49408, length=77)
    ours = presets.dual_tower(
        image=presets.clip_resnet("RN50x4", image_size=288),
        text=presets.clip_text("RN50x4", hidden=2560, embed=tokens),
    )
    assert SPEC(OPEN_CLIP["resnet"].model_config(config)) == SPEC(ours)


def test_what_the_references_do_not_have_is_refused():
    _, config = family_of(load("resnet"))
    for key, value in dict(downsample_in_first_stage=True, hidden_act="gelu").items():
        with pytest.raises(ValueError, match=f"{key} is {value!r}, needs"):
            huggingface.model_config(config | {key: value})
    model = huggingface.model_config(config)
    model.towers.image.embed.norm_eps = 1e-3
    with pytest.raises(ValueError, match=r"image/embed/norm_eps: is 0\.001, needs 1e-05"):
        huggingface.table(SPEC(model))
    family, config = family_of(load("clip_resnet"))
    model = family.model_config(config)
    model.towers.image.embed.update(image_size=80, style="v1.5")
    with pytest.raises(ValueError, match=r"image/embed/style: is 'v1\.5', needs 'clip'"):
        family.table(SPEC(model))
    model.towers.image.embed.update(image_size=95, style="clip")
    with pytest.raises(ValueError, match="image_size: is 95, needs a square of a multiple of 32"):
        family.table(SPEC(model))
