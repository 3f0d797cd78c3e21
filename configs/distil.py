"""A small CLIP that learns from a larger one, on emoji: a quarter of the parameters of demo.py:stem, taught by it.

    python train.py --config configs/demo.py:stem --workdir runs/demo_stem
    python train.py --config configs/distil.py:taught --workdir runs/taught
    python train.py --config configs/distil.py:untaught --workdir runs/untaught

`:taught` (default) has three of the losses of CLIP-KD (Yang et al. 2024, section 3.2): CLIP's own and the divergence
from the teacher's softmax over the batch, one each, and the teacher's embeddings, with the paper's weight at its width
of 512. `:untaught` is the same student without a teacher, `:own` one that learns from the average of its own weights
(ALBEF, Li et al. 2021: 0.4 of the target). Equal samples, batches and learning rates; a teacher costs one forward pass
of it. `--config.teacher.model` names another one: any run, imported folder or "hf:DIR", whatever its image size and its
tokens.

Expect, from the paper: a ViT-B/16 trained on CC3M and CC12M 57.5 % zero-shot on ImageNet with a ViT-L/14 of LAION-400M
as its teacher, 37.0 % without; not run here. Run here, three seeds, unseen vendor image to text R@1 and R@10: `:taught`
21.1 % and 54.1 %, `:untaught` 17.9 % and 50.0 %, the teacher 21.8 % and 54.7 % (docs/experiments.md). Not run: `:own`.
"""

from xmodal.configs import demo
from xmodal.models import presets

BETWEEN = ("image", "text")
VARIANTS = ("taught", "untaught", "own")


def student() -> dict:
    """The towers of demo.py:stem with a quarter of their parameters: half the width, and less for texts (tokens)."""
    common = dict(act="gelu_tanh", embed_dim=128, pool="mean", scan=False)
    stem = dict(stem=((24, 4, 4), (64, 3, 2)), pre_norm=False, bias=True)
    return dict(
        image=presets.image_tower(128, 3, 4, patch_size=16, embed=stem, hidden=256, **common),
        text=presets.text_tower(80, 1, 4, embed=dict(causal=False), hidden=160, **common),
    )


def get_config(variant: str = "taught"):
    c = demo.get_config("stem")
    c.model = presets.dual_tower(**student())
    c.optimizer.lr = 1e-3
    return {"taught": taught, "untaught": lambda c: c, "own": own}[variant](c)


def taught(c):
    c.teacher.model = "runs/demo_stem"
    c.objectives = dict(
        contrastive=dict(type="distillation", between=BETWEEN, soft=0.5, weight=2.0),
        features=dict(type="feature_matching", towers=BETWEEN, weight=16.0),
    )
    return c


def own(c):
    c.teacher.model, c.optimizer.ema = "ema", 0.995
    c.objectives = dict(contrastive=dict(type="distillation", between=BETWEEN, soft=0.4, weight=1.0))
    return c
