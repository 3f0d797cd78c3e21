"""Chinese-CLIP agrees with its reference implementation: see tests/golden/README.md."""

import json

import jax
import numpy as np
import pytest
from test_golden import assert_close, load, part, run, spec_of

from xmodal.config import make_spec
from xmodal.interop import huggingface
from xmodal.interop.chinese_clip import CHINESE_CLIP
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.contrastive import SoftmaxContrastive, normalize
from xmodal.paths import flatten_paths


def test_outputs_loss_and_gradients_agree_with_the_reference():
    golden = load("chinese_clip")
    spec = spec_of(golden)
    loss, outputs, grads, pixel_grads = run(golden, SoftmaxContrastive(form="plain"), spec)
    assert_close(loss, golden["loss"], "loss")
    for tower in ("image", "text"):
        assert_close(normalize(outputs[f"{tower}.pooled"]), golden[f"outputs/{tower}_embeds"], tower)
    assert_close(outputs["text.tokens"].x, golden["outputs/text_last_hidden_state"], "text tokens")
    assert_close(pixel_grads, golden["input_grads/pixel_values"], "gradient of the pixels")
    grads, wanted = huggingface.to_huggingface(grads, spec), part(golden, "grads/")
    assert grads.keys() == wanted.keys() and len(wanted) > 90
    for weight in wanted:
        key_bias = "key.bias" in weight or "k_proj.bias" in weight  # zero by construction: rounding noise
        query = weight.replace(".key.", ".query.").replace("k_proj", "q_proj")
        assert_close(grads[weight], wanted[weight], weight, np.max(np.abs(wanted[query])) if key_bias else 0.0)


def test_conversion_gives_every_parameter_once_and_goes_both_ways():
    golden = load("chinese_clip")
    spec, weights = spec_of(golden), part(golden, "weights/")
    params = huggingface.from_huggingface(weights, spec)
    expected = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    shapes = lambda tree: {p: leaf.shape for p, leaf in flatten_paths(tree).items() if "objectives" not in p}
    assert shapes(params) == shapes(expected)
    back = huggingface.to_huggingface(params, spec)
    assert back.keys() == weights.keys()
    for weight in weights:
        np.testing.assert_array_equal(back[weight], weights[weight], err_msg=weight)


def test_the_configuration_comes_back():
    settings = json.loads(str(load("chinese_clip")["config"]))
    spec = make_spec(ModelSpec, huggingface.model_config(settings), where="model")
    assert huggingface.family_for(spec) is CHINESE_CLIP
    written = json.loads(json.dumps(CHINESE_CLIP.to_config(spec)))
    assert make_spec(ModelSpec, huggingface.model_config(written), where="model") == spec
    settings, written = flatten_paths(settings), flatten_paths(written)
    known = {key: settings[key] for key in written if key in settings}
    assert {key: written[key] for key in known} == known and len(known) > 20


def test_presets_are_the_published_sizes():
    """ViT-B/16 with RoBERTa-wwm-ext-base, as counted in the paper: 86 and 102 million parameters."""
    embed = dict(vocab_size=21128, length=512)
    model = presets.dual_tower(
        image=presets.vit("B16", embed=dict(image_size=224)), text=presets.chinese_clip_text("B", embed=embed)
    )
    spec = make_spec(ModelSpec, model, where="model")
    published = dict(
        model_type="chinese_clip", projection_dim=512, vision_config=dict(patch_size=16),
        text_config=dict(vocab_size=21128),
    )  # fmt: skip
    found = make_spec(ModelSpec, huggingface.model_config(published), where="model")
    assert CHINESE_CLIP.table(spec) == CHINESE_CLIP.table(found)
    shapes = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    count = lambda tower: sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes[tower]))
    assert round(count("image") / 1e6) == 86 and round(count("text") / 1e6) == 102
    assert huggingface.family_for(spec) is CHINESE_CLIP


def test_what_the_reference_does_not_have_is_refused():
    config = huggingface.model_config(json.loads(str(load("chinese_clip")["config"])))
    changes = (
        (dict(pooler=True), "text/heads/pooled/pooler: is True, needs False"),
        (dict(projection_bias=True), "text/heads/pooled/projection_bias: is True, needs False"),
        (dict(embed_dim=20), "text/heads/pooled/embed_dim: is 20, needs 24"),
        (dict(pool="mean"), "text/heads/pooled/pool: is 'mean', needs 'cls'"),
    )
    for change, message in changes:
        other = config.copy_and_resolve_references()
        other.towers.text.heads.pooled.update(change)
        with pytest.raises(ValueError, match=message):
            huggingface.table(make_spec(ModelSpec, other, where="model"))
