"""Locked-image tuning (Zhai et al. 2022): a text tower learns to read an image tower that stays as it is.

`:S14`, `:B14` (default) and `:L14` lock DINOv2, `:emoji` a small ViT that has learned to classify emoji:

    hf download facebook/dinov2-base --local-dir dinov2          # not part of xmodal
    python -m xmodal import hf:dinov2 --out models/dinov2_b14
    python train.py --config configs/lit.py:B14 --workdir runs/lit_b14 \
        --config.data.sources.train.urls='gs://bucket/pairs-{00000..09999}.tar' \
        --config.data.inputs.text.tokenizer=clip/tokenizer.json

    python train.py --config configs/vit_classify.py --workdir runs/vit_emoji
    python train.py --config configs/lit.py:emoji --workdir runs/lit_emoji

The locked tower has no optimizer state and no backward pass: a step costs one forward pass of it, and three of the text
tower. Any imported folder serves: set `config.init_from`, and `config.model.towers.image` to what its config.json says.

Expect, from the paper: 85.2 % zero-shot on ImageNet with a ViT-g/14 trained on JFT-3B. Not run here: DINOv2 at full
size. Run here (`:emoji`, 6 minutes on 2 busy CPU cores), three seeds: unseen vendor image to text R@1 8.6 %, R@10
37.4 % (chance 0.06 %, 0.55 %); docs/experiments.md.
"""

from xmodal.configs import base
from xmodal.configs.demo import emoji
from xmodal.configs.vit_classify import small_tower
from xmodal.models import presets

TEXT_SIZE = {"S14": "S", "B14": "B", "L14": "L"}
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NEW = ("text/.*", "objectives/.*")  # all that the weights do not have
VARIANTS = (*TEXT_SIZE, "emoji")


def get_config(variant: str = "B14"):
    c = base.get_config()
    c = small(c) if variant == "emoji" else dinov2(c, variant)
    c.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    c.optimizer.rules = ((r"image/.*", dict(freeze=True)), *c.optimizer.rules)
    return c


def dinov2(c, variant):
    c.init_from, c.init_from_except = f"models/dinov2_{variant.lower()}", NEW
    image = presets.dinov2(variant)
    c.model = presets.dual_tower(
        image=image,
        text=presets.clip_text(TEXT_SIZE[variant], embed_dim=image["trunk"]["width"], remat="dots"),
        dtype="bfloat16",
    )
    c.batch_size = 16_384
    c.data.sources = dict(train=dict(urls="data/train-{0000..0009}.tar", weight=1.0))
    c.data.inputs = dict(
        image=dict(type="image", size=224, crop="inception", **IMAGENET),
        text=dict(type="text", tokenizer="tokenizer.json", length=77),
    )
    c.data.lanes = 64
    c.optimizer.update(name="adamw", lr=1e-3, b1=0.9, b2=0.98, weight_decay=1e-4, clip_norm=1.0)
    c.schedule.update(total="900_000_000examples", warmup="10_000steps", decay="cosine")
    c.checkpoint.update(every="1000steps", keep_last=2, keep_every="10%")
    return c


def small(c):
    c = emoji(c)
    c.init_from = "runs/vit_emoji"
    c.init_from_except = (
        *NEW,
        "image/projection/.*",
        "image/heads/pooled/(embed_dim|projection_bias)",
    )  # its classifier
    image = small_tower()
    c.model = presets.dual_tower(
        image=image,
        text=presets.text_tower(
            256, 1, 4, act="gelu_tanh", embed_dim=image["trunk"]["width"], pool="mean", scan=False,
            embed=dict(causal=False),
        ),
    )  # fmt: skip
    c.batch_size = 128
    c.optimizer.update(name="adamw", lr=1e-3, weight_decay=1e-4, b2=0.98)
    c.schedule.update(total="12epochs", warmup="5%", decay="cosine")
    c.checkpoint.update(every="25%", keep_last=2, best="retrieval/unseen_vendor/image_to_text/R@10")
    return c
