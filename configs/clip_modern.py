"""CLIP with a text tower built as today's language models are; `:emoji` (default), `:multilingual`, `:B32` ... `:H14`.

    python train.py --config configs/clip_modern.py --workdir runs/modern_emoji
    python train.py --config configs/clip_modern.py:multilingual --workdir runs/multilingual
    python train.py --config configs/clip_modern.py:B16 --workdir runs/modern_b16 --config.mesh.fsdp=8 \
        --config.data.sources.train.urls='gs://bucket/pairs-{00000..09999}.tar' \
        --config.data.inputs.text.tokenizer=clip/tokenizer.json

Rotary positions, RMSNorm, SwiGLU, no biases, normalised queries and keys, and every token sees all others; the sizes
are CLIP's. Everything else is configs/clip.py or configs/demo.py:stem, so that a run of each compares the towers alone.
No result is published for exactly this.

`:multilingual` learns the emoji's names and keywords in five languages and is measured in each by itself. The demo's
tokenizer works on bytes and so reads them all, but spells what it was not trained on: 48 tokens, where demo.py has 16.

Run here, three seeds, unseen vendor image to text: `:emoji` R@1 19.4 %, R@10 51.4 %; `:multilingual` R@10 19.5 % in
English, 16.7 % in German and Spanish, 8 to 9 % in Japanese and Chinese (chance 0.55 %; docs/experiments.md). Not run
here: the large ones.
"""

from xmodal.configs import clip, demo
from xmodal.models import presets

LANGUAGES = ("en", "zh", "de", "es", "ja")
VARIANTS = ("emoji", "multilingual", *clip.TEXT_SIZE)


def get_config(variant: str = "emoji"):
    if variant in clip.TEXT_SIZE:
        c = clip.get_config(variant)
        c.model.towers.text = presets.modern_text(clip.TEXT_SIZE[variant], qk_norm=True, remat="dots")
        return c
    return {"emoji": emoji, "multilingual": multilingual}[variant]()


def emoji():
    c = demo.get_config("stem")
    c.model.towers.text = presets.modern_text_tower(256, 1, 4, embed_dim=256, qk_norm=True, scan=False)
    return c


def multilingual():
    c = demo.get_config("stem")
    c.model.towers.text = presets.modern_text_tower(256, 2, 4, embed_dim=256, qk_norm=True, scan=False)
    label = lambda language: f"{{labels.{language}}}"
    c.data.inputs.text.length = 48
    c.data.inputs.text.templates = tuple(
        template
        for language in LANGUAGES
        for template in ((2.0, label(language)), (1.0, f"{label(language)}, {{tags_by_language.{language}}}"))
    )
    c.evals = {
        language: dict(
            type="retrieval", urls=f"{demo.SHARDS}/unseen_vendor-0000.tar.gz", captions=(label(language),), by="split",
            every="50%",
        )
        for language in LANGUAGES
    }  # fmt: skip
    c.checkpoint.best = "retrieval/en/image_to_text/R@10"
    return c
