"""BERT agrees with its reference implementation: golden files, see tests/golden/README.md."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import assert_close, load, part

from xmodal.config import make_spec
from xmodal.interop import huggingface
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives.masked_text import MaskedText
from xmodal.paths import flatten_paths

NAMES = ("bert", "bert_masked")


def spec_of(golden, **trunk):
    config = huggingface.model_config(json.loads(str(golden["config"])))
    config.towers.text.trunk.update(trunk)
    return make_spec(ModelSpec, config, where="model")


def batch_of(golden):
    """The reference's inputs; of labels the places that count, in front of others."""
    inputs = part(golden, "inputs/")
    batch = dict(
        text=inputs["input_ids"], text_valid=inputs["attention_mask"].astype(bool), text_types=inputs["token_type_ids"]
    )
    if "labels" not in inputs:
        return batch
    places = np.argsort(inputs["labels"] < 0, axis=1, kind="stable")[:, :3]
    targets = np.take_along_axis(inputs["labels"], places, axis=1)
    return batch | dict(
        text_places=places, text_targets=np.maximum(targets, 0), text_targets_valid=targets >= 0
    )  # fmt: skip


def loss_of(name, golden, outputs):
    inputs = part(golden, "inputs/")
    if name == "bert":
        found = dict(tokens=outputs["text.tokens"].x, pooled=outputs["text.pooled"])
        return sum(jnp.mean(found[key] * inputs[f"{key}_weight"]) for key in found), found
    total, weight, *_ = MaskedText(mask_id=5, vocab_size=99)(outputs, batch_of(golden), {}, None)
    return total / weight, dict(logits=outputs["text.logits"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trunk", [dict(scan=True), dict(scan=False, remat="full")], ids=["scan", "unrolled"])
def test_outputs_loss_and_gradients_agree_with_the_reference(name, trunk):
    golden = load(name)
    wanted, batch, spec = part(golden, "outputs/"), batch_of(golden), spec_of(golden, **trunk)
    model = Functional.build(spec)
    want = frozenset({"text.tokens", "text.pooled"} if name == "bert" else {"text.logits", "text.masked_logits"})
    params = huggingface.from_huggingface(part(golden, "weights/"), spec)
    gradient = jax.jit(jax.value_and_grad(lambda p: loss_of(name, golden, model(p, batch, want)), has_aux=True))
    (value, outputs), grads = gradient(params)
    assert_close(value, golden["loss"], "loss")
    for key in wanted:
        assert_close(outputs[key], wanted[key], key)
    grads, wanted = huggingface.to_huggingface(grads, spec), part(golden, "grads/")
    assert grads.keys() == wanted.keys()
    for weight in wanted:  # softmax ignores what all keys share: the gradient of a key bias is rounding noise
        floor = np.max(np.abs(wanted[weight.replace(".key.", ".query.")])) if "key.bias" in weight else 0.0
        assert_close(grads[weight], wanted[weight], weight, floor)


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_comes_back(name):
    settings = json.loads(str(load(name)["config"]))
    spec = make_spec(ModelSpec, huggingface.model_config(settings), where="model")
    family = huggingface.family_for(spec)
    assert family.model_type == "bert"
    written = json.loads(json.dumps(family.to_config(spec)))
    again = family.model_config(family.with_names(written, part(load(name), "weights/")))
    assert make_spec(ModelSpec, again, where="model") == spec
    known = {key: settings[key] for key in written if key in settings}
    assert {key: written[key] for key in known} == known and len(known) > 12


def test_presets_equal_the_published_settings():
    spec = lambda config: make_spec(ModelSpec, config, where="model")
    sizes = dict(vocab_size=30522, length=512)
    base = presets.dual_tower(text=presets.bert("base", embed=sizes, hidden=3072))
    assert spec(huggingface.model_config(dict(model_type="bert"))) == spec(base)
    config = dict(model_type="bert", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                  intermediate_size=4096, architectures=["BertForPreTraining"])  # fmt: skip
    large = presets.bert("large", embed=sizes, hidden=4096, head="masked")
    assert spec(huggingface.model_config(config)) == spec(presets.dual_tower(text=large))
    count = lambda s: sum(a.size for a in jax.tree.leaves(jax.eval_shape(Functional.build(s).init, jax.random.key(0))))
    assert count(spec(base)) == 109_482_240  # of BertModel


def test_a_published_file_holds_more_than_its_class_and_older_names():
    golden = load("bert_masked")
    settings, weights = json.loads(str(golden["config"])), part(golden, "weights/")
    width = settings["hidden_size"]
    rng = np.random.default_rng(0)
    pooler = {
        "bert.pooler.dense.weight": rng.normal(size=(width, width)), "bert.pooler.dense.bias": rng.normal(size=width)
    }  # fmt: skip
    extra = {
        "cls.seq_relationship.weight": np.zeros((2, width)), "cls.seq_relationship.bias": np.zeros(2),
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "bert.embeddings.position_ids": np.arange(16)[None],
    }  # fmt: skip
    old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    given = {old(name): array for name, array in (weights | pooler | extra).items()}
    family = huggingface.family_of(settings)
    spec = make_spec(ModelSpec, family.model_config(family.with_names(settings, given)), where="model")
    assert spec.towers["text"].pooled.pooler and spec.towers["text"].head == "masked"
    back = family.to_weights(family.to_params(given, spec), spec)
    assert back.keys() == (weights | pooler).keys()
    for name, array in (weights | pooler).items():
        np.testing.assert_array_equal(back[name], array.astype(np.float32), err_msg=name)


def test_what_the_reference_does_not_have_is_refused():
    settings = json.loads(str(load("bert")["config"]))
    for change, message in (
        (dict(is_decoder=True), "is_decoder is True, needs False"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key', needs 'absolute'"),
        (dict(tie_word_embeddings=False), "tie_word_embeddings is False, needs True"),
        (dict(architectures=["BertForSequenceClassification"]), "BertForSequenceClassification: known are BertModel"),
    ):
        with pytest.raises(ValueError, match=message):
            huggingface.model_config(settings | change)
    config = huggingface.model_config(settings)
    config.towers.text.heads.pooled.pool = "mean"
    with pytest.raises(ValueError, match="text/heads/pooled/pool: is 'mean', needs 'cls'"):
        huggingface.table(make_spec(ModelSpec, config, where="model"))
