"""ResNet: Hugging Face's `ResNetModel` and `ResNetForImageClassification`."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.encoders import IMAGE
from xmodal.interop.networks import check_network, is_network, only_tower
from xmodal.interop.settings import Settings, architecture, section
from xmodal.interop.tables import Entry, Family, batch_norm, convolution, counters, linear
from xmodal.interop.vit import label_settings, labels
from xmodal.models import presets
from xmodal.models.model import ModelSpec
from xmodal.models.options import training
from xmodal.models.resnet import BOTTLENECK, ResNetSpec
from xmodal.models.tower import TowerSpec

_MODEL, _CLASSIFIER = "ResNetModel", "ResNetForImageClassification"
# With the defaults of the reference's configuration class.
_READ = dict(embedding_size=64, hidden_sizes=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), layer_type="bottleneck",
             downsample_in_bottleneck=False)  # fmt: skip
_FIXED = dict(num_channels=3, hidden_act="relu", downsample_in_first_stage=False)
BACKBONE = ("out_features", "out_indices", "stage_names")  # what a backbone gives: idle here
_SETTINGS = Settings(read=_READ, fixed=_FIXED, idle=BACKBONE)
PIXELS = 224  # a config.json does not say how large the pictures are: their processor does, or else this
FREE = ("image_size", "depths", "widths", "stem_width", "input", *training(ResNetSpec))


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `ResNetConfig`."""
    architecture(config, _MODEL, _CLASSIFIER)
    read = section(config, "", _SETTINGS)
    embed = dict(
        image_size=PIXELS, depths=read["depths"], widths=read["hidden_sizes"], stem_width=read["embedding_size"],
        block=read["layer_type"], style="v1" if read["downsample_in_bottleneck"] else "v1.5",
    )  # fmt: skip
    tower = presets.resnet_tower(embed, init="resnet")
    names = labels(config, _CLASSIFIER)
    return presets.dual_tower(**{IMAGE: presets.classifier(tower, len(names)) if names else tower})


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the reference that `spec` describes, but for its counters."""
    tower = _tower(spec)
    prefix, own = "resnet." if tower.embed_dim else "", f"{IMAGE}/embed"
    rows = [*_layer(f"{prefix}embedder.embedder", f"{own}/stem/0", 3, tower.embed.stem_width, 7)]
    for where, name, path, layer, sizes in blocks(tower.embed):
        there = f"{prefix}encoder.stages.{where[0]}.layers.{where[1]}"
        theirs = "shortcut" if name == "shortcut" else f"layer.{int(name[-1]) - 1}"
        rows += _layer(f"{there}.{theirs}", f"{own}/{path}", *sizes, layer)
    if tower.embed_dim:
        rows += linear("classifier.1", f"{IMAGE}/projection", tower.width, tower.embed_dim)
    return rows


def _layer(name: str, path: str, inputs: int, outputs: int, size: int, layer: int | None = None) -> Iterator[Entry]:
    yield from conv_norm(f"{name}.convolution", f"{name}.normalization", path, inputs, outputs, size, layer)


def conv_norm(
    conv: str, norm: str, path: str, inputs: int, outputs: int, size: int, layer: int | None = None
) -> Iterator[Entry]:
    """A convolution without bias and its BatchNorm, the `ConvNorm` at `path`."""
    yield from convolution(conv, f"{path}/conv", inputs, outputs, size, bias=False, layer=layer)
    yield from batch_norm(norm, f"{path}/norm", outputs, layer)


def blocks(embed: ResNetSpec) -> Iterator[tuple[tuple[int, int], str, str, int | None, tuple[int, int, int]]]:
    """Every convolution of the stages: ((stage, block), name, path, index in a stack, (inputs, outputs, size))."""
    before = embed.stem_width
    for stage, (depth, outputs) in enumerate(zip(embed.depths, embed.widths)):
        for block in range(depth):
            inner = outputs // BOTTLENECK
            plan = {
                "basic": dict(conv1=(before, outputs, 3), conv2=(outputs, outputs, 3)),
                "bottleneck": dict(conv1=(before, inner, 1), conv2=(inner, inner, 3), conv3=(inner, outputs, 1)),
            }[embed.block]
            if block == 0 and (stage > 0 or before != outputs):
                plan["shortcut"] = (before, outputs, 1)
            where, layer = (f"stages/{stage}/layers", block - 1) if block else (f"stages/{stage}/first", None)
            for name, sizes in plan.items():
                yield (stage, block), name, f"{where}/{name}", layer, sizes
            before = outputs


def _tower(spec: ModelSpec) -> TowerSpec:
    tower = only_tower(spec, _MODEL)
    own = dict(block=tower.embed.block, style="v1" if tower.embed.style == "v1" else "v1.5")
    check_network(tower, _CLASSIFIER if tower.embed_dim else _MODEL, ResNetSpec, FREE, fixed=own)
    return tower


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    tower = _tower(spec)
    embed = tower.embed
    return dict(
        architectures=[_CLASSIFIER if tower.embed_dim else _MODEL], model_type="resnet",
        **label_settings(tower.embed_dim), **_FIXED, embedding_size=embed.stem_width, hidden_sizes=list(embed.widths),
        depths=list(embed.depths), layer_type=embed.block, downsample_in_bottleneck=embed.style == "v1",
    )  # fmt: skip


RESNET = Family(
    model_type="resnet", architecture=_MODEL, model_config=model_config, table=table, to_config=to_config,
    fits=functools.partial(is_network, kind=ResNetSpec), labels=functools.partial(labels, classifier=_CLASSIFIER),
    constants=lambda spec: counters(table(spec)), any_size=True, image_processor="BitImageProcessor",
)  # fmt: skip
