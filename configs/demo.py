"""The demo: a small CLIP on emoji, trained from scratch on two CPU cores.

    make demo
    python train.py --config configs/demo.py --workdir runs/demo
    python train.py --config configs/demo.py:stem --workdir runs/demo_stem

Data: about 6,500 drawings of 1,630 concepts by four vendors, in the repository. Held out: a fifth vendor's drawings
of all 1,811 concepts, and 181 concepts that no vendor's drawing shows in training.

`:clip` (default) has CLIP's own architecture in small, so that it leaves as a `CLIPModel` that transformers' pipelines
run, and learns by Muon. Expect 510 steps at some 220 samples/s on two cores; on the unseen vendor image-to-text R@1
23.6 %, R@10 57.6 % (run here, one seed; chance 0.06 % and 0.55 %).

`:stem` is the baseline of all other recipes on emoji: an image tower behind a convolutional stem, a bidirectional text
tower, mean pooling, AdamW. Three seeds, 12 epochs: R@1 21.8 %, R@10 54.7 %. docs/experiments.md has what was tried.
"""

from xmodal.configs import base
from xmodal.models import presets

VARIANTS = ("clip", "stem")
SHARDS = "data_pipelines/emoji/shards"


def emoji(c):
    """Sets data and evaluations of the emoji set; shared by the recipes that learn from it."""
    c.data.sources = dict(emoji=dict(urls=f"{SHARDS}/train-{{0000..0003}}.tar.gz", weight=1.0))
    c.data.inputs = dict(
        image=dict(
            type="image", size=64, crop="random_resized", scale=(0.7, 1.0), jitter=0.2,
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        ),
        text=dict(
            type="text", tokenizer="data_pipelines/emoji/tokenizer.json", length=16,
            templates=((2.0, "{label}"), (1.0, "{label}, {tags}")),
        ),
    )  # fmt: skip
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


def get_config(variant: str = "clip"):
    c = emoji(base.get_config())
    c.batch_size = 128
    c.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    c.optimizer.update(weight_decay=0.1, b2=0.98)
    c.schedule.update(warmup="5%", decay="cosine")
    c.checkpoint.update(every="25%", keep_last=2, best="retrieval/unseen_vendor/image_to_text/R@10")
    return {"clip": clip, "stem": stem}[variant](c)


def clip(c):
    common = dict(act="gelu_tanh", embed_dim=256, scan=False, hidden=512)
    c.model = presets.dual_tower(
        image=presets.image_tower(160, 3, 4, patch_size=8, **common), text=presets.text_tower(256, 1, 4, **common)
    )
    c.data.inputs.image.update(size=48, rounding="down")  # of odd margins, as transformers has it
    c.optimizer.update(name="muon", lr=2e-3)
    c.schedule.total = "10epochs"
    return c


def stem(c):
    c.model = presets.dual_tower(**towers(hidden=512))
    c.optimizer.update(name="adamw", lr=7e-4)
    c.schedule.total = "12epochs"
    return c


def towers(hidden: int) -> dict:
    """An image tower with a convolutional stem and a text tower of one layer; `hidden` is the width of their MLPs."""
    common = dict(act="gelu_tanh", embed_dim=256, pool="mean", scan=False, hidden=hidden)
    stem = dict(stem=((48, 4, 4), (128, 3, 2)), pre_norm=False, bias=True)
    return dict(
        image=presets.image_tower(256, 3, 4, patch_size=16, embed=stem, **common),
        text=presets.text_tower(256, 1, 4, embed=dict(causal=False), **common),
    )
