"""The tokenizer says how large the vocabulary of texts is, and of nothing else."""

import pytest

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
    return resolve(config, TOKENIZER).model.towers.caption


def test_texts_take_it():
    caption = resolved()
    assert caption.heads.logits.vocab_size == caption.embed.vocab_size == TOKENIZER.vocab_size
    assert resolved(vocab_size=999, embed=dict(vocab_size=999)).embed.vocab_size == 999, "more is no harm"
    with pytest.raises(ConfigError, match=r"towers.caption.heads.logits.vocab_size is 9, but the tokenizer's is \d+"):
        resolved(vocab_size=9)
    with pytest.raises(ConfigError, match=r"towers.caption.embed.vocab_size is 9, but the tokenizer's is \d+"):
        resolved(embed=dict(vocab_size=9))


def test_codes_of_an_image_do_not():
    caption = resolved(vocab_size=17, embed=dict(input="image_codes", vocab_size=17, length=4))
    assert (caption.heads.logits.vocab_size, caption.embed.vocab_size, caption.embed.length) == (17, 17, 4)
    with pytest.raises(ConfigError, match=r"towers.caption.embed.vocab_size: these ids are not those of data.text"):
        resolved(vocab_size=17, embed=dict(input="image_codes", vocab_size=0))
    with pytest.raises(ConfigError, match=r"caption.heads.logits.vocab_size: these ids are not those of data.text"):
        resolved(embed=dict(input="image_codes", vocab_size=17, length=4))


def test_a_head_without_an_embedder_predicts_what_its_last_tower_embeds():
    config = git.get_config()
    towers = config.model.towers
    towers.text = dict(towers.caption, reads={}, heads={})
    edges = dict(image={}, text=dict(order=1))
    towers.caption = dict(trunk=towers.caption.trunk, reads=edges, heads=presets.heads(head="linear"))
    assert resolve(config, TOKENIZER).model.towers.caption.heads.logits.vocab_size == TOKENIZER.vocab_size
    towers.caption.update(reads=dict(image=dict(order=1), text=dict(order=0)))  # as BEiT's, over patches
    towers.caption.heads.logits.vocab_size = 17
    assert resolve(config, TOKENIZER).model.towers.caption.heads.logits.vocab_size == 17
