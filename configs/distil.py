"""A small CLIP that learns from a larger one, on emoji: a quarter of the parameters of demo.py:stem, its teacher.

    python train.py --config configs/demo.py:stem --workdir runs/demo_stem
    python train.py --config configs/distil.py:teacher --workdir runs/distilled
    python train.py --config configs/distil.py:alone --workdir runs/alone

`:teacher` (default) has three of the losses of CLIP-KD (Yang et al. 2024, section 3.2): CLIP's own and the divergence
from the teacher's softmax over the batch, one each, and the teacher's embeddings, with the paper's weight at its width
of 512. `:alone` is the same student without a teacher, `:ema` one that learns from the average of its weights (ALBEF,
Li et al. 2021: 0.4 of the target). Equal samples, batches and learning rates; a teacher costs one forward pass of it.
`--config.providers.teacher.model` names another one: any run, imported folder or "hf:DIR", whatever its image size and
its tokens.

Expect, from the paper: a ViT-B/16 trained on CC3M and CC12M 57.5 % zero-shot on ImageNet with a ViT-L/14 of LAION-400M
as its teacher, 37.0 % without; not run here. Run here, three seeds, unseen vendor image to text R@1 and R@10:
`:teacher` 21.1 % and 54.1 %, `:alone` 17.9 % and 50.0 %, the teacher 21.8 % and 54.7 % (docs/experiments.md). Not run:
`:ema`.
"""

from xmodal.configs import demo
from xmodal.models import presets

BETWEEN = ("image", "text")
VARIANTS = ("teacher", "alone", "ema")


def student() -> dict:
    """The towers of demo.py:stem with a quarter of their parameters: half the width, and less for texts (tokens)."""
    common = dict(act="gelu_tanh", embed_dim=128, pool="mean", scan=False)
    stem = dict(stem=((24, 4, 4), (64, 3, 2)), pre_norm=False, bias=True)
    return dict(
        image=presets.image_tower(128, 3, 4, patch_size=16, embed=stem, hidden=256, **common),
        text=presets.text_tower(80, 1, 4, embed=dict(causal=False), hidden=160, **common),
    )


def get_config(variant: str = "teacher"):
    c = demo.get_config("stem")
    c.model = presets.dual_tower(**student())
    c.optimizer.lr = 1e-3
    return {"teacher": teacher, "alone": lambda c: c, "ema": ema}[variant](c)


def teacher(c):
    c.providers.teacher = dict(type="teacher", model="runs/demo_stem")
    c.objectives = dict(
        contrastive=dict(type="distillation", between=BETWEEN, soft=0.5, weight=2.0),
        features=dict(type="feature_matching", towers=BETWEEN, weight=16.0),
    )
    return c


def ema(c):
    c.providers.teacher, c.optimizer.ema = dict(type="ema"), 0.995
    c.objectives = dict(contrastive=dict(type="distillation", between=BETWEEN, soft=0.4, weight=1.0))
    return c
