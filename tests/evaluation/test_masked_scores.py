"""Masked accuracy and pseudo-perplexity of held-out texts, against NumPy."""

import helpers
import jax
import numpy as np
import pytest
from tiny_world import changed

from data_pipelines.text.tokenizers import train_wordpiece
from xmodal.evaluation.masked_text import MaskedText
from xmodal.models import presets

LENGTH = 8


@pytest.fixture(scope="module")
def bert(world):
    """The world with a small BERT: context, parameters, and its texts."""
    texts = sorted({" ".join(f"thing {i} small star moon sun".split()[: 1 + i % 6]) for i in range(45)})
    words = train_wordpiece(texts, 60)
    embed = dict(vocab_size=words.vocab_size, length=LENGTH)
    tower = presets.bert_tower(**helpers.SIZE, head="masked", embed=embed)
    data = world.context.data.copy_and_resolve_references()
    data.inputs.text.length = LENGTH
    model = helpers.build(dict(text=tower))
    context = changed(world.context, model=model, tokenizer=words, data=data)
    return context, helpers.random_params(model)


def evaluate(world, bert, **options):
    context, params = bert
    with jax.set_mesh(world.mesh):
        found = MaskedText(world.urls, captions=("{lines}",), **options).prepare("x", context)(params).metrics
    return {name.removeprefix("masked_text/x/"): value for name, value in found.items()}


def test_each_token_is_guessed_once_from_all_others(world, bert):
    context, params = bert
    got = evaluate(world, bert, hide="each", batch_size=16)
    records = MaskedText(world.urls, captions=("{lines}",)).open("x", context).records
    texts = list(dict.fromkeys(text for record in records for text in record.captions))
    tokenizer = context.text.vocabulary
    ids, valid = tokenizer.encode(texts, LENGTH)
    rows, places = np.nonzero(valid & ~np.isin(ids, tokenizer.special_ids))
    hidden = ids[rows].copy()
    hidden[np.arange(len(rows)), places] = tokenizer.mask_id
    run = helpers.forward(context.model, "text.logits")
    logits = np.asarray(run(params, dict(text=hidden, text_valid=valid[rows]))["text.logits"], np.float64)
    logits, targets = logits[np.arange(len(rows)), places], ids[rows, places]
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(rows)), targets]
    assert got["tokens"] == len(rows) and got["texts"] == len(texts)
    assert got["loss"] == pytest.approx(nll.mean(), rel=1e-5)
    assert got["perplexity"] == pytest.approx(np.exp(nll.mean()), rel=1e-4)
    assert got["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == targets))
    assert got["chance/accuracy"] == np.bincount(targets).max() / len(targets)


def test_a_share_is_hidden_the_same_way_for_any_batch_size(world, bert):
    got, again = (evaluate(world, bert, repeats=2, batch_size=size) for size in (16, 40))
    assert got.keys() == again.keys()
    for name, value in got.items():
        assert value == pytest.approx(again[name], rel=1e-6), name
    assert got["tokens"] == 2 * got["texts"], "of short texts one token is hidden at a time"
    assert got != evaluate(world, bert, repeats=1, batch_size=16)
