"""As what a model can leave is said before it is trained, by the checks of the export."""

import pytest
from safetensors.numpy import load_file, save_file

from tests.interop import folders
from xmodal.config import load_config
from xmodal.configs import base
from xmodal.interop.export import export
from xmodal.interop.leaving import leaves_as
from xmodal.interop.tables import InteropError
from xmodal.models import presets
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored

SCALE = ("objectives/contrastive/logit_scale",)


def line_of(recipe, paths=SCALE, **changes):
    config = load_config(recipe)
    for tower in config.model.towers.values():
        embed = tower.get("embed") or {}
        if embed.get("type") == "token":
            embed.update(vocab_size=100, length=32)
        elif "image_size" in embed:
            embed.image_size = config.data.inputs.image.size
        if "logits" in tower.heads:
            tower.heads.logits.vocab_size = 100
    config.update(changes)
    return leaves_as(config, paths)


def test_recipes_say_what_they_leave_as():
    assert line_of("configs/demo.py") == line_of("configs/clip.py:B16") == "hf clip, open_clip, xmodal, jax"
    assert line_of("configs/siglip.py", (*SCALE, "objectives/contrastive/logit_bias")) == "hf siglip, xmodal, jax"
    assert line_of("configs/bert.py", ()) == "hf bert, xmodal, jax"
    assert line_of("configs/git.py", ()) == "xmodal, jax only; hf has no model of such towers"
    other = line_of("configs/demo.py:stem")
    assert other.startswith("xmodal, jax only; hf siglip would need other image/embed/stem, ") and "more" in other


def test_what_stands_in_the_way_is_named():
    assert line_of("configs/clip.py:B16", ()) == (
        "xmodal, jax only; hf clip would need objectives/contrastive/logit_scale, which this run does not train"
    )
    config = load_config("configs/clip.py:B16")
    config.objectives.contrastive.type = "sigmoid"
    line = line_of("configs/clip.py:B16", objectives=config.objectives)
    assert line.startswith("hf clip, open_clip, xmodal, jax; the probabilities of CLIPModel are a softmax's")
    c = base.get_config()
    c.model = presets.dual_tower(
        image=presets.vit("Ti16", act="silu", embed=dict(image_size=32)),
        text=presets.clip_text("Ti", pool="mean", embed=dict(vocab_size=9, length=8)),
    )
    assert leaves_as(c, SCALE) == "xmodal, jax only; hf clip would need other text/heads/pooled/pool"
    c.model.towers.text.heads.pooled.pool = "eos"
    line = "hf clip, xmodal, jax; open_clip cannot hold it: open_clip uses quick_gelu in both towers or in none"
    assert leaves_as(c, SCALE).startswith(line)


@pytest.mark.parametrize("name", ["clip_vit", "siglip"])
def test_the_line_is_what_the_export_does(name, tmp_path):
    stored = open_stored(f"hf:{folders.hugging_face(tmp_path / 'in', name)}")
    line = leaves_as(stored.config, flatten_paths(stored.params))
    notes = {}
    for to in ("hf", "open_clip"):
        if to in line:
            notes[to] = "".join(export(stored, tmp_path / to, to=to).notes)
        else:
            with pytest.raises(InteropError, match="open_clip builds only CLIP's towers"):
                export(stored, tmp_path / to, to=to)
    if name == "siglip":  # 12 tokens: the pipeline pads to 64
        assert "pads every SigLIP's texts to 64 tokens, and this model takes 12" in notes["hf"]
        card = (tmp_path / "hf" / "README.md").read_text()
        assert "max_length=12" in card and "pipeline(" not in card and "pads every SigLIP's texts" in card


def test_weights_of_a_wrapper_are_named(tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": array for name, array in weights.items()}, folder / "model.safetensors")
    with pytest.raises(InteropError, match=r"every name begins with 'module\.': save the model inside the wrapper"):
        open_stored(f"hf:{folder}")
