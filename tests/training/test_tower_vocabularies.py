"""The tokenizer says how large the vocabulary of texts is, and of nothing else."""

import pytest

from data_pipelines.modalities import inputs_of
from data_pipelines.text.tokenizers import train_bpe
from xmodal.config import ConfigError
from xmodal.configs import git
from xmodal.models import presets
from xmodal.training.settle import resolve

TOKENIZER = train_bpe([f"thing {i}" for i in range(48)], 320)


def resolved(**changes):
    config = git.get_config()
    caption = config.model.towers.caption
    caption.embed.update(changes.pop("embed", {}))
    caption.heads.logits.update(changes)
    return settled(config).model.towers.caption


def settled(config):
    return resolve(config, inputs_of(config.data).with_tokenizers(dict(text=TOKENIZER)))


def test_texts_take_it():
    caption = resolved()
    assert caption.heads.logits.vocab_size == caption.embed.vocab_size == TOKENIZER.vocab_size
    assert resolved(vocab_size=999, embed=dict(vocab_size=999)).embed.vocab_size == 999, "more is no harm"
    message = r"caption.heads.logits.vocab_size is 9, but the vocabulary of .*text\.tokenizer is \d+"
    with pytest.raises(ConfigError, match=message):
        resolved(vocab_size=9)
    with pytest.raises(ConfigError, match=r"embed.vocab_size is 9, but the vocabulary of .*text\.tokenizer is \d+"):
        resolved(embed=dict(vocab_size=9))


def test_codes_of_an_image_do_not():
    caption = resolved(vocab_size=17, embed=dict(input="image_codes", vocab_size=17, length=4))
    assert (caption.heads.logits.vocab_size, caption.embed.vocab_size, caption.embed.length) == (17, 17, 4)
    with pytest.raises(ConfigError, match=r"caption.embed.vocab_size: these ids are those of no text of data.inputs"):
        resolved(vocab_size=17, embed=dict(input="image_codes", vocab_size=0))
    with pytest.raises(ConfigError, match=r"heads.logits.vocab_size: these ids are those of no text of data.inputs"):
        resolved(embed=dict(input="image_codes", vocab_size=17, length=4))


def test_a_head_without_an_embedder_predicts_what_its_last_tower_embeds():
    config = git.get_config()
    towers = config.model.towers
    towers.text = dict(towers.caption, reads={}, heads={})
    edges = dict(image={}, text=dict(order=1))
    towers.caption = dict(trunk=towers.caption.trunk, reads=edges, heads=presets.heads(head="linear"))
    assert settled(config).model.towers.caption.heads.logits.vocab_size == TOKENIZER.vocab_size
    towers.caption.update(reads=dict(image=dict(order=1), text=dict(order=0)))  # as BEiT's, over patches
    towers.caption.heads.logits.vocab_size = 17
    assert settled(config).model.towers.caption.heads.logits.vocab_size == 17


def test_each_tower_takes_the_vocabulary_of_its_input(tmp_path):
    """Two texts with tokenizers of different sizes: neither is forced upon the other's tower."""
    config = git.get_config()
    config.data.inputs.code = config.data.inputs.text.to_dict() | dict(length=9, templates=((1.0, "{hexcode}"),))
    towers = config.model.towers
    towers.code = dict(towers.caption.to_dict(), reads={}, embed=dict(towers.caption.embed, input="code"))
    other = train_bpe([f"{i:x}" for i in range(300)], 280)
    inputs = inputs_of(config.data).with_tokenizers(dict(text=TOKENIZER, code=other))
    found = resolve(config, inputs).model.towers
    assert found.code.heads.logits.vocab_size == found.code.embed.vocab_size == other.vocab_size
    assert found.code.embed.length == 9
    assert found.caption.heads.logits.vocab_size == TOKENIZER.vocab_size != other.vocab_size
