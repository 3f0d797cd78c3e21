"""CLIP (Radford et al. 2021), with a vision transformer: `:B32` (default), `:B16`, `:L14`, `:H14`, `:S16`; with a
ResNet: `:RN50`, `:RN101`, `:RN50x4`, `:RN50x16`, `:RN50x64`, and `:RN_emoji`, a small one for two CPU cores.

    python train.py --config configs/clip.py:B16 --workdir runs/clip_b16 \
        --config.data.sources.train.urls='gs://bucket/pairs-{00000..09999}.tar' \
        --config.data.inputs.text.tokenizer=clip/tokenizer.json --config.mesh.fsdp=8
    python train.py --config configs/clip.py:RN_emoji --workdir runs/clip_rn_emoji

Expect, from the paper: 400M pairs x 32 epochs at batch 32,768 give ImageNet zero-shot 63.3 % (B/32), 68.3 % (B/16),
75.5 % (L/14); with ResNets, as open_clip measures the published weights, 59.8 % (RN50), 62.3 % (RN101), 66.3 %
(RN50x4), 70.7 % (RN50x16), 73.9 % (RN50x64). What it costs on your devices: `python -m xmodal bench step --config
configs/clip.py:B16`. BatchNorms see the whole batch on any number of devices; with `accumulation` each micro-batch is
normalised by itself, so it should stay large.

Run here: models, loss and gradients against the reference implementations at small size (tests/models/test_golden.py,
test_golden_resnet.py), and the recipe at small scale on emoji (configs/demo.py). `:RN_emoji`, demo.py:stem with a
ResNet of three stages, three seeds: unseen vendor image to text R@1 31.2 %, R@10 65.2 % (docs/experiments.md). Not run
here: the full pretraining.
"""

from xmodal.configs import base, demo
from xmodal.models import presets

TEXT_SIZE = {"S16": "S", "B32": "B", "B16": "B", "L14": "L", "H14": "H"}
LEARNING_RATE = {
    "S16": 1e-3, "B32": 5e-4, "B16": 5e-4, "L14": 4e-4, "H14": 4e-4,
    "RN50": 5e-4, "RN101": 5e-4, "RN50x4": 5e-4, "RN50x16": 4e-4, "RN50x64": 3.6e-4,
}  # fmt: skip
VARIANTS = (*TEXT_SIZE, *presets.CLIP_RESNET, "RN_emoji")


def get_config(variant: str = "B32"):
    if variant == "RN_emoji":
        return small_resnet()
    c = base.get_config()
    c.batch_size = 32_768
    c.optimizer.update(name="adamw", lr=LEARNING_RATE[variant], b1=0.9, weight_decay=0.2, clip_norm=1.0)
    if variant in presets.CLIP_RESNET:
        image, text = presets.clip_resnet(variant, remat="convolutions"), presets.clip_text(variant, remat="dots")
        size = presets.CLIP_RESNET[variant][2]
        c.optimizer.update(b2=0.999, eps=1e-8)
    else:
        image, text = presets.vit(variant, remat="dots"), presets.clip_text(TEXT_SIZE[variant], remat="dots")
        size = 224
        c.optimizer.update(b2=0.98, eps=1e-6)
    c.model = presets.dual_tower(image=image, text=text, dtype="bfloat16")
    c.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    c.data.sources = dict(train=dict(urls="data/train-{0000..0009}.tar", weight=1.0))
    c.data.inputs = dict(
        image=dict(type="image", size=size, crop="random_resized", scale=(0.9, 1.0)),
        text=dict(type="text", tokenizer="tokenizer.json", length=77),
    )
    c.data.lanes = 64
    c.schedule.update(total="32epochs", warmup="2000steps", decay="cosine")
    c.checkpoint.update(every="1000steps", keep_last=2, keep_every="10%")
    return c


def small_resnet():
    """demo.py:stem with a ResNet of CLIP's kind, for 64 pixels; all but the image tower is as there."""
    c = demo.get_config("stem")
    stages = dict(depths=(1, 2, 3), widths=(64, 128, 256), stem_width=32, style="clip")
    c.model.towers.image = presets.resnet_tower(stages, init="clip", pool="attention", embed_dim=256)
    return c
