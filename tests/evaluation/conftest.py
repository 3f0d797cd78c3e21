"""A held-out set and a tiny model, on all devices and on one; and a model with the towers of every evaluator."""

import json

import helpers
import pytest
from tiny_world import KINDS, SAMPLES, World, changed, held_out

from data_pipelines.text.tokenizers import train_wordpiece
from tests.data.tiny_shards import write_tar
from xmodal.models import presets


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), 8)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The same on one device."""
    return World(tmp_path_factory.mktemp("world"), 1)


@pytest.fixture(scope="session")
def every_model():
    """Towers for every evaluator: a classifier's width, masked words, and one that writes."""
    texts = sorted({text.lower() for i in range(SAMPLES) for text in json.loads(held_out(i)["json"])["lines"]})
    words = train_wordpiece(texts, 80)
    embed = dict(vocab_size=words.vocab_size, length=helpers.LENGTH)
    text = presets.bert_tower(**helpers.SIZE, head="masked", embed_dim=helpers.WIDTH, embed=embed)
    caption = helpers.git(text_changes=dict(embed=embed))["caption"]
    built = helpers.build(dict(image=helpers.image(), text=text, caption=caption))
    return built, helpers.random_params(built), words


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """Samples that probes learn from."""
    folder = tmp_path_factory.mktemp("train")
    return str(write_tar(folder / "train.tar", {f"{i:03d}": held_out(i) for i in range(SAMPLES, 2 * SAMPLES)}))


@pytest.fixture(scope="session")
def contexts(world, alone, every_model):
    """(urls, context) on eight devices and on one."""

    def context(own):
        data = own.context.data.copy_and_resolve_references()
        classes = (*KINDS, *(f"none {i}" for i in range(helpers.WIDTH - len(KINDS))))
        data.inputs.label = dict(type="label", field="kind", classes=classes)
        return changed(own.context, model=every_model[0], tokenizer=every_model[2], data=data)

    return [(own, context(own)) for own in (alone, world)]
