"""open_clip's CLIP with a vision transformer, in its own files: open_clip_config.json, open_clip_model.safetensors.

The models are those of Hugging Face's `CLIPModel`; names, layouts and the words of the configuration are others.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.interop import open_clip_text
from xmodal.interop.clip import CLIP, IMAGE_TOWER
from xmodal.interop.encoders import IMAGE, OBJECTIVE, TEXT, check_towers, hidden
from xmodal.interop.open_clip_text import fixed_tower, pooling, text_tower
from xmodal.interop.settings import shown, typed
from xmodal.interop.tables import CONV, Entry, Family, InteropError, fail, linear, norm, packed_attention
from xmodal.models import presets
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

# Settings that are understood, with open_clip's defaults; any other that a file sets is refused.
_VISION = dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224, act_kwargs=None,
               norm_kwargs=None)  # fmt: skip
# Settings that have no effect: `patch_dropout` is for training, the others belong to a pooling or a timm model that
# `attentional_pool` and `timm_model_name` would ask for.
_VISION_UNUSED = (
    "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj",
    "timm_proj_bias", "timm_drop", "timm_drop_path",
)  # fmt: skip
# Settings that may be there as long as they have no effect.
_VISION_IDLE = dict(
    ls_init_value=None, attentional_pool=False, no_ln_pre=False, pos_embed_type="learnable", final_ln_after_pool=False,
    pool_type="tok", output_tokens=False, block_type=None, qk_norm=False, scaled_cosine_attn=False, scale_heads=False,
    scale_attn_inner=False, scale_attn=False, scale_fc=False, timm_model_name=None,
)  # fmt: skip
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
_MODEL_UNUSED = ("init_logit_scale", "output_dict", "cast_dtype")  # where training starts, and how a call answers
_MODEL_IDLE = dict(custom_text=False, init_logit_bias=None, nonscalar_logit_scale=False)


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of the `model_cfg` of an open_clip_config.json.

    Raises:
      InteropError: it uses what is not known here; all of that is listed.
    """
    vision, words = settings(config, _VISION)
    heads, size, layers = vision["width"] // vision["head_width"], vision["image_size"], mlp(config, vision)
    patches = dict(image_size=tuple(size) if isinstance(size, list | tuple) else size, norm_eps=layers["norm_eps"])
    return presets.dual_tower(
        image=presets.image_tower(vision["width"], vision["layers"], heads, patch_size=vision["patch_size"],
                                  embed_dim=config["embed_dim"], embed=patches, **layers),
        text=text_tower(words, config["embed_dim"], **mlp(config, words)),
    )  # fmt: skip


def settings(config: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict, dict]:
    """Returns `vision_cfg` and `text_cfg`, completed.

    Args:
      config: `model_cfg`.
      known: settings of the image tower that are understood, with their defaults.

    Raises:
      InteropError: there are others; all of them are listed.
    """
    parts = (key for key in ("vision_cfg", "text_cfg") if not isinstance(config[key], Mapping))
    wrong = [f"{key} is {shown(config[key])}, needs an object" for key in parts]
    fail("this open_clip model cannot be converted", wrong)
    vision, words = {**known, **config["vision_cfg"]}, {**open_clip_text.READ, **config["text_cfg"]}
    wrong = typed("model_cfg", config, dict(embed_dim=512, quick_gelu=False))
    wrong += typed("vision_cfg", vision, known) + typed("text_cfg", words, open_clip_text.READ)
    fail("this open_clip model cannot be converted", wrong)
    problems = _unknown("model_cfg", config, (*_MODEL, *_MODEL_UNUSED), _MODEL_IDLE)
    problems += _unknown("vision_cfg", vision, (*known, *_VISION_UNUSED), _VISION_IDLE)
    problems += _unknown("text_cfg", words, (*open_clip_text.READ, *open_clip_text.UNUSED), open_clip_text.IDLE)
    fail("this open_clip model uses what cannot be converted", problems + open_clip_text.problems(words))
    return vision, words


def read_texts(config: Mapping[str, Any], tokenizer: Tokenizer, sep: str | None) -> tuple[Tokenizer, dict]:
    """Returns the tokenizer and options of the text input of a `model_cfg`; see `open_clip_text.read_texts`."""
    return open_clip_text.read_texts({**open_clip_text.READ, **config["text_cfg"]}, tokenizer, sep)


def mlp(config: Mapping[str, Any], part: Mapping[str, Any]) -> dict:
    """Activation, hidden width and epsilon of the layers of a part of a `model_cfg`."""
    return dict(
        act=_activation(config, part), hidden=int(part["width"] * part["mlp_ratio"]),
        norm_eps=(part["norm_kwargs"] or {}).get("eps", 1e-5),
    )  # fmt: skip


def _towers(spec: ModelSpec) -> tuple[TowerSpec, TowerSpec]:
    """Image and text tower: Hugging Face's CLIP, but for where texts are pooled; else an InteropError says why not."""
    return check_towers(spec, "open_clip.CLIP", IMAGE_TOWER, fixed_tower(spec.towers.get(TEXT)))


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the open_clip model that `spec` describes."""
    image, text = _towers(spec)
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
    image, text = _towers(spec)
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
    """The `text_cfg` of a text tower, but for its tokenizer: the way back of `text_tower`."""
    return dict(
        context_length=text.embed.length, vocab_size=text.embed.vocab_size, width=text.width,
        heads=text.trunk.pattern[0][0].heads, layers=text.trunk.depth, **_layers(text.trunk, TEXT), **pooling(text),
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
    if config.get("quick_gelu") and part["act_kwargs"]:
        raise InteropError(f"act_kwargs {shown(part['act_kwargs'])} with quick_gelu=True: a QuickGELU takes none")
    return "quick_gelu" if config.get("quick_gelu") else {"none": "gelu", "tanh": "gelu_tanh"}[approximate]


def _unknown(where: str, given: Mapping, known: Collection[str], idle: Mapping) -> list[str]:
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
