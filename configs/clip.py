"""CLIP with a vision transformer (Radford et al. 2021): `:B32` (default), `:B16`, `:L14`, `:H14`, `:S16`.

    python train.py --config configs/clip.py:B16 --workdir runs/clip_b16 \
        --config.data.sources.train.urls='gs://bucket/pairs-{00000..09999}.tar' \
        --config.data.text.tokenizer=clip/tokenizer.json --config.mesh.fsdp=8

Expect, from the paper: 400M pairs x 32 epochs at batch 32,768 give ImageNet zero-shot 63.3 % (B/32), 68.3 % (B/16),
75.5 % (L/14). What it costs on your devices: `python -m xmodal bench step --config configs/clip.py:B16`.

Run here: model, loss and gradients against the reference implementation at small size (tests/models/test_golden.py),
and the same recipe at small scale on emoji (configs/demo.py). Not run here: the full pretraining.
"""

from configs import base
from xmodal.models import presets

TEXT_SIZE = {"S16": "S", "B32": "B", "B16": "B", "L14": "L", "H14": "H"}
LEARNING_RATE = {"S16": 1e-3, "B32": 5e-4, "B16": 5e-4, "L14": 4e-4, "H14": 4e-4}


def get_config(variant: str = "B32"):
    c = base.get_config()
    c.batch_size = 32_768
    c.model = presets.dual_tower(
        image=presets.vit(variant, remat="dots"),
        text=presets.clip_text(TEXT_SIZE[variant], remat="dots"),
        dtype="bfloat16",
    )
    c.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    c.data.sources = dict(train=dict(urls="data/train-{0000..0009}.tar", weight=1.0))
    c.data.image.update(size=224, crop="random_resized", scale=(0.9, 1.0))
    c.data.text.update(tokenizer="tokenizer.json", length=77)
    c.data.lanes = 64
    c.optimizer.update(name="adamw", lr=LEARNING_RATE[variant], b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)
    c.optimizer.clip_norm = 1.0
    c.schedule.update(total="32epochs", warmup="2000steps", decay="cosine")
    c.checkpoint.update(every="1000steps", keep_last=2, keep_every="10%")
    return c
