"""open_clip's CLIP with a vision transformer, in its own files: open_clip_config.json, open_clip_model.safetensors.

The models are those of Hugging Face's `CLIPModel`; names, layouts and the words of the configuration are others.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.clip import CLIP
from xmodal.interop.encoders import IMAGE, OBJECTIVE, TEXT, hidden
from xmodal.interop.settings import shown, typed
from xmodal.interop.tables import CONV, Entry, Family, InteropError, fail, linear, norm, packed_attention
from xmodal.models import presets
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

# Settings that are understood, with open_clip's defaults; any other that a file sets is refused.
_VISION = dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224, patch_dropout=0.0,
               act_kwargs=None, norm_kwargs=None)  # fmt: skip
_TEXT = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12, mlp_ratio=4.0, hf_tokenizer_name=None,
             tokenizer_kwargs=None, pool_type="argmax", eos_id=2, pad_id=0, act_kwargs=None,
             norm_kwargs=None)  # fmt: skip
# Settings that may be there as long as they have no effect.
_IDLE = dict(
    ls_init_value=None, attentional_pool=False, attn_pooler_queries=256, attn_pooler_heads=8, no_ln_pre=False,
    pos_embed_type="learnable", final_ln_after_pool=False, output_tokens=False, block_type=None, qk_norm=False,
    scaled_cosine_attn=False, scale_heads=False, scale_attn_inner=False, scale_attn=False, scale_fc=False,
    timm_model_name=None, hf_model_name=None, embed_cls=False, no_causal_mask=False, proj_bias=False,
    proj_type="linear", tokenizer_mode=None,
)  # fmt: skip
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale")


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of the `model_cfg` of an open_clip_config.json.

    Raises:
      InteropError: it uses what is not known here; all of that is listed.
    """
    vision, words = settings(config, _VISION, {"pool_type": "tok"})
    heads, size, mlp = vision["width"] // vision["head_width"], vision["image_size"], _mlp(config, vision)
    patches = dict(image_size=tuple(size) if isinstance(size, list | tuple) else size, norm_eps=mlp["norm_eps"])
    return presets.dual_tower(
        image=presets.image_tower(vision["width"], vision["layers"], heads, patch_size=vision["patch_size"],
                                  embed_dim=config["embed_dim"], embed=patches, **mlp),
        text=text_tower(config, words),
    )  # fmt: skip


def settings(config: Mapping[str, Any], known: Mapping[str, Any], idle: Mapping[str, Any]) -> tuple[dict, dict]:
    """Returns `vision_cfg` and `text_cfg`, completed.

    Args:
      config: `model_cfg`.
      known: settings of the image tower that are understood, with their defaults.
      idle: others that may be there with this value.

    Raises:
      InteropError: there are others; all of them are listed.
    """
    parts = (key for key in ("vision_cfg", "text_cfg") if not isinstance(config[key], Mapping))
    wrong = [f"{key} is {shown(config[key])}, needs an object" for key in parts]
    fail("this open_clip model cannot be converted", wrong)
    vision, words = dict(config["vision_cfg"]), dict(config["text_cfg"])
    wrong = typed("model_cfg", config, dict(embed_dim=512, quick_gelu=False))
    wrong += typed("vision_cfg", vision, known) + typed("text_cfg", words, _TEXT)
    fail("this open_clip model cannot be converted", wrong)
    problems = [f"model_cfg.{key}" for key in config if key not in _MODEL]
    problems += _unknown("vision_cfg", vision, known, idle) + _unknown("text_cfg", words, _TEXT, {})
    if config.get("custom_text"):
        problems.append("model_cfg.custom_text: the text tower under names of its own")
    if words.get("pool_type", "argmax") not in ("argmax", "eos"):
        problems.append(f"text_cfg.pool_type={words['pool_type']!r}, needs 'argmax' or 'eos'")
    fail("this open_clip model uses what cannot be converted", problems)
    return {**known, **vision}, _TEXT | words


def text_tower(config: Mapping[str, Any], words: Mapping[str, Any]) -> dict:
    """The text tower of a `model_cfg` and its completed `text_cfg`."""
    tokens = dict(vocab_size=words["vocab_size"], length=words["context_length"])
    return presets.text_tower(words["width"], words["layers"], words["heads"], embed_dim=config["embed_dim"],
                              embed=tokens, **_mlp(config, words))  # fmt: skip


def _mlp(config: Mapping[str, Any], part: Mapping[str, Any]) -> dict:
    return dict(
        act=_activation(config, part), hidden=int(part["width"] * part["mlp_ratio"]),
        norm_eps=(part["norm_kwargs"] or {}).get("eps", 1e-5),
    )  # fmt: skip


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the open_clip model that `spec` describes."""
    CLIP.table(spec)  # the same models: it raises for any other
    image, text = spec.towers[IMAGE], spec.towers[TEXT]
    width, (down, across), patch = image.width, image.embed.grid, image.embed.patch_size
    own = f"{IMAGE}/embed"
    return [
        *text_entries(text),
        Entry("visual.class_embedding", f"{own}/class_token", (width,)),
        Entry("visual.positional_embedding", f"{own}/position", (down * across + 1, width)),
        Entry("visual.proj", f"{IMAGE}/projection/kernel", (width, image.embed_dim)),
        Entry("visual.conv1.weight", f"{own}/kernel", (width, 3, patch, patch), CONV),
        *norm("visual.ln_pre", f"{own}/pre_norm", width),
        *_blocks("visual.transformer", f"{IMAGE}/trunk", image.trunk),
        *norm("visual.ln_post", f"{IMAGE}/trunk/final_norm", width),
    ]


def text_entries(text: TowerSpec) -> Iterator[Entry]:
    """The text tower and the temperature."""
    yield Entry("logit_scale", f"objectives/{OBJECTIVE}/logit_scale", ())
    yield Entry("positional_embedding", f"{TEXT}/embed/position", (text.embed.length, text.width))
    yield Entry("text_projection", f"{TEXT}/projection/kernel", (text.width, text.embed_dim))
    yield Entry("token_embedding.weight", f"{TEXT}/embed/embedding", (text.embed.vocab_size, text.width))
    yield from _blocks("transformer", f"{TEXT}/trunk", text.trunk)
    yield from norm("ln_final", f"{TEXT}/trunk/final_norm", text.width)


def _blocks(name: str, path: str, trunk: TrunkSpec) -> Iterator[Entry]:
    width, inner = trunk.width, hidden(trunk)
    attention, mlp = f"{path}/layers/0/0", f"{path}/layers/0/1"
    for i in range(trunk.depth):
        block = f"{name}.resblocks.{i}"
        yield from norm(f"{block}.ln_1", f"{attention}/norm", width, i)
        yield from packed_attention(f"{block}.attn", f"{attention}/attn", width, i)
        yield from norm(f"{block}.ln_2", f"{mlp}/norm", width, i)
        yield from linear(f"{block}.mlp.c_fc", f"{mlp}/mlp/fc1", width, inner, layer=i)
        yield from linear(f"{block}.mlp.c_proj", f"{mlp}/mlp/fc2", inner, width, layer=i)


def to_config(spec: ModelSpec) -> dict:
    """Returns the `model_cfg` of a model that `table` accepts.

    Raises:
      InteropError: open_clip has no such model.
    """
    table(spec)
    image, text = spec.towers[IMAGE], spec.towers[TEXT]
    acts = {tower.trunk.pattern[0][1].act for tower in (image, text)}
    if len(acts) > 1 and "quick_gelu" in acts:
        raise InteropError(f"open_clip uses quick_gelu in both towers or in none; this model has {sorted(acts)}")
    size = image.embed.image_size
    vision = dict(
        image_size=list(size) if isinstance(size, tuple) else size, layers=image.trunk.depth, width=image.width,
        head_width=image.width // image.trunk.pattern[0][0].heads, patch_size=image.embed.patch_size,
    )  # fmt: skip
    return dict(
        embed_dim=image.embed_dim, quick_gelu="quick_gelu" in acts,
        vision_cfg=vision | _layers(image.trunk, IMAGE), text_cfg=text_settings(text),
    )  # fmt: skip


def text_settings(text: TowerSpec) -> dict:
    """The `text_cfg` of a text tower: the way back of `text_tower`."""
    return dict(
        context_length=text.embed.length, vocab_size=text.embed.vocab_size, width=text.width,
        heads=text.trunk.pattern[0][0].heads, layers=text.trunk.depth, **_layers(text.trunk, TEXT),
    )  # fmt: skip


def _layers(trunk: TrunkSpec, where: str) -> dict:
    """MLP, activation and epsilon, where they are not the default."""
    settings, act = {"mlp_ratio": hidden(trunk) / trunk.width}, trunk.pattern[0][1].act
    if int(trunk.width * settings["mlp_ratio"]) != hidden(trunk):
        raise InteropError(f"open_clip has no such model:\n  {where}: a hidden width of {hidden(trunk)} is no multiple "
                           f"of {trunk.width}")  # fmt: skip
    if act not in ("quick_gelu", "gelu", "gelu_tanh"):
        raise InteropError(f"open_clip has no activation {act!r}: known are quick_gelu, gelu, gelu_tanh")
    if act == "gelu_tanh":
        settings["act_kwargs"] = {"approximate": "tanh"}
    if trunk.norm_eps != 1e-5:
        settings["norm_kwargs"] = {"eps": trunk.norm_eps}
    return settings


def _activation(config: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    act = dict(part["act_kwargs"] or {})
    approximate = act.pop("approximate", "none")
    if act or approximate not in ("none", "tanh"):
        raise InteropError(f"act_kwargs {shown(part['act_kwargs'])} is not known: known is {{'approximate': 'tanh'}}")
    return "quick_gelu" if config.get("quick_gelu") else {"none": "gelu", "tanh": "gelu_tanh"}[approximate]


def _unknown(where: str, given: Mapping, known: Mapping, more: Mapping) -> list[str]:
    idle = {**_IDLE, **more}
    return [
        f"{where}.{key}={shown(value)}" + (f", needs {idle[key]!r}" if key in idle else "")
        for key, value in given.items()
        if key not in known and not (key in idle and value == idle[key])
    ]


def kind_of(config: Mapping[str, Any]) -> str:
    """Returns how a `model_cfg` builds its towers: "vit", "resnet", "timm" or "transformers"."""
    vision, words = (part if isinstance(part := config.get(key), Mapping) else {} for key in ("vision_cfg", "text_cfg"))
    if vision.get("timm_model_name"):
        return "timm"
    if words.get("hf_model_name"):
        return "transformers"
    return "resnet" if isinstance(vision.get("layers"), list | tuple) else "vit"


VIT = Family(
    model_type="open_clip", architecture="open_clip.CLIP", model_config=model_config, table=table, to_config=to_config,
    fits=CLIP.fits, objective=CLIP.objective, ignored=frozenset({"attn_mask"}),
)  # fmt: skip
