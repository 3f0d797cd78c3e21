"""CLAP: sound and text, or sound and images, in one space (Elizalde et al. 2022; Wu et al. 2023), on spoken stamps.

    python train.py --config configs/clap.py --workdir runs/clap
    python train.py --config configs/clap.py:stamps_images --workdir runs/clap_images

Needs the extra `audio`: pip install "xmodal[audio]". Data: 4,983 recordings of 636 things in eight languages, in the
repository (data_pipelines/stamps). Whisper's log-mel of 3 s is cut into patches as in AST (Gong et al. 2021).

`:stamps` (default): what is said and how it is written. `:stamps_images`: what is said and what it looks like; all
voices and images of a thing are positives of one another.

Held out: recordings of known things by known voices (`unheard`), and things that are neither seen nor heard in training
(`unseen`); both without letters, coins and texts of more than 40 characters. Length alone gives much away, so beside
each recall stands that of candidates ranked by how close the recording is to their usual length
(`sound_to_..._by_seconds`): what a model is worth is what it reaches beyond that.

Run here: some steps of both at small size (tests/test_recipe_clap.py), the front ends against the references
(tests/models/test_spectrogram.py). Not run here: the whole recipe, some 780 steps. What `:stamps_images` has to beat,
from the data: by length alone R@10 is 20.6 % of `unheard` (chance 3.8 %) and 34.1 % of `unseen` (chance 14.4 %).
"""

from xmodal.configs import base
from xmodal.models import presets

VARIANTS = ("stamps", "stamps_images")
STAMPS = "data_pipelines/stamps"
FAIR = 'kind == "speech" and category != "symbols" and characters <= 40'


def get_config(variant: str = "stamps"):
    c = base.get_config()
    c.batch_size = 128
    c.data.sources = dict(stamps=dict(urls=f"{STAMPS}/shards/train-{{0000..0003}}.tar.gz", weight=1.0))
    c.data.group_key = "concept"  # all that names one thing is positive, whoever says or draws it
    c.data.inputs = dict(sound=dict(type="audio", rate=16000, seconds=3.0, stated="seconds"))
    c.optimizer.update(name="adamw", lr=1e-3, weight_decay=0.1, b2=0.98)
    c.schedule.update(total="20epochs", warmup="5%", decay="cosine")
    c.checkpoint.update(every="25%", keep_last=2)
    return {"stamps": stamps, "stamps_images": stamps_images}[variant](c)


def stamps(c):
    c.data.inputs.text = dict(type="text", tokenizer=f"{STAMPS}/tokenizer.json", length=32, lower=True)
    text = presets.text_tower(256, 2, 4, embed=dict(causal=False), pool="mean", **common())
    return between(c, "text", text, item="")


def stamps_images(c):
    c.data.inputs.image = dict(
        type="image", size=64, scale=(0.7, 1.0), jitter=0.2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    stem = dict(stem=((48, 4, 4), (128, 3, 2)), pre_norm=False, bias=True)
    image = presets.image_tower(256, 3, 4, patch_size=16, embed=stem, pool="mean", **common())
    return between(c, "image", image, item="stamp")


def between(c, other: str, tower: dict, item: str):
    """Sets the model, the loss and the evaluations of sound and another input."""
    c.model = presets.dual_tower(**{"sound": sound(), other: tower})
    c.objectives = dict(contrastive=dict(type="softmax", between=("sound", other), weight=1.0))
    held_out = dict(
        type="cross_retrieval", between=("sound", other), group="concept", item=item,
        control=("seconds", "usual_seconds"), every="25%",
    )  # fmt: skip
    for name, shard in (("unheard", "unheard_clips"), ("unseen", "unseen_concepts")):
        source = dict(urls=f"{STAMPS}/shards/{shard}-0000.tar.gz", filter=FAIR)
        c.evals[name] = held_out | dict(source=source)
    return c


def sound() -> dict:
    """A tower of patches of a spectrogram; AST in small, with 8 x 8 patches and SpecAugment."""
    tower = presets.image_tower(256, 4, 4, patch_size=16, pool="mean", **common())
    embed = dict(
        type="spectrogram", kind="whisper", mels=64, patch_size=16, class_tokens=0, mask_bands=8, mask_frames=20,
        input="sound",
    )  # fmt: skip
    return tower | dict(embed=embed)


def common() -> dict:
    return dict(act="gelu_tanh", embed_dim=256, scan=False, hidden=512)
