"""ALIGN (Jia et al. 2021): an EfficientNet and a BERT, trained on many noisy pairs; `:B7` (default), `:L2`, `:emoji`.

    python train.py --config configs/align.py:B7 --workdir runs/align_b7 \
        --config.data.sources.train.urls='gs://bucket/pairs-{00000..09999}.tar' \
        --config.data.inputs.text.tokenizer=bert/tokenizer.json --config.mesh.fsdp=8
    python train.py --config configs/align.py:emoji --workdir runs/align_emoji

`:L2` is the published one: EfficientNet-L2 and BERT-Large, 1.8 billion pairs, batch 16,384, LAMB. Expect, from the
paper: ImageNet zero-shot 76.4 %; zero-shot R@1 image to text and back 88.6 % and 75.7 % on Flickr30k, 58.6 % and
45.6 % on COCO. `:B7` has the towers of the open replica, EfficientNet-B7 and BERT-Base, and leaves as an `AlignModel`
(`python -m xmodal export --to hf`); its training follows the paper. Neither was run here.

Pictures are squashed to 346 pixels; training shows a square of 289 anywhere in them, and its mirror image, evaluation
the central one. The temperature starts at 1 and is learned, and a tenth of every target goes to all candidates.

`:emoji` is small, on the data and for the samples of configs/demo.py:stem. Run here, three seeds: unseen vendor image
to text R@1 4.3 %, R@10 27.1 % (chance 0.06 %, 0.55 %); docs/experiments.md.
"""

from xmodal.configs import base
from xmodal.configs.demo import emoji
from xmodal.models import presets

TEXT_SIZE = {"B7": "base", "L2": "large"}
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VARIANTS = ("B7", "L2", "emoji")


def get_config(variant: str = "B7"):
    c = small(base.get_config()) if variant == "emoji" else published(base.get_config(), variant)
    c.objectives = dict(
        contrastive=dict(
            type="softmax", between=("image", "text"), logit_scale=0.0, label_smoothing=0.1, weight=1.0
        )
    )  # fmt: skip
    return c


def published(c, variant: str):
    c.batch_size = 16_384
    image = presets.efficientnet(variant, top=0, square_padding=(), remat="dots")
    width = image["trunk"]["width"]
    text = presets.bert(TEXT_SIZE[variant], pooler=False, embed_dim=width, embed=dict(length=512), remat="dots")
    c.model = presets.dual_tower(image=image, text=text, dtype="bfloat16")
    c.data.sources = dict(train=dict(urls="data/train-{0000..0009}.tar", weight=1.0))
    shown = dict(size=289, resize=346, crop="squash", filter="bilinear", rounding="down", **HALF)
    c.data.inputs = dict(
        image=dict(type="image", flip=True, **shown),
        text=dict(type="text", tokenizer="tokenizer.json", length=64, lower=False),  # uncased: it lower-cases itself
    )
    c.data.lanes = 64
    c.optimizer.update(name="lamb", lr=1e-3, b1=0.9, b2=0.999, eps=1e-6, weight_decay=1e-5, clip_norm=0.0)
    c.schedule.update(total="1_200_000steps", warmup="10_000steps", decay="linear")
    c.checkpoint.update(every="1000steps", keep_last=2, keep_every="10%")
    return c


def small(c):
    c = emoji(c)
    c.batch_size = 128
    stages = ((3, 2, 1, 32, 1), (5, 2, 4, 64, 2), (5, 2, 4, 128, 2))
    image = presets.efficientnet_tower(
        1.0, 1.0, stages=stages, top=256, norm_momentum=0.9, drop_connect=0.0, scan=False
    )  # fmt: skip
    text = presets.bert_tower(256, 1, 4, pooler=False, dropout=0.0, embed_dim=256, scan=False)
    c.model = presets.dual_tower(image=image, text=text)
    c.optimizer.update(name="lamb", lr=1e-2, b2=0.98, weight_decay=1e-2)
    c.schedule.update(total="12epochs", warmup="5%", decay="linear")
    c.checkpoint.update(every="25%", keep_last=2, best="retrieval/unseen_vendor/image_to_text/R@10")
    return c
