"""open_clip's CLIP with a ResNet (its `ModifiedResNet`), in open_clip's files; texts are those of `open_clip.py`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.clip import CLIP
from xmodal.interop.encoders import IMAGE, TEXT, encoder_differences
from xmodal.interop.networks import network_differences
from xmodal.interop.open_clip import mlp, settings, text_entries, text_settings
from xmodal.interop.open_clip_text import fixed_tower, text_tower
from xmodal.interop.resnet import FREE, blocks, conv_norm
from xmodal.interop.tables import Entry, Family, counters, fail, linear
from xmodal.models import presets
from xmodal.models.embed import TokenSpec
from xmodal.models.model import ModelSpec
from xmodal.models.resnet import ResNetSpec
from xmodal.models.tower import TowerSpec

# Settings that are understood, with open_clip's defaults; a ResNet has no patches, whatever a file says.
_VISION = dict(layers=(), width=64, head_width=64, image_size=224, patch_size=None)
_STAGES, _STRIDE = 4, 32


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of the `model_cfg` of an open_clip_config.json.

    Raises:
      InteropError: it uses what is not known here; all of that is listed.
    """
    vision, words = settings(config, _VISION)
    depths, stem = tuple(vision["layers"]), vision["width"]
    embed = dict(style="clip", image_size=vision["image_size"], depths=depths, widths=_widths(stem), stem_width=stem)
    image = presets.resnet_tower(embed, init="clip", pool="attention", embed_dim=config["embed_dim"])
    image = presets.with_head(image, "pooled", pool_heads=image["trunk"]["width"] // vision["head_width"])
    return presets.dual_tower(image=image, text=text_tower(words, config["embed_dim"], **mlp(config, words)))


def _widths(stem: int) -> tuple[int, ...]:
    return tuple(4 * stem * 2**i for i in range(_STAGES))


def _towers(spec: ModelSpec) -> tuple[TowerSpec, TowerSpec]:
    """Image and text tower, if open_clip has them; else an InteropError says why not."""
    image, text = spec.towers[IMAGE], spec.towers[TEXT]
    own = dict(pool="attention", pool_heads=image.pooled.pool_heads if image.pooled else 0, projection_bias=True)
    problems = network_differences(image, ResNetSpec, FREE, dict(style="clip"), **own)
    if not problems:
        embed, side = image.embed, image.embed.image_size
        if embed.widths != (wanted := _widths(embed.stem_width)):
            problems.append(f"{IMAGE}/embed/widths: is {embed.widths}, needs {wanted}")
        if not isinstance(side, int) or embed.grid != (side // _STRIDE,) * 2:
            problems.append(f"{IMAGE}/embed/image_size: is {side}, needs a square of a multiple of {_STRIDE} pixels")
        if not image.embed_dim:
            problems.append(f"{IMAGE}/heads/pooled/embed_dim: is 0, needs the width of the shared space")
    fail("open_clip has no such model", problems + encoder_differences(text, TEXT, TokenSpec, fixed_tower(text)))
    return image, text


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the open_clip model that `spec` describes, but for its counters."""
    image, text = _towers(spec)
    embed, width, own, pool = image.embed, image.width, f"{IMAGE}/embed", f"{IMAGE}/pool"
    rows, half = [*text_entries(text)], embed.stem_width // 2
    for i, (inputs, outputs) in enumerate(((3, half), (half, half), (half, embed.stem_width))):
        rows += conv_norm(f"visual.conv{i + 1}", f"visual.bn{i + 1}", f"{own}/stem/{i}", inputs, outputs, 3)
    for (stage, block), name, path, layer, sizes in blocks(embed):
        there = f"visual.layer{stage + 1}.{block}"
        shortcut = (f"{there}.downsample.0", f"{there}.downsample.1")
        names = shortcut if name == "shortcut" else (f"{there}.{name}", f"{there}.bn{name[-1]}")
        rows += conv_norm(*names, f"{own}/{path}", *sizes, layer)
    positions = (embed.tokens + 1, width)
    rows.append(Entry("visual.attnpool.positional_embedding", f"{pool}/position", positions))
    for name in ("query", "key", "value"):
        rows += linear(f"visual.attnpool.{name[0]}_proj", f"{pool}/{name}", width, width)
    return [*rows, *linear("visual.attnpool.c_proj", f"{IMAGE}/projection", width, image.embed_dim)]


def to_config(spec: ModelSpec) -> dict:
    """Returns the `model_cfg` of a model that `table` accepts."""
    image, text = _towers(spec)
    vision = dict(
        image_size=image.embed.image_size, layers=list(image.embed.depths), width=image.embed.stem_width,
        head_width=image.width // image.pooled.pool_heads, patch_size=None,
    )  # fmt: skip
    quick = text.trunk.pattern[0][1].act == "quick_gelu"
    return dict(embed_dim=image.embed_dim, quick_gelu=quick, vision_cfg=vision, text_cfg=text_settings(text))


def _fits(spec: ModelSpec) -> bool:
    return {IMAGE, TEXT} <= spec.towers.keys() and isinstance(spec.towers[IMAGE].embed, ResNetSpec)


RESNET = Family(
    model_type="open_clip", architecture="open_clip.CLIP", model_config=model_config, table=table, to_config=to_config,
    fits=_fits, constants=lambda spec: counters(table(spec)), objective=CLIP.objective,
    ignored=frozenset({"attn_mask"}),
)  # fmt: skip
