"""The demo: a small CLIP on emoji, trained from scratch on two CPU cores.

    make demo
    python train.py --config configs/demo.py --workdir runs/demo

Data: about 6,500 drawings of 1,630 concepts by four vendors, in the repository. Held out: a fifth vendor's drawings
of all 1,811 concepts, and 181 concepts that no vendor's drawing shows in training.

Expect 612 steps in 5 m 34 s at 250 samples/s (seen on two noisy cores, start and compiling apart); on the unseen vendor
image-to-text R@1 21.8 %, R@10 54.7 % (run here, three seeds; chance 0.06 % and 0.55 %). docs/experiments.md has what
was tried.
"""

from xmodal.configs import base
from xmodal.models import presets

SHARDS = "data_pipelines/emoji/shards"


def emoji(c):
    """Sets data and evaluations of the emoji set; shared by the recipes that learn from it."""
    c.data.sources = dict(emoji=dict(urls=f"{SHARDS}/train-{{0000..0003}}.tar.gz", weight=1.0))
    c.data.image.update(size=64, crop="random_resized", scale=(0.7, 1.0), flip=False, jitter=0.2)
    c.data.image.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.data.text.update(tokenizer="data_pipelines/emoji/tokenizer.json", length=16)
    c.data.text.templates = ((2.0, "{label}"), (1.0, "{label}, {tags}"))
    c.data.group_key = "hexcode"  # drawings of one concept are positives of one another, whatever their caption
    captions = ("{label}",)
    c.evals = dict(
        unseen_vendor=dict(
            type="retrieval", urls=f"{SHARDS}/unseen_vendor-0000.tar.gz", captions=captions, by="split", every="25%"
        ),
        unseen_concepts=dict(
            type="retrieval", urls=f"{SHARDS}/unseen_concepts-0000.tar.gz", captions=captions, every="25%"
        ),
        groups=dict(
            type="zero_shot", urls=f"{SHARDS}/unseen_vendor-0000.tar.gz", captions=captions, label_field="subgroup",
            prompts=("{label}", "a drawing of {label}"), every="100%",
        ),
    )  # fmt: skip
    return c


def towers(hidden: int) -> dict:
    """An image tower with a convolutional stem and a text tower of one layer; `hidden` is the width of their MLPs."""
    common = dict(act="gelu_tanh", embed_dim=256, pool="mean", scan=False, hidden=hidden)
    stem = dict(stem=((48, 4, 4), (128, 3, 2)), pre_norm=False, bias=True)
    return dict(
        image=presets.image_tower(256, 3, 4, patch_size=16, embed=stem, **common),
        text=presets.text_tower(256, 1, 4, embed=dict(causal=False), **common),
    )


def get_config():
    c = emoji(base.get_config())
    c.batch_size = 128
    c.model = presets.dual_tower(**towers(hidden=512))
    c.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    c.optimizer.update(name="adamw", lr=7e-4, weight_decay=0.1, b2=0.98)
    c.schedule.update(total="12epochs", warmup="5%", decay="cosine")
    c.checkpoint.update(every="25%", keep_last=2, best="retrieval/unseen_vendor/image_to_text/R@10")
    return c
