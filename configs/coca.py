"""CoCa on emoji: contrastive and captioning from one forward pass (Yu et al. 2022).

    python train.py --config configs/coca.py --workdir runs/coca

The text tower feeds a decoder that attends to the image tower's tokens; the loss is contrastive + 2 x captioning
(section 3.2). The demo's towers, data and evaluations, plus captions of the unseen vendor's drawings.

`configs/coca.py:contrastive` is the same run without the decoder: what captioning does to retrieval.

Expect 612 steps in some 10 minutes on two CPU cores (without the decoder 5). Run here: on the unseen vendor
image-to-text R@10 51.4 % (without the decoder 51.2 %); of its 1,811 drawings 11.9 % get exactly their name (the best
constant caption: 0.055 %), 28.8 % of the tokens are right at their place (12.7 %).
"""

from xmodal.configs import demo
from xmodal.models import presets

VARIANTS = ("coca", "contrastive")


def get_config(variant: str = "coca"):
    captions = {"coca": True, "contrastive": False}[variant]
    c = demo.get_config("stem")
    c.model = presets.dual_tower(**demo.towers(hidden=1024))
    c.optimizer.lr = 1e-3
    c.schedule.total = "12epochs"
    towers = c.model.towers
    towers.text.embed.causal = True  # the decoder reads these tokens and must not see what comes next
    c.data.inputs.text.templates = ((1.0, "{label}"),)  # the caption to write is the label; tags would be guesses
    if not captions:
        return c
    caption = presets.decoder(towers.text.trunk.width, 2, 4, reads="text", attends="image", act="gelu_tanh", scan=False)
    c.model = presets.fusion(image=towers.image, text=towers.text, caption=caption)
    c.objectives.captioning = dict(type="captioning", tower="caption", weight=2.0)
    c.evals.captions = dict(
        type="captioning", urls=f"{demo.SHARDS}/unseen_vendor-0000.tar.gz", captions=("{label}",), tower="caption",
        every="100%",
    )  # fmt: skip
    return c
