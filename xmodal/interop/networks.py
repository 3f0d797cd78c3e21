"""What the converters of convolutional image towers share: one embedder that is a whole network, pooled to a mean."""

from collections.abc import Iterable, Mapping
from typing import Any

from xmodal.interop.encoders import FREE_TRUNK, IMAGE, fixed_heads
from xmodal.interop.tables import InteropError, differences, fail
from xmodal.models.model import ModelSpec
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec


def only_tower(spec: ModelSpec, reference: str) -> TowerSpec:
    """Returns the image tower, the only one; raises an InteropError for another model."""
    if list(spec.towers) != [IMAGE]:
        raise InteropError(f"{reference} has one tower, {IMAGE!r}; the model has {', '.join(spec.towers)}")
    return spec.towers[IMAGE]


def is_network(spec: ModelSpec, kind: type) -> bool:
    """Whether a spec is one image tower with such an embedder."""
    return list(spec.towers) == [IMAGE] and isinstance(spec.towers[IMAGE].embed, kind)


def network_differences(
    tower: TowerSpec, kind: type, free: Iterable[str], fixed: Mapping[str, Any], **rest
) -> list[str]:
    """Says in what an image tower is not such a network, as `differences` does.

    Args:
      tower: the tower.
      kind: class of the embedder's spec.
      free: fields of it that the reference can express, or that no reference has to.
      fixed: fields of it that the reference fixes; all others must have their defaults.
      **rest: what the reference fixes of the head `pooled` beside the mean and the bias of a projection.
    """
    if not isinstance(tower.embed, kind):
        return [f"{IMAGE}/embed: needs a {kind.__name__}, is {type(tower.embed).__name__}"]
    # Built from the class's defaults, so that an option that is added later is refused until a table knows it.
    embed = kind(**{name: getattr(tower.embed, name) for name in free} | dict(fixed))
    own = {name: getattr(tower.trunk, name) for name in FREE_TRUNK if name not in ("depth", "drop_path")}
    trunk = TrunkSpec(depth=0, pattern=(), final_norm=False, **own)
    fixed = dict(pool="mean") | (dict(projection_bias=True) if tower.embed_dim else {}) | rest
    heads = fixed_heads(tower, ("embed_dim", "pool_heads", "projection_bias"), **fixed)
    return differences(tower, TowerSpec(trunk=trunk, embed=embed, heads=heads), IMAGE)


def check_network(tower: TowerSpec, reference: str, kind: type, free: Iterable[str], **fixed) -> None:
    """Raises an InteropError for a tower that the reference does not have; arguments as for `network_differences`."""
    fail(f"{reference} has no such model", network_differences(tower, kind, free, **fixed))
