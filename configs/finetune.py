"""Tunes a model that exists on pairs of your own: the path that most people take.

    hf download openai/clip-vit-base-patch32 --local-dir clip        # not part of xmodal
    python -m xmodal import hf:clip --out models/clip
    python train.py --config configs/finetune.py:full@models/clip --workdir runs/tuned \
        --config.data.sources.train.urls=pairs.csv --config.evals.held_out.source.urls=held_out.csv
    python -m xmodal export --workdir runs/tuned --to hf --out exported/tuned

`pairs.csv` has the columns `image` (paths beside it) and `caption`; a folder of pictures with captions works, too, and
tar shards (docs/data.md). Behind the `@` stands an imported folder or a run.
Model, loss, tokenizer and the preparation of pictures are those of the weights. Before the first step the held-out
figures of the start are measured; the best checkpoint is kept.

    full     all weights; each layer learns at 0.75 times the rate of the one above (docs/interop.md says more)
    lora     low-rank updates of queries and values alone; they are merged when the model leaves the run
    locked   the image tower stays as it is

`:small_full`, `:small_lora` and `:small_locked` are for small models and few pairs, such as the demo's model and some
hundreds: 15 epochs in batches of 64 with ten times the learning rate (25 times that of lora). With the rates above,
which suit large pretrained models, such a model barely moves.

`:emoji_full`, `:emoji_lora` and `:emoji_locked` tune runs/demo on the demo's own pairs. Run here from a run of
demo.py:stem (`emoji_full@runs/demo_stem`), all the unseen vendor's 1,811 drawings, image to text R@1 / R@10 (start
22.9 / 54.9 %, intervals of 2 points to either side): full 22.7 / 55.1, lora 23.0 / 54.8, locked 23.1 / 55.6. These
weights come from the same pairs, so the point is that nothing is lost. Not run from `:clip`, the demo of today.
"""

from xmodal.configs import base
from xmodal.configs.demo import emoji
from xmodal.interop.recipe import continue_from
from xmodal.interop.tables import InteropError
from xmodal.models import presets

KINDS = ("full", "lora", "locked")
NO_DECAY = (r".*/(bias|scale|logit_scale|logit_bias|gate)", dict(weight_decay=0.0))
VARIANTS = tuple(f"{prefix}{kind}@DIR" for prefix in ("", "small_", "emoji_") for kind in KINDS)


def get_config(variant: str = "full"):
    kind, _, where = variant.partition("@")
    prefix, _, own = kind.rpartition("_")
    c = emoji(base.get_config()) if prefix == "emoji" else pairs(base.get_config())
    try:
        c = continue_from(c, where or ("runs/demo" if prefix == "emoji" else "models/clip"))
    except InteropError as error:
        raise InteropError(
            f"{error}. The model to tune stands behind an `@`: configs/finetune.py:{kind}@DIR (a run or an imported "
            "folder)"
        ) from None
    {"full": full, "lora": lora, "locked": locked}[own](c)
    c.batch_size = 128
    c.schedule.update(total="3epochs", warmup="10%", decay="cosine")
    if prefix == "small":
        small(c, own)
    return c


def small(c, kind):
    c.batch_size = 64
    c.schedule.total = "15epochs"
    c.optimizer.lr = 5e-3 if kind == "lora" else 5e-4


def pairs(c):
    c.data.sources = dict(train=dict(urls="pairs.csv", weight=1.0))
    c.data.inputs = dict(
        image=dict(type="image", crop="random_resized", scale=(0.7, 1.0)),
        text=dict(type="text"),
    )
    c.data.lanes = 1  # lists of a few thousand pairs; more lanes serve more hosts
    held_out = dict(urls="held_out.csv")
    c.evals = dict(held_out=dict(type="retrieval", source=held_out, every="10%"))
    c.checkpoint.update(every="10%", keep_last=1, best="retrieval/held_out/image_to_text/R@1")
    return c


def full(c):
    c.optimizer.update(name="adamw", lr=5e-5, b2=0.98, weight_decay=0.05, layer_decay=0.75, rules=(NO_DECAY,))


def lora(c):
    c.model = presets.with_lora(c.model, rank=8, alpha=16)
    c.init_from_except += (r".*/lora_[ab]",)
    c.optimizer.update(name="adamw", lr=2e-4, b2=0.98, weight_decay=0.0)
    c.optimizer.rules = ((r".*/lora_[ab]", dict(weight_decay=0.0)), (r".*", dict(freeze=True)))


def locked(c):
    c.optimizer.update(name="adamw", lr=5e-5, b2=0.98, weight_decay=0.05)
    c.optimizer.rules = ((r"image/.*", dict(freeze=True)), NO_DECAY)
