"""SigLIP (Zhai et al. 2023), by published size: `:B16` (default), `:S16`, `:B32`, `:L16`; and `:emoji`, a small one.

    python train.py --config configs/siglip.py:B16 --workdir runs/siglip_b16 \
        --config.data.sources.train.urls='gs://bucket/pairs-{00000..09999}.tar' \
        --config.data.inputs.text.tokenizer=siglip/tokenizer.json --config.mesh.fsdp=8
    python train.py --config configs/siglip.py:emoji --workdir runs/siglip_emoji

Attention pooling, text with full attention pooled at the last of 64 positions, the pairwise sigmoid loss with learned
temperature and bias. Expect, from the paper: B/16 trained on WebLI at batch 32,768 gives ImageNet zero-shot 76.0 %.

Run here: model, loss and gradients against the reference implementation at small size (tests/models/test_golden.py).
`:emoji`, demo.py:stem with this loss, three seeds: unseen vendor image to text R@1 15.1 %, R@10 42.6 %
(docs/experiments.md). Not run here: the full pretraining.
"""

from xmodal.configs import base, demo
from xmodal.models import presets

VARIANTS = (*presets.VIT, "emoji")


def get_config(variant: str = "B16"):
    if variant == "emoji":
        return emoji()
    c = base.get_config()
    c.batch_size = 32_768
    c.model = presets.dual_tower(
        image=presets.vit(variant, style="siglip", remat="dots"),
        text=presets.siglip_text(variant, remat="dots"),
        dtype="bfloat16",
    )
    c.objectives = dict(contrastive=dict(type="sigmoid", between=("image", "text"), weight=1.0))
    c.data.sources = dict(train=dict(urls="data/train-{0000..0009}.tar", weight=1.0))
    c.data.inputs = dict(
        image=dict(type="image", size=224, crop="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        text=dict(type="text", tokenizer="tokenizer.json", length=64),
    )
    c.data.lanes = 64
    c.optimizer.update(name="adamw", lr=1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-4)
    c.schedule.update(total="10epochs", warmup="20_000steps", decay="cosine")
    c.checkpoint.update(every="1000steps", keep_last=2, keep_every="10%")
    return c


def emoji():
    """The demo with the sigmoid loss."""
    c = demo.get_config("stem")
    c.objectives = dict(contrastive=dict(type="sigmoid", between=("image", "text"), weight=1.0))
    return c
