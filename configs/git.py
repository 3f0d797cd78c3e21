"""GIT on emoji: an image prefix and causal text in one decoder, captioning only (Wang et al. 2022).

    python train.py --config configs/git.py --workdir runs/git

The caption tower reads the image tower's tokens as a prefix (linear map and norm, section 3.1): images see images,
text sees images and earlier text.

Expect 1,223 steps in some 11 minutes on two CPU cores. Run here: of the unseen vendor's 1,811 drawings 6.5 % get
exactly their name (the best constant caption: 0.055 %), 22.9 % of the tokens are right at their place (12.7 %).
"""

from xmodal.configs import demo
from xmodal.models import presets


def get_config():
    c = demo.get_config("stem")
    c.batch_size = 64  # nothing here needs negatives, and more steps teach more than larger ones
    c.optimizer.lr = 1e-3
    c.schedule.total = "12epochs"
    c.model = presets.dual_tower(**demo.towers(hidden=1024))
    image, text = c.model.towers.image, c.model.towers.text
    image = presets.without_heads(image, "pooled")
    caption = presets.text_tower(
        text.trunk.width, 2, 4, act="gelu_tanh", pool="none", head="linear", scan=False
    ) | dict(reads=dict(image=dict(type="linear_norm")))
    c.model = presets.fusion(image=image, caption=caption)
    c.objectives = dict(captioning=dict(type="captioning", tower="caption", label_smoothing=0.1, weight=1.0))
    c.data.inputs.text.templates = ((1.0, "{label}"),)
    c.evals = dict(
        captions=dict(
            type="captioning", urls=f"{demo.SHARDS}/unseen_vendor-0000.tar.gz", captions=("{label}",), tower="caption",
            every="50%",
        )
    )  # fmt: skip
    c.checkpoint.best = "captioning/captions/exact_match"
    return c
