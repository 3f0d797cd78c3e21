"""What the pre-norm encoders of Hugging Face's dual towers share: settings, names, and what they can express."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.settings import shown
from xmodal.interop.tables import CONV, Entry, InteropError, differences, fail, linear, norm
from xmodal.models import presets
from xmodal.models.embed import NaflexSpec, PatchSpec, TokenSpec
from xmodal.models.heads import HeadSpec, PooledSpec
from xmodal.models.model import ModelSpec
from xmodal.models.options import training
from xmodal.models.spec import Sublayer
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec

IMAGE, TEXT, OBJECTIVE = "image", "text", "contrastive"  # names that a dual tower must have to be converted
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
                "swish": "silu", "silu": "silu"}  # fmt: skip
REFERENCE_ACTIVATIONS = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
# Fields of a trunk that every reference can express, or need not.
FREE_TRUNK = ("width", "depth", "norm_eps", *training(TrunkSpec))


# ---------------------------------------------------------------------------------------------- settings


def towers_of(style: str, vision: Mapping, words: Mapping, image_dim: int, text_dim: int) -> ConfigDict:
    """Returns the `model` section of two encoders.

    Args:
      style: of the presets, "clip" or "siglip".
      vision: complete `vision_config`.
      words: complete `text_config`.
      image_dim: width of the image projection; 0 without one.
      text_dim: the same of the text.
    """
    tokens = dict(vocab_size=words["vocab_size"], length=words["max_position_embeddings"])
    image = image_tower_of(style, vision, image_dim)
    text = presets.text_tower(*sizes(words), style=style, embed_dim=text_dim, embed=tokens, **layer_settings(words))
    return presets.dual_tower(**{IMAGE: image, TEXT: text})


def image_tower_of(style: str, vision: Mapping, dim: int) -> dict:
    """Returns the image tower of a complete `vision_config`; arguments as for `towers_of`."""
    patches = dict(image_size=vision["image_size"], norm_eps=vision["layer_norm_eps"])
    return presets.image_tower(
        *sizes(vision), patch_size=vision["patch_size"], style=style, embed_dim=dim, embed=patches,
        **layer_settings(vision),
    )  # fmt: skip


def sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Width, depth and heads of an encoder's settings."""
    return config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]


def layer_settings(config: Mapping[str, Any], dropout: str = "attention_dropout") -> dict:
    """Activation, hidden width, epsilon and, unless it is 0, dropout of the attention of an encoder's layers.

    Args:
      config: complete settings.
      dropout: key of the attention's dropout.

    Raises:
      InteropError: the activation is not known.
    """
    layers = dict(hidden=config["intermediate_size"], norm_eps=config["layer_norm_eps"])
    layers["act"] = activation(config["hidden_act"])
    return layers | (dict(attn_dropout=float(config[dropout])) if config[dropout] else {})


def activation(name: str) -> str:
    """Our name of an activation of the reference; raises an InteropError for one that is not known."""
    if name not in _ACTIVATIONS:
        raise InteropError(f"hidden_act {shown(name)} is not known: known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def vision_config(tower: TowerSpec, where: str = IMAGE) -> dict:
    """The `vision_config` of an image tower: the way back of `towers_of`."""
    size, (down, across) = tower.embed.image_size, tower.embed.grid
    if down != across:
        raise InteropError(f"{where}/embed/image_size: {size} is not square; the reference takes one side only")
    size = size if isinstance(size, int) else size[0]
    patches = dict(image_size=size, patch_size=tower.embed.patch_size, num_channels=3)
    return encoder_config(tower.trunk, where) | patches


def text_config(tower: TowerSpec, where: str = TEXT) -> dict:
    """The `text_config` of a text tower, without the ids of its marks."""
    embed = tower.embed
    sizes = dict(vocab_size=embed.vocab_size, max_position_embeddings=embed.length)
    return encoder_config(tower.trunk, where) | sizes


def encoder_config(trunk: TrunkSpec, where: str) -> dict:
    """Sizes, activation and epsilon of a trunk in Hugging Face's words."""
    attention, mlp = trunk.pattern[0]
    if mlp.act not in REFERENCE_ACTIVATIONS:
        raise InteropError(f"{where}/trunk: the reference has no activation {mlp.act!r}")
    return dict(
        hidden_size=trunk.width, intermediate_size=hidden(trunk), num_hidden_layers=trunk.depth,
        num_attention_heads=attention.heads, hidden_act=REFERENCE_ACTIVATIONS[mlp.act],
        layer_norm_eps=trunk.norm_eps, attention_dropout=attention.attn_dropout,
    )  # fmt: skip


def hidden(trunk: TrunkSpec) -> int:
    """Hidden width of the MLPs."""
    return trunk.pattern[0][1].hidden or 4 * trunk.width


# ---------------------------------------------------------------------------------------------- names


def text_entries(tower: TowerSpec, head: str, *, bias: bool, path: str = TEXT) -> Iterator[Entry]:
    """A text tower whose projection is called `head`."""
    width, embed = tower.width, tower.embed
    yield Entry("text_model.embeddings.token_embedding.weight", f"{path}/embed/embedding", (embed.vocab_size, width))
    yield Entry("text_model.embeddings.position_embedding.weight", f"{path}/embed/position", (embed.length, width))
    yield from encoder_entries("text_model.encoder", f"{path}/trunk", tower.trunk)
    yield from norm("text_model.final_layer_norm", f"{path}/trunk/final_norm", width)
    yield from linear(head, f"{path}/projection", width, tower.embed_dim, bias=bias)


def patch_entries(tower: TowerSpec, name: str = "vision_model.embeddings", path: str = f"{IMAGE}/embed"):
    """Patch kernel and positions of an image tower, and what goes with its style."""
    width, embed = tower.width, tower.embed
    down, across = embed.grid
    if embed.class_token:
        yield Entry(f"{name}.class_embedding", f"{path}/class_token", (width,))
    if embed.bias:
        yield Entry(f"{name}.patch_embedding.bias", f"{path}/bias", (width,))
    yield Entry(f"{name}.patch_embedding.weight", f"{path}/kernel", (width, 3, *(embed.patch_size,) * 2), CONV)
    yield Entry(f"{name}.position_embedding.weight", f"{path}/position", (down * across + embed.class_token, width))


def encoder_entries(name: str, path: str, trunk: TrunkSpec) -> Iterator[Entry]:
    """The layers of a pre-norm encoder."""
    width = trunk.width
    attention, mlp = f"{path}/layers/0/0", f"{path}/layers/0/1"
    maps = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
    for i in range(trunk.depth):
        layer = f"{name}.layers.{i}"
        yield from norm(f"{layer}.layer_norm1", f"{attention}/norm", width, i)
        for theirs, ours in maps:
            yield from linear(f"{layer}.self_attn.{theirs}", f"{attention}/attn/{ours}", width, width, layer=i)
        yield from norm(f"{layer}.layer_norm2", f"{mlp}/norm", width, i)
        yield from linear(f"{layer}.mlp.fc1", f"{mlp}/mlp/fc1", width, hidden(trunk), layer=i)
        yield from linear(f"{layer}.mlp.fc2", f"{mlp}/mlp/fc2", hidden(trunk), width, layer=i)


# ---------------------------------------------------------------------------------------------- what is possible


# Fields of an embedder that every reference can express, or need not.
_FREE_EMBED = {
    PatchSpec: ("image_size", "patch_size", "ragged", "input", *training(PatchSpec)),
    NaflexSpec: ("patch_size", "positions", "length", "input", *training(NaflexSpec)),
    TokenSpec: ("vocab_size", "length", "input", *training(TokenSpec)),
}


def check_towers(
    spec: ModelSpec, reference: str, image: dict, text: dict, patches: type = PatchSpec
) -> tuple[TowerSpec, TowerSpec]:
    """Returns the image and the text tower if the reference can express them.

    Args:
      spec: the model.
      reference: class of the reference, for the message.
      image: what it fixes: fields of `TowerSpec`, and of the embedder under "embed".
      text: the same with a `TokenSpec`.
      patches: the image tower's embedder.

    Raises:
      InteropError: listing every setting that stands in the way.
    """
    missing = [name for name in (IMAGE, TEXT) if name not in spec.towers]
    fail(f"{reference} needs the towers {IMAGE!r} and {TEXT!r}",
         [f"missing: {name!r}, the model has {', '.join(spec.towers)}" for name in missing])  # fmt: skip
    problems = encoder_differences(spec.towers[IMAGE], IMAGE, patches, image)
    fail(f"{reference} has no such model", problems + encoder_differences(spec.towers[TEXT], TEXT, TokenSpec, text))
    return spec.towers[IMAGE], spec.towers[TEXT]


def encoder_differences(tower: TowerSpec, name: str, kind: type, fixed: dict) -> list[str]:
    """Says in what a tower is not as the reference fixes it; `kind` is the class of its embedder's spec."""
    if not isinstance(tower.embed, kind):
        return [f"{name}/embed: needs a {kind.__name__}, is {type(tower.embed).__name__}"]
    problems = differences(tower, _as_fixed(tower, kind, fixed), name)
    if not tower.embed_dim and fixed.get("embed_dim") != 0:
        problems.append(f"{name}/heads/pooled/embed_dim: is 0, needs the width of the shared space")
    return problems


def _as_fixed(tower: TowerSpec, kind: type, fixed: dict) -> TowerSpec:
    """The tower with everything at its default or as the reference fixes it, but its sizes."""
    # Built from the classes' defaults, so that an option that is added later is refused until a table knows it.
    own, free = fixed["embed"], _FREE_EMBED[kind]
    if kind is not NaflexSpec and not (own.get("pre_norm") or own.get("norm")):
        free = (*free, "norm_eps")  # of no norm
    embed = kind(**{f: getattr(tower.embed, f) for f in free} | own)
    if own.get("pre_norm"):
        embed = dataclasses.replace(embed, norm_eps=tower.trunk.norm_eps)
    trunk = _trunk_as_fixed(tower.trunk)
    rest = {k: v for k, v in fixed.items() if k != "embed"}
    rest |= dict(pool_heads=trunk.pattern[0][0].heads) if fixed["pool"] == "map" else {}
    logits = {name: head for name, head in tower.heads.items() if name == "logits"}
    heads = fixed_heads(tower, ("embed_dim", "pool_heads"), **rest) | logits
    return TowerSpec(trunk=trunk, embed=embed, heads=heads)


def fixed_heads(tower: TowerSpec, free: Iterable[str] = (), **fixed) -> dict[str, HeadSpec]:
    """The heads of a tower with everything at its default or as the reference fixes it.

    Args:
      tower: the tower; its heads without parameters stay.
      free: fields of the head `pooled` that stay, too.
      **fixed: fields of the head `pooled` that the reference fixes.
    """
    have = tower.pooled or PooledSpec()
    kept = {name: head for name, head in tower.heads.items() if name in ("local", "masked_logits", "logit_factors")}
    return kept | dict(pooled=PooledSpec(**{name: getattr(have, name) for name in free} | fixed))


def _trunk_as_fixed(trunk: TrunkSpec) -> TrunkSpec:
    first = {s.kind: s for s in trunk.pattern[0]}

    def keep(kind: str, *names: str) -> Sublayer:
        have = first.get(kind, Sublayer(kind))
        return Sublayer(
            kind, norm_eps=trunk.norm_eps, **{n: getattr(have, n) for n in ("dropout", "attn_dropout", *names)}
        )

    pattern = ((keep("self", "heads"), keep("mlp", "hidden", "act")),)
    return TrunkSpec(pattern=pattern, **{name: getattr(trunk, name) for name in FREE_TRUNK})
