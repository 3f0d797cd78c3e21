"""Hugging Face `CLIPModel` and `SiglipModel` <-> xmodal: settings, names and array layouts, in NumPy alone.

A table lists every array of the reference, the path at which it lives here and how its layout changes: linear
maps are transposed, patch kernels go from OIHW to HWIO, the layers of a trunk are stacked along a leading
axis, and the packed query, key and value of SigLIP's pooling head are taken apart. Both directions read it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from xmodal.models import presets
from xmodal.models.embed import PatchSpec, TokenSpec
from xmodal.models.model import ModelSpec
from xmodal.models.spec import Sublayer
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec
from xmodal.paths import flatten_paths

# Defaults of the reference's configuration classes: a published config.json leaves out what equals them.
_DEFAULTS = {
    "clip": dict(
        vision=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                    image_size=224, patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5),
        text=dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
                  vocab_size=49408, max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    ),
    "siglip": dict(
        vision=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                    image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6),
        text=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                  vocab_size=32000, max_position_embeddings=64, hidden_act="gelu_pytorch_tanh",
                  layer_norm_eps=1e-6, projection_size=None),
    ),
}  # fmt: skip
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
# Index tables that older files carry beside the weights.
_BUFFERS = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}
_LINEAR, _CONV = (1, 0), (2, 3, 1, 0)


def model_config(config: Mapping[str, Any], *, image: str = "image", text: str = "text") -> ConfigDict:
    """Returns the `model` section of the model that a Hugging Face `config.json` describes.

    Args:
      config: its contents; `model_type` is "clip" or "siglip". Keys left out take the reference's defaults.
      image: name of the image tower.
      text: name of the text tower.

    Raises:
      ValueError: another kind of model, or an activation that is not known.
    """
    style = config.get("model_type")
    if style not in _DEFAULTS:
        raise ValueError(f"model_type {style!r} cannot be converted: known are {', '.join(_DEFAULTS)}")
    vision = _DEFAULTS[style]["vision"] | dict(config.get("vision_config") or {})
    words = _DEFAULTS[style]["text"] | dict(config.get("text_config") or {})
    if style == "clip":
        image_dim = text_dim = config.get("projection_dim", 512)
    else:
        image_dim, text_dim = 0, words["projection_size"] or words["hidden_size"]
    size = lambda c: (c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"])
    patches = dict(image_size=vision["image_size"], norm_eps=vision["layer_norm_eps"])
    tokens = dict(vocab_size=words["vocab_size"], length=words["max_position_embeddings"])
    towers = {
        image: presets.image_tower(
            *size(vision), patch_size=vision["patch_size"], style=style, embed_dim=image_dim, embed=patches,
            **_mlp(vision),
        ),
        text: presets.text_tower(*size(words), style=style, embed_dim=text_dim, embed=tokens, **_mlp(words)),
    }  # fmt: skip
    return presets.dual_tower(**towers)


def _mlp(config: Mapping[str, Any]) -> dict:
    act = config["hidden_act"]
    if act not in _ACTIVATIONS:
        raise ValueError(f"hidden_act {act!r} is not known: known are {', '.join(_ACTIVATIONS)}")
    return dict(act=_ACTIVATIONS[act], hidden=config["intermediate_size"], norm_eps=config["layer_norm_eps"])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of the reference, or one equal part of its rows, and its place here.

    Attributes:
      name: of the array in the reference.
      path: of the parameter here.
      shape: of this part in the reference's layout.
      axes: the order of its axes here; () keeps it.
      own: shape here where it is not just the axes in another order, else None.
      layer: index along the leading axis of a stacked parameter here, or None.
      part: which part of the rows of a packed array this is.
      parts: how many parts it packs.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    own: tuple[int, ...] | None = None
    layer: int | None = None
    part: int = 0
    parts: int = 1

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the whole array in the reference."""
        return self.shape if self.parts == 1 else (self.parts * self.shape[0], *self.shape[1:])

    def take(self, array: np.ndarray) -> np.ndarray:
        """From the reference's whole array to the parameter here (of one layer)."""
        part = array if self.parts == 1 else np.split(array, self.parts)[self.part]
        part = part.transpose(self.axes) if self.axes else part
        return part if self.own is None else part.reshape(self.own)

    def give(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `take`, for this part alone."""
        array = array if self.layer is None else array[self.layer]
        return array.transpose(np.argsort(self.axes)) if self.axes else array.reshape(self.shape)


def from_huggingface(
    weights: Mapping[str, np.ndarray],
    spec: ModelSpec,
    *,
    image: str = "image",
    text: str = "text",
    objective: str = "contrastive",
) -> dict:
    """Converts the weights of a `CLIPModel` or `SiglipModel` to parameters.

    Which of the two is expected follows from the image tower: class token or attention pooling.

    Args:
      weights: arrays by Hugging Face name, of any floating type.
      spec: the model they are for, such as `model_config` describes it.
      image: name of the image tower.
      text: name of the text tower.
      objective: name of the objective that gets `logit_scale` (and `logit_bias`).

    Returns:
      {tower: {...}, "objectives": {objective: {...}}}, nested dicts of float32 arrays.

    Raises:
      ValueError: a model of another structure; missing names, unexpected names, wrong shapes (all listed).
    """
    entries = table(spec, image=image, text=text, objective=objective)
    wanted = {e.name: e.packed_shape for e in entries}
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in weights]
    problems += [f"unexpected: {name}" for name in weights if name not in wanted and name not in _BUFFERS]
    problems += [
        f"shape: {name} is {np.shape(weights[name])}, the model needs {shape}"
        for name, shape in wanted.items()
        if name in weights and np.shape(weights[name]) != shape
    ]
    _raise("the weights do not fit the model", problems)
    stacks: dict[str, list[np.ndarray]] = {}
    for entry in entries:  # layers come in order
        stacks.setdefault(entry.path, []).append(entry.take(np.asarray(weights[entry.name], np.float32)))
    stacked = {e.path for e in entries if e.layer is not None}
    flat = {path: np.stack(a) if path in stacked else np.array(a[0], order="C") for path, a in stacks.items()}
    return unflatten_dict(flat, sep="/")


def to_huggingface(
    params: Mapping[str, Any],
    spec: ModelSpec,
    *,
    image: str = "image",
    text: str = "text",
    objective: str = "contrastive",
) -> dict[str, np.ndarray]:
    """Converts parameters to weights of a `CLIPModel` or `SiglipModel`: the inverse of `from_huggingface`.

    Args:
      params: nested dicts of arrays; towers and objectives beside the named ones are left out.
      spec: the model.
      image: name of the image tower.
      text: name of the text tower.
      objective: name of the objective that holds `logit_scale` (and `logit_bias`).

    Returns:
      Contiguous arrays by Hugging Face name, of the parameters' type.

    Raises:
      ValueError: the reference has no such model, or parameters are missing (all of them are listed).
    """
    entries = table(spec, image=image, text=text, objective=objective)
    flat = {path: np.asarray(value) for path, value in flatten_paths(params).items()}
    _raise(
        "the parameters are incomplete",
        [f"missing: {p}" for p in sorted({e.path for e in entries} - set(flat))],
    )
    packed: dict[str, list[np.ndarray]] = {}
    for entry in entries:  # parts come in order
        packed.setdefault(entry.name, []).append(entry.give(flat[entry.path]))
    return {n: np.array(a[0] if len(a) == 1 else np.concatenate(a), order="C") for n, a in packed.items()}


# ---------------------------------------------------------------------------------------------- the table


def table(spec: ModelSpec, *, image: str = "image", text: str = "text", objective: str = "contrastive") -> list[Entry]:
    """Returns every array of the reference model that `spec` describes; arguments of `from_huggingface`."""
    missing = [name for name in (image, text) if name not in spec.towers]
    _raise(
        "towers to convert",
        [f"missing: {name!r}, the model has {', '.join(spec.towers)}" for name in missing],
    )
    towers = {image: spec.towers[image], text: spec.towers[text]}
    clip = towers[image].pool == "cls"
    _check(towers, clip)
    scalar = () if clip else (1,)
    entries = [Entry("logit_scale", f"objectives/{objective}/logit_scale", scalar, own=())]
    if not clip:
        entries.append(Entry("logit_bias", f"objectives/{objective}/logit_bias", scalar, own=()))
    return [*entries, *_text(text, towers[text], clip), *_image(image, towers[image], clip)]


def _text(path: str, tower: TowerSpec, clip: bool) -> Iterator[Entry]:
    width, embed = tower.width, tower.embed
    yield Entry("text_model.embeddings.token_embedding.weight", f"{path}/embed/embedding", (embed.vocab_size, width))
    yield Entry("text_model.embeddings.position_embedding.weight", f"{path}/embed/position", (embed.length, width))
    yield from _trunk("text_model.encoder", f"{path}/trunk", tower.trunk)
    yield from _norm("text_model.final_layer_norm", f"{path}/trunk/final_norm", width)
    name = "text_projection" if clip else "text_model.head"
    yield from _linear(name, f"{path}/projection", width, tower.embed_dim, bias=not clip)


def _image(path: str, tower: TowerSpec, clip: bool) -> Iterator[Entry]:
    width, embed = tower.width, tower.embed
    tokens, patch = embed.grid[0] * embed.grid[1] + clip, embed.patch_size
    name, own = "vision_model.embeddings", f"{path}/embed"
    if clip:
        yield Entry(f"{name}.class_embedding", f"{own}/class_token", (width,))
        yield from _norm("vision_model.pre_layrnorm", f"{own}/pre_norm", width)  # the reference's spelling
    else:
        yield Entry(f"{name}.patch_embedding.bias", f"{own}/bias", (width,))
    yield Entry(f"{name}.patch_embedding.weight", f"{own}/kernel", (width, 3, patch, patch), _CONV)
    yield Entry(f"{name}.position_embedding.weight", f"{own}/position", (tokens, width))
    yield from _trunk("vision_model.encoder", f"{path}/trunk", tower.trunk)
    yield from _norm("vision_model.post_layernorm", f"{path}/trunk/final_norm", width)
    if clip:
        yield from _linear("visual_projection", f"{path}/projection", width, tower.embed_dim, bias=False)
    else:
        yield from _map_head("vision_model.head", f"{path}/pool", width, _hidden(tower.trunk))


def _map_head(name: str, path: str, width: int, hidden: int) -> Iterator[Entry]:
    yield Entry(f"{name}.probe", f"{path}/probe", (1, 1, width), own=(1, width))
    for part, which in enumerate(("query", "key", "value")):
        packed = dict(part=part, parts=3)
        own, attention = f"{path}/attn/{which}", f"{name}.attention"
        yield Entry(f"{attention}.in_proj_weight", f"{own}/kernel", (width, width), _LINEAR, **packed)
        yield Entry(f"{attention}.in_proj_bias", f"{own}/bias", (width,), **packed)
    yield from _linear(f"{name}.attention.out_proj", f"{path}/attn/out", width, width)
    yield from _norm(f"{name}.layernorm", f"{path}/mlp/norm", width)
    yield from _linear(f"{name}.mlp.fc1", f"{path}/mlp/mlp/fc1", width, hidden)
    yield from _linear(f"{name}.mlp.fc2", f"{path}/mlp/mlp/fc2", hidden, width)


def _trunk(name: str, path: str, trunk: TrunkSpec) -> Iterator[Entry]:
    width, hidden = trunk.width, _hidden(trunk)
    attention, mlp = f"{path}/layers/0/0", f"{path}/layers/0/1"
    for i in range(trunk.depth):
        layer = f"{name}.layers.{i}"
        yield from _norm(f"{layer}.layer_norm1", f"{attention}/norm", width, i)
        for theirs, ours in (
            ("q_proj", "query"),
            ("k_proj", "key"),
            ("v_proj", "value"),
            ("out_proj", "out"),
        ):
            yield from _linear(f"{layer}.self_attn.{theirs}", f"{attention}/attn/{ours}", width, width, layer=i)
        yield from _norm(f"{layer}.layer_norm2", f"{mlp}/norm", width, i)
        yield from _linear(f"{layer}.mlp.fc1", f"{mlp}/mlp/fc1", width, hidden, layer=i)
        yield from _linear(f"{layer}.mlp.fc2", f"{mlp}/mlp/fc2", hidden, width, layer=i)


def _norm(name: str, path: str, width: int, layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", f"{path}/scale", (width,), layer=layer)
    yield Entry(f"{name}.bias", f"{path}/bias", (width,), layer=layer)


def _linear(
    name: str, path: str, inputs: int, outputs: int, *, bias: bool = True, layer: int | None = None
) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", f"{path}/kernel", (outputs, inputs), _LINEAR, layer=layer)
    if bias:
        yield Entry(f"{name}.bias", f"{path}/bias", (outputs,), layer=layer)


def _hidden(trunk: TrunkSpec) -> int:
    return trunk.pattern[0][1].hidden or 4 * trunk.width


# ---------------------------------------------------------------------------------------------- checks


def _check(towers: Mapping[str, TowerSpec], clip: bool) -> None:
    """Raises a ValueError that lists every setting that the reference cannot express."""
    problems = []
    for (name, tower), kind, adapt in zip(towers.items(), (PatchSpec, TokenSpec), (_like_image, _like_text)):
        if not isinstance(tower.embed, kind):
            problems.append(f"{name}/embed: needs a {kind.__name__}")
            continue
        have, need = (flatten_paths(dataclasses.asdict(t)) for t in (tower, adapt(tower, clip)))
        problems += [
            f"{name}/{key}: is {have.get(key, 'not there')!r}, needs {need.get(key, 'nothing')!r}"
            for key in {**have, **need}
            if have.get(key) != need.get(key)
        ]
        if not tower.embed_dim and (clip or kind is TokenSpec):
            problems.append(f"{name}/embed_dim: is 0, needs the width of the shared space")
    _raise(f"Hugging Face's {'CLIPModel' if clip else 'SiglipModel'} has no such model", problems)


def _like_image(tower: TowerSpec, clip: bool) -> TowerSpec:
    """The tower with everything fixed that the reference fixes."""
    embed = dataclasses.replace(
        tower.embed, stem=(), class_token=clip, position="learned", bias=not clip, pre_norm=clip,
        norm_eps=tower.trunk.norm_eps if clip else tower.embed.norm_eps,
    )  # fmt: skip
    trunk = _like_trunk(tower.trunk)
    return dataclasses.replace(
        TowerSpec(trunk=trunk, embed=embed, pool="cls" if clip else "map"),
        pool_heads=tower.pool_heads if clip else trunk.pattern[0][0].heads,
        embed_dim=tower.embed_dim if clip else 0, head=tower.head, vocab_size=tower.vocab_size,
    )  # fmt: skip


def _like_text(tower: TowerSpec, clip: bool) -> TowerSpec:
    embed = dataclasses.replace(
        tower.embed, position="learned", causal=clip, mask_padding=clip, norm=False, scale=False
    )
    return dataclasses.replace(
        TowerSpec(trunk=_like_trunk(tower.trunk), embed=embed, pool="eos" if clip else "last"),
        pool_heads=tower.pool_heads, embed_dim=tower.embed_dim, projection_bias=not clip, head=tower.head,
        vocab_size=tower.vocab_size,
    )  # fmt: skip


def _like_trunk(trunk: TrunkSpec) -> TrunkSpec:
    first = {s.kind: s for s in trunk.pattern[0]}
    keep = lambda kind, *names: Sublayer(
        kind,
        norm_eps=trunk.norm_eps,
        **{n: getattr(first.get(kind, Sublayer(kind)), n) for n in ("dropout", *names)},
    )
    pattern = ((keep("self", "heads"), keep("mlp", "hidden", "act")),)
    return dataclasses.replace(trunk, pattern=pattern, final_norm=True, norm="ln", condition_width=0)


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{what}:\n  " + "\n  ".join(problems))
