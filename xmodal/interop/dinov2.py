"""DINOv2: Hugging Face's `Dinov2Model` and, with registers, `Dinov2WithRegistersModel`."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xmodal.interop.encoders import IMAGE, encoder_config, layer_settings, sizes
from xmodal.interop.settings import Settings, architecture, section
from xmodal.interop.tables import LINEAR, Entry, Family, InteropError, linear, norm
from xmodal.interop.vit import FIXED, attention_entries, check_tower, gated, is_image_tower, patch_entries
from xmodal.models import presets
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec

# With the defaults of the reference's configuration classes. What a backbone gives is idle here, as is the token for
# masked patches.
_READ = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, mlp_ratio=4.0, image_size=224,
             hidden_act="gelu", layer_norm_eps=1e-6, layerscale_value=1.0, use_swiglu_ffn=False,
             attention_probs_dropout_prob=0.0)  # fmt: skip
_SETTINGS = Settings(
    read=_READ, fixed=FIXED | dict(apply_layernorm=True, drop_path_rate=0.0),
    idle=("out_features", "out_indices", "reshape_hidden_states", "stage_names", "use_mask_token"),
)  # fmt: skip
_OWN = {"dinov2": dict(patch_size=14), "dinov2_with_registers": dict(patch_size=16, num_register_tokens=4)}
_FILTER = {"dinov2": "bicubic", "dinov2_with_registers": "bicubic_antialias"}
_CLASS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
# Stands in for masked patches in its training; no tower here reads it.
_MASK = "embeddings.mask_token"


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `Dinov2Config` or `Dinov2WithRegistersConfig`."""
    kind = config["model_type"]
    save = f"`{_CLASS[kind]}.from_pretrained(...).save_pretrained(DIR)`"
    hint = (f". Only the model itself can be converted, {save}: its classifier reads the patches' mean as well, and "
            "belongs to one data set")  # fmt: skip
    architecture(config, _CLASS[kind], hint=hint)
    config = section(config, "", _SETTINGS | _OWN[kind])
    hidden = _hidden(config["hidden_size"], config["mlp_ratio"], config["use_swiglu_ffn"])
    layers = layer_settings(config | dict(intermediate_size=hidden), "attention_probs_dropout_prob")
    layers |= dict(gate="layerscale", gate_init=float(config["layerscale_value"]))
    if config["use_swiglu_ffn"]:
        layers |= dict(glu=True, act="silu")
    registers = config.get("num_register_tokens", 0)
    size = config["image_size"]
    patches = dict(image_size=size, position_size=size, position_filter=_FILTER[kind], registers=registers)
    tower = presets.image_tower(*sizes(config), patch_size=config["patch_size"], style="vit", embed=patches, **layers)
    return presets.dual_tower(**{IMAGE: tower})


def _hidden(width: int, ratio: float, glu: bool) -> int:
    """Hidden width of the MLPs: with SwiGLU two thirds, rounded up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if glu else hidden


def _tower(spec: ModelSpec, kind: str) -> TowerSpec:
    embed = spec.towers[IMAGE].embed
    resampled = embed.position_grid != embed.grid
    free = dict(position_size=embed.position_size, registers=embed.registers,
                position_filter=_FILTER[kind] if resampled else embed.position_filter)  # fmt: skip
    return check_tower(spec, _CLASS[kind], embed=free, layer=dict(gate="layerscale"), pool="cls")


def table(spec: ModelSpec, kind: str) -> list[Entry]:
    """Returns every array of the model that `spec` describes, but for the mask token."""
    tower = _tower(spec, kind)
    last = norm("layernorm", f"{IMAGE}/trunk/final_norm", tower.width)
    return [*patch_entries("", tower), *_layers(tower), *last]


def _layers(tower: TowerSpec) -> Iterator[Entry]:
    width, block = tower.width, tower.trunk.pattern[0][1]
    inner, attention, mlp = block.hidden or 4 * width, f"{IMAGE}/trunk/layers/0/0", f"{IMAGE}/trunk/layers/0/1"
    for i in range(tower.trunk.depth):
        layer = f"encoder.layer.{i}"
        yield from norm(f"{layer}.norm1", f"{attention}/norm", width, i)
        yield from attention_entries(layer, attention, width, i)
        yield Entry(f"{layer}.layer_scale1.lambda1", f"{attention}/gate", (width,), layer=i)
        yield from norm(f"{layer}.norm2", f"{mlp}/norm", width, i)
        if block.glu:
            for part, ours in enumerate(("gate", "fc1")):
                packed = dict(part=part, parts=2, layer=i)
                name, path = f"{layer}.mlp.weights_in", f"{mlp}/mlp/{ours}"
                yield Entry(f"{name}.weight", f"{path}/kernel", (inner, width), LINEAR, **packed)
                yield Entry(f"{name}.bias", f"{path}/bias", (inner,), **packed)
            yield from linear(f"{layer}.mlp.weights_out", f"{mlp}/mlp/fc2", inner, width, layer=i)
        else:
            yield from linear(f"{layer}.mlp.fc1", f"{mlp}/mlp/fc1", width, inner, layer=i)
            yield from linear(f"{layer}.mlp.fc2", f"{mlp}/mlp/fc2", inner, width, layer=i)
        yield Entry(f"{layer}.layer_scale2.lambda1", f"{mlp}/gate", (width,), layer=i)


def to_config(spec: ModelSpec, kind: str) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    tower = _tower(spec, kind)
    embed, width, mlp = tower.embed, tower.width, tower.trunk.pattern[0][1]
    hidden, (down, across) = mlp.hidden or 4 * width, embed.position_grid
    if down != across:
        raise InteropError(f"{IMAGE}/embed/position_size: {down} x {across} patches; the reference has squares only")
    ratio = next((r for r in range(1, 33) if _hidden(width, r, mlp.glu) == hidden), None)
    if ratio is None:
        raise InteropError(f"{IMAGE}/trunk: MLPs of {hidden} are no whole multiple of the width {width}, which is all "
                           "that the reference can say")  # fmt: skip
    if mlp.glu and mlp.act != "silu":
        raise InteropError(f"{IMAGE}/trunk: gated MLPs of the reference have silu, not {mlp.act}")
    own = encoder_config(tower.trunk, IMAGE) | (dict(hidden_act="gelu") if mlp.glu else {})  # gated: not read
    own["attention_probs_dropout_prob"] = own.pop("attention_dropout")
    del own["intermediate_size"]
    registers = dict(num_register_tokens=embed.registers) if kind == "dinov2_with_registers" else {}
    return dict(
        architectures=[_CLASS[kind]], model_type=kind, **own, **registers, mlp_ratio=ratio, use_swiglu_ffn=mlp.glu,
        image_size=down * embed.patch_size, patch_size=embed.patch_size, num_channels=3,
        layerscale_value=tower.trunk.pattern[0][0].gate_init, qkv_bias=True,
        hidden_dropout_prob=0.0,
    )  # fmt: skip


def _constants(spec: ModelSpec) -> dict[str, np.ndarray]:
    """The token for masked patches, as it starts."""
    return {_MASK: np.zeros((1, spec.towers[IMAGE].width), np.float32)}


def _family(kind: str) -> Family:
    registers = kind == "dinov2_with_registers"
    return Family(
        model_type=kind, architecture=_CLASS[kind], model_config=model_config,
        table=functools.partial(table, kind=kind), to_config=functools.partial(to_config, kind=kind),
        fits=lambda s: is_image_tower(s) and gated(s) and bool(s.towers[IMAGE].embed.registers) == registers,
        constants=_constants, any_size=True, image_processor="BitImageProcessor",
    )  # fmt: skip


DINOV2, DINOV2_WITH_REGISTERS = _family("dinov2"), _family("dinov2_with_registers")
