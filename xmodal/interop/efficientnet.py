"""EfficientNet: Hugging Face's `EfficientNetModel` and `EfficientNetForImageClassification`."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.config import ConfigError
from xmodal.interop.encoders import IMAGE, REFERENCE_ACTIVATIONS, activation
from xmodal.interop.networks import check_network, is_network, only_tower
from xmodal.interop.resnet import conv_norm
from xmodal.interop.settings import Settings, architecture, require, section
from xmodal.interop.tables import Entry, Family, InteropError, counters, linear, pointwise
from xmodal.interop.vit import label_settings, labels
from xmodal.models import presets
from xmodal.models.efficientnet import STAGES, EfficientNetSpec
from xmodal.models.model import ModelSpec
from xmodal.models.options import training
from xmodal.models.tower import TowerSpec

_STEM, _TOP = 32, 1280  # channels that the reference fixes, before scaling
_kernels, _strides, _expansions, _channels, _blocks = zip(*STAGES)
# With the defaults of the reference's configuration class. `dropout_rate` is that of a classifier in training.
_READ = dict(image_size=600, width_coefficient=2.0, depth_coefficient=3.1, depth_divisor=8, kernel_sizes=_kernels,
                 out_channels=_channels, depthwise_padding=(), strides=_strides, num_block_repeats=_blocks,
                 expand_ratios=_expansions, squeeze_expansion_ratio=0.25, hidden_act="swish", batch_norm_eps=1e-3,
                 batch_norm_momentum=0.99, drop_connect_rate=0.2)  # fmt: skip
SETTINGS = Settings(
    read=_READ | dict(in_channels=()), fixed=dict(num_channels=3, pooling_type="mean"),
    idle=("dropout_rate", "hidden_dim", "num_hidden_layers"),
)  # fmt: skip
_BARE, _CLASSIFIER = "EfficientNetModel", "EfficientNetForImageClassification"
FREE = ("image_size", "width_factor", "depth_factor", "divisor", "stages", "squeeze", "act", "norm_eps",
        "square_padding", "input", *training(EfficientNetSpec))  # fmt: skip


# ---------------------------------------------------------------------------------------------- settings


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of an `EfficientNetConfig`."""
    architecture(config, _BARE, _CLASSIFIER)
    tower = image_tower(section(config, "", SETTINGS), top=_TOP)
    require(config, dict(hidden_dim=tower["trunk"]["width"]))
    names = labels(config, _CLASSIFIER)
    return presets.dual_tower(**{IMAGE: presets.classifier(tower, len(names)) if names else tower})


def image_tower(config: Mapping[str, Any], top: int) -> dict:
    """Returns the tower of a complete `EfficientNetConfig`, or with `top=0` that of an `AlignVisionConfig`.

    The reference hands its `batch_norm_momentum` to a library that counts the share that is replaced; it is the share
    that is kept, as in what it was converted from.
    """
    inputs = (_STEM, *config["out_channels"][:-1])
    require(dict(in_channels=config["in_channels"] or inputs), dict(in_channels=inputs))
    each = ("kernel_sizes", "strides", "expand_ratios", "out_channels", "num_block_repeats")
    try:
        return presets.efficientnet_tower(
            float(config["width_coefficient"]), float(config["depth_coefficient"]), divisor=config["depth_divisor"],
            stages=tuple(zip(*(config[key] for key in each), strict=True)), top=top,
            squeeze=float(config["squeeze_expansion_ratio"]), act=activation(config["hidden_act"]),
            norm_eps=config["batch_norm_eps"], norm_momentum=config["batch_norm_momentum"],
            drop_connect=float(config["drop_connect_rate"]), square_padding=config["depthwise_padding"],
            image_size=config["image_size"],
        )  # fmt: skip
    except ConfigError:
        raise
    except ValueError as error:
        raise InteropError(f"{', '.join(each)} are not of the same stages: {error}") from None


def vision_config(embed: EfficientNetSpec) -> dict:
    """The settings of a tower in the reference's words: the way back of `image_tower`."""
    kernels, strides, expansions, channels, blocks = (list(column) for column in zip(*embed.stages))
    act = "swish" if embed.act == "silu" else REFERENCE_ACTIVATIONS[embed.act]
    return dict(
        num_channels=3, image_size=embed.image_size, width_coefficient=embed.width_factor,
        depth_coefficient=embed.depth_factor, depth_divisor=embed.divisor, kernel_sizes=kernels,
        in_channels=[_STEM, *channels[:-1]], out_channels=channels, depthwise_padding=list(embed.square_padding),
        strides=strides, num_block_repeats=blocks, expand_ratios=expansions, squeeze_expansion_ratio=embed.squeeze,
        hidden_act=act, hidden_dim=embed.filters(_TOP), pooling_type="mean", batch_norm_eps=embed.norm_eps,
        batch_norm_momentum=embed.norm_momentum, drop_connect_rate=embed.drop_connect,
    )  # fmt: skip


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    tower = _tower(spec)
    kind = _CLASSIFIER if tower.embed_dim else _BARE
    return dict(architectures=[kind], model_type="efficientnet", **label_settings(tower.embed_dim),
                **vision_config(tower.embed))  # fmt: skip


# ---------------------------------------------------------------------------------------------- names


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the reference that `spec` describes, but for its counters."""
    tower = _tower(spec)
    prefix = "efficientnet." if tower.embed_dim else ""
    rows = [*network_entries(prefix, tower.embed)]
    if tower.embed_dim:
        rows += linear("classifier", f"{IMAGE}/projection", tower.width, tower.embed_dim)
    return rows


def network_entries(prefix: str, embed: EfficientNetSpec) -> Iterator[Entry]:
    """Every array of the network, whose names begin with `prefix`."""
    path, inputs = f"{IMAGE}/embed", embed.filters(embed.stem)
    stem = f"{prefix}embeddings"
    yield from conv_norm(f"{stem}.convolution", f"{stem}.batchnorm", f"{path}/stem", 3, inputs, 3)
    number = 0
    for i, (stage, blocks) in enumerate(zip(embed.stages, embed.blocks)):
        outputs = embed.filters(stage[3])
        for block in range(blocks):
            own, layer = (f"{path}/stages/{i}/rest", block - 1) if block else (f"{path}/stages/{i}/first", None)
            sizes = stage[0], stage[2], embed.squeeze, outputs if block else inputs, outputs
            yield from _block(f"{prefix}encoder.blocks.{number}", own, sizes, layer)
            number += 1
        inputs = outputs
    if embed.top:
        top = f"{prefix}encoder.top"
        yield from conv_norm(f"{top}_conv", f"{top}_bn", f"{path}/top", inputs, embed.width, 1)


def _block(name: str, path: str, sizes: tuple, layer: int | None) -> Iterator[Entry]:
    size, expansion, squeeze, inputs, outputs = sizes
    inner, squeezed = inputs * expansion, max(1, int(inputs * squeeze))
    if expansion != 1:
        own = f"{name}.expansion.expand"
        yield from conv_norm(f"{own}_conv", f"{own}_bn", f"{path}/expand", inputs, inner, 1, layer)
    own = f"{name}.depthwise_conv.depthwise"
    yield from conv_norm(f"{own}_conv", f"{own}_norm", f"{path}/depthwise", 1, inner, size, layer)
    for theirs, ours, width, out in (("reduce", "squeeze", inner, squeezed), ("expand", "excite", squeezed, inner)):
        yield from pointwise(f"{name}.squeeze_excite.{theirs}", f"{path}/{ours}", width, out, layer)
    own = f"{name}.projection.project"
    yield from conv_norm(f"{own}_conv", f"{own}_bn", f"{path}/project", inner, outputs, 1, layer)


# ---------------------------------------------------------------------------------------------- what is possible


def _tower(spec: ModelSpec) -> TowerSpec:
    tower = only_tower(spec, _BARE)
    check_network(tower, _BARE, EfficientNetSpec, FREE, fixed=dict(stem=_STEM, top=_TOP))
    return tower


EFFICIENTNET = Family(
    model_type="efficientnet", architecture=_BARE, model_config=model_config, table=table, to_config=to_config,
    fits=functools.partial(is_network, kind=EfficientNetSpec),
    labels=functools.partial(labels, classifier=_CLASSIFIER),
    constants=lambda spec: counters(table(spec)), any_size=True, image_processor="BitImageProcessor",
)  # fmt: skip
