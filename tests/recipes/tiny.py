"""Recipes for the tests: every part of a real one, at a size that compiles and trains in seconds.

`:clip` (default) is plain; `:noisy` has all that is random or averaged (crops, jitter, dropout, patch dropout,
stochastic depth, EMA, accumulation); `:coca` writes captions as well; `:naflex` is SigLIP 2 over packed patches;
`:captions` is FLAIR with two captions of a sample. The tests name shards and tokenizer on the command line.
"""

from xmodal.configs import base
from xmodal.models import presets

VARIANTS = ("clip", "noisy", "coca", "naflex", "captions")
WIDTH, HEADS = 32, 2
SHARDED = (  # the built-in rules keep arrays this small whole
    (r".*/(query|key|value|fc1)/kernel", ("fsdp", "tensor")),
    (r".*/(out|fc2)/kernel", ("tensor", "fsdp")),
    (r".*/embedding", ("tensor", "fsdp")),
)


def get_config(variant: str = "clip"):
    c = base.get_config()
    c.batch_size = 16
    c.mesh.rules = SHARDED
    noise = dict(dropout=0.1, drop_path=0.1) if variant in ("noisy", "captions") else {}
    image = presets.image_tower(WIDTH, 2, HEADS, patch_size=8, embed_dim=WIDTH, scan=True, **noise)
    text = presets.text_tower(WIDTH, 1, HEADS, embed_dim=WIDTH, scan=False, **noise)
    c.model = presets.dual_tower(image=image, text=text)
    c.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    c.data.sources = dict(main=dict(urls=""))
    c.data.inputs = dict(image=dict(type="image", size=16, crop="squash"), text=dict(type="text", length=8))
    c.data.update(lanes=8, window=4, threads=2, prefetch=2)
    c.optimizer.update(lr=3e-3, weight_decay=0.01)
    c.schedule.update(total="8steps", warmup="2steps", decay="cosine")
    c.evals = dict(held_out=dict(type="retrieval", urls="", every="100%", batch_size=24, examples=4))
    c.checkpoint.update(every="2steps", keep_last=20)
    c.log.update(every=1, tensorboard=False)
    return {"clip": lambda c: c, "noisy": noisy, "coca": coca, "naflex": naflex, "captions": captions}[variant](c)


def naflex(c):
    image = presets.image_tower(WIDTH, 1, HEADS, patch_size=8, style="siglip", scan=False)
    text = presets.text_tower(WIDTH, 1, HEADS, style="siglip", embed_dim=WIDTH, scan=False)
    c.model = presets.dual_tower(image=presets.naflex(image, positions=4), text=text)
    c.objectives = dict(contrastive=dict(type="sigmoid", between=("image", "text"), weight=1.0))
    c.data.inputs.image.update(crop="random_resized", scale=(0.3, 1.0), ratio=(0.3, 3.0), flip=True)
    c.data.inputs.image.naflex = dict(lengths=(4, 9), length=6, patch_size=8)
    c.evals.named = dict(type="zero_shot", urls="", captions=("{label}",), every="100%", batch_size=24)
    return c


def captions(c):
    losses = dict(sigmoid={}, flair=dict(heads=2))
    c.objectives = {name: dict(type=name, weight=0.5, **options) for name, options in losses.items()}
    c.data.inputs.text.update(templates=((1.0, "{label}"), (1.0, "{tags}")), num_items=2)
    return c


def noisy(c):
    c.model.towers.image.embed.patch_dropout = 0.5
    c.data.inputs.image.update(size=32, crop="random_resized", scale=(0.5, 1.0), flip=True, jitter=0.3)
    c.accumulation = 2
    c.optimizer.ema = 0.9
    return c


def coca(c):
    c.model = presets.fusion(
        image=c.model.towers.image,
        text=c.model.towers.text,
        caption=presets.decoder(WIDTH, 1, HEADS, reads="text", attends="image"),
    )
    c.objectives.captioning = dict(type="captioning", tower="caption", weight=2.0)
    c.evals.written = dict(type="captioning", urls="", every="100%", batch_size=24, tower="caption", examples=4)
    return c
