"""BERT: masked language modelling on texts alone (Devlin et al. 2019); `:emoji` (default), `:base`, `:large`.

    python train.py --config configs/bert.py --workdir runs/bert_emoji
    python -m xmodal data build 'corpus/*.jsonl' --texts --out shards
    python train.py --config configs/bert.py:base --workdir runs/bert_base --config.mesh.fsdp=8 \
        --config.data.sources.train.urls='shards/*.tar' --config.data.inputs.text.tokenizer=bert/tokenizer.json \
        --config.evals.held_out.urls='held_out/*.tar'
    python train.py --config configs/bert.py:base_512 --workdir runs/bert_base_512 ...      # the last tenth

`:base` and `:large` have the published settings: batch 256, 900,000 steps at 128 tokens, 100,000 at 512 (`:base_512`,
`:large_512`, from the weights of the former), a learning rate that falls to 0 over all of them, 15 % of the tokens
hidden, dropout 0.1. Expect, from the paper: GLUE 79.6 and 82.1 on average, SQuAD 1.1 F1 88.5 and 90.9, each after
fine-tuning elsewhere (`python -m xmodal export --to hf`). Two things differ: no second sentence is predicted, and a
sample is one text, cut to length, rather than neighbouring sentences packed to it. Not run here.

`:emoji` learns names and keywords of 1,630 concepts in six languages and is measured on 181 others. Run here: model,
loss and gradients against the reference implementation at small size, and `:emoji` to its end (1,200 steps, 22 minutes
on 2 free cores): on concepts never seen it guesses 32.7 % of the hidden English tokens (27.4 % for the most common one;
loss 4.71, perplexity 111) and 26.6 to 33.3 % in the others (21.6 to 25.2 %). Guessing has a loss of 9.0. Not run here:
the published sizes.
"""

from xmodal.configs import base
from xmodal.configs.demo import SHARDS
from xmodal.models import presets

LANGUAGES = ("en", "de", "es", "fr", "zh", "ja")
VARIANTS = ("emoji", "base", "large", "base_512", "large_512")


def get_config(variant: str = "emoji"):
    c = base.get_config()
    c.objectives = dict(masked=dict(type="masked_text", tower="text", weight=1.0))
    c.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.01)
    if variant == "emoji":
        return emoji(c)
    size, _, phase = variant.partition("_")
    return long_texts(published(c, size), size) if phase else published(c, size)


def published(c, size: str):
    c.batch_size = 256
    c.model = presets.dual_tower(
        text=presets.bert(size, head="masked", embed=dict(length=512), remat="dots"), dtype="bfloat16"
    )
    c.data.sources = dict(train=dict(urls="data/texts-{0000..0009}.tar", weight=1.0))
    # An uncased tokenizer lower-cases texts itself.
    c.data.inputs = dict(text=dict(type="text", tokenizer="tokenizer.json", length=128, lower=False))
    c.data.lanes = 64
    c.evals = dict(held_out=dict(type="masked_text", urls="data/held_out-0000.tar", every="10%", limit=10_000))
    c.optimizer.lr = 1e-4
    c.schedule.update(total="900_000steps", warmup="10_000steps", decay="linear", final=0.1)
    c.checkpoint.update(every="10_000steps", keep_last=2, keep_every="10%")
    return c


def long_texts(c, size: str):
    """Goes on where `published` ends, at its last learning rate; the optimizer's moments start afresh."""
    c.init_from = f"runs/bert_{size}"
    c.data.inputs.text.length = 512
    c.optimizer.lr = 1e-5
    c.schedule.update(total="100_000steps", warmup="100steps", final=0.0)
    return c


def emoji(c):
    words = lambda language: f"{{labels.{language}}}, {{tags_by_language.{language}}}"
    c.batch_size = 128
    c.model = presets.dual_tower(text=presets.bert_tower(256, 4, 4, head="masked", scan=False))
    # Each concept once, whoever draws it; every visit shows it in another language, with other keywords.
    c.data.sources = dict(emoji=dict(urls=f"{SHARDS}/train-{{0000..0003}}.tar.gz", weight=1.0, unique="caption"))
    templates = tuple((1.0, words(language)) for language in LANGUAGES)
    wordpiece = "data_pipelines/emoji/wordpiece.json"
    c.data.inputs = dict(text=dict(type="text", tokenizer=wordpiece, length=32, templates=templates))
    c.evals = {
        language: dict(
            type="masked_text", urls=f"{SHARDS}/unseen_concepts-0000.tar.gz", captions=(words(language),), every="25%"
        )
        for language in LANGUAGES
    }  # fmt: skip
    c.optimizer.lr = 1e-3
    c.schedule.update(total="1200steps", warmup="5%", decay="linear")
    c.checkpoint.update(every="25%", keep_last=2)
    return c
