"""ConvNeXt: Hugging Face's `ConvNextModel` and `ConvNextForImageClassification`."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.encoders import IMAGE, REFERENCE_ACTIVATIONS, activation
from xmodal.interop.networks import check_network, is_network, only_tower
from xmodal.interop.resnet import BACKBONE
from xmodal.interop.settings import Settings, architecture, require, section
from xmodal.interop.tables import Entry, Family, InteropError, convolution, linear, norm
from xmodal.interop.vit import label_settings, labels
from xmodal.models import presets
from xmodal.models.convnext import ConvNextSpec
from xmodal.models.model import ModelSpec
from xmodal.models.options import training
from xmodal.models.tower import TowerSpec

# With the defaults of the reference's configuration class.
_READ = dict(patch_size=4, hidden_sizes=(96, 192, 384, 768), depths=(3, 3, 9, 3), hidden_act="gelu",
             layer_norm_eps=1e-12, layer_scale_init_value=1e-6, drop_path_rate=0.0, image_size=224)  # fmt: skip
_SETTINGS = Settings(read=_READ, fixed=dict(num_channels=3), idle=(*BACKBONE, "num_stages"))
_BARE, _CLASSIFIER = "ConvNextModel", "ConvNextForImageClassification"
_FREE = ("image_size", "patch_size", "widths", "depths", "act", "layer_scale", "input", *training(ConvNextSpec))
_EPS = 1e-6  # of all norms but the last, whatever the configuration says


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `ConvNextConfig`."""
    architecture(config, _BARE, _CLASSIFIER)
    read = section(config, "", _SETTINGS)
    if not read["hidden_sizes"]:
        raise InteropError("config.json: hidden_sizes is empty; expected a width for each stage")
    require(config, dict(num_stages=len(read["depths"])))
    tower = presets.convnext_tower(
        read["depths"], read["hidden_sizes"], norm_eps=read["layer_norm_eps"], patch_size=read["patch_size"],
        image_size=read["image_size"], act=activation(read["hidden_act"]),
        layer_scale=float(read["layer_scale_init_value"]), drop_path=float(read["drop_path_rate"]),
    )  # fmt: skip
    names = labels(config, _CLASSIFIER)
    return presets.dual_tower(**{IMAGE: presets.classifier(tower, len(names)) if names else tower})


def _tower(spec: ModelSpec) -> TowerSpec:
    tower = only_tower(spec, _BARE)
    check_network(tower, _BARE, ConvNextSpec, _FREE, fixed=dict(norm_eps=_EPS), pool_norm=True)
    return tower


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `ConvNextModel` or `ConvNextForImageClassification` that `spec` describes."""
    tower = _tower(spec)
    prefix, embed, path = "convnext." if tower.embed_dim else "", tower.embed, f"{IMAGE}/embed"
    patches = f"{prefix}embeddings.patch_embeddings"
    rows = [*convolution(patches, f"{path}/patches", 3, embed.widths[0], embed.patch_size)]
    rows += norm(f"{prefix}embeddings.layernorm", f"{path}/norm", embed.widths[0])
    for i, width in enumerate(embed.widths):
        stage, own = f"{prefix}encoder.stages.{i}", f"{path}/stages/{i}"
        if i:
            rows += norm(f"{stage}.downsampling_layer.0", f"{own}/norm", embed.widths[i - 1])
            rows += convolution(f"{stage}.downsampling_layer.1", f"{own}/shrink", embed.widths[i - 1], width, 2)
        for j in range(embed.depths[i]):
            rows += _block(f"{stage}.layers.{j}", f"{own}/layers", width, j, bool(embed.layer_scale))
    rows += norm(f"{prefix}layernorm", f"{IMAGE}/pool_norm", tower.width)
    if tower.embed_dim:
        rows += linear("classifier", f"{IMAGE}/projection", tower.width, tower.embed_dim)
    return rows


def _block(name: str, path: str, width: int, layer: int, scaled: bool) -> Iterator[Entry]:
    yield from convolution(f"{name}.dwconv", f"{path}/depthwise", 1, width, 7, layer=layer)
    yield from norm(f"{name}.layernorm", f"{path}/norm", width, layer)
    yield from linear(f"{name}.pwconv1", f"{path}/fc1", width, 4 * width, layer=layer)
    yield from linear(f"{name}.pwconv2", f"{path}/fc2", 4 * width, width, layer=layer)
    if scaled:
        yield Entry(f"{name}.layer_scale_parameter", f"{path}/gate", (width,), layer=layer)


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    tower = _tower(spec)
    embed = tower.embed
    return dict(
        architectures=[_CLASSIFIER if tower.embed_dim else _BARE], model_type="convnext",
        **label_settings(tower.embed_dim), num_channels=3, patch_size=embed.patch_size, num_stages=len(embed.depths),
        hidden_sizes=list(embed.widths), depths=list(embed.depths), hidden_act=REFERENCE_ACTIVATIONS[embed.act],
        layer_norm_eps=tower.trunk.norm_eps, layer_scale_init_value=embed.layer_scale, drop_path_rate=embed.drop_path,
        image_size=embed.image_size,
    )  # fmt: skip


CONVNEXT = Family(
    model_type="convnext", architecture=_BARE, model_config=model_config, table=table, to_config=to_config,
    fits=functools.partial(is_network, kind=ConvNextSpec),
    labels=functools.partial(labels, classifier=_CLASSIFIER), any_size=True,
    image_processor="BitImageProcessor",
)  # fmt: skip
