"""Residual convolutional towers: ResNet (He et al. 2015) and CLIP's variant of it (Radford et al. 2021, section 2.4).

The network is an embedder: it turns an image into one token for each place of its last feature map, and the trunk above
it is empty (depth 0). Pooling, projection and wiring are then those of any tower.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import ones, zeros

from xmodal.models.conv import ConvNorm, max_pool, mean_pool
from xmodal.models.embedder import EmbedSpec
from xmodal.models.init import Draws, Scheme
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.tokens import Tokens, grid_tokens

Remat = Literal["none", "full", "convolutions"]
_SAVED = ("conv_general_dilated", "dot_general")
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "convolutions": lambda primitive, *_, **__: primitive.name in _SAVED,
}
BOTTLENECK = 4  # outputs of a bottleneck for each of its inner channels


@dataclasses.dataclass(frozen=True)
class ResNetSpec(EmbedSpec):
    """Images to the places of a feature map.

    Attributes:
      image_size: pixels, a side or (height, width), of any value; 0 takes the data's size.
      depths: blocks of each stage. Every stage but the first halves both sides, and the stem quarters them.
      widths: outputs of each stage; the last is the tower's width.
      stem_width: outputs of the stem.
      block: two convolutions of 3 x 3 pixels, or a bottleneck: 1 x 1, 3 x 3 with a quarter of the channels, 1 x 1.
      style: where a bottleneck strides. "v1": in its first convolution (He et al.); "v1.5": in the second one; "clip":
        means of 2 x 2 pixels before the last one and in the shortcut, and a stem of three convolutions.
      norm_eps: added to the variance in BatchNorms.
      momentum: share of the running statistics that a step keeps; PyTorch calls the rest, 0.1, by that name.
      scan: run the blocks of a stage that are alike as one `lax.scan` (compile time) or unrolled (speed).
      remat: what the backward pass recomputes, in all stages or stage by stage: nothing, each block, or all of it but
        the convolutions (norms and activations cost memory and hardly any time).
      input: name of the array in the batch, [batch, height, width, 3].
    """

    takes: ClassVar = "pixels"
    rank: ClassVar = 4

    type: Literal["resnet"] = "resnet"
    image_size: int | tuple[int, int] = dataclasses.field(default=0, metadata=SHAPES)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    block: Literal["basic", "bottleneck"] = "bottleneck"
    style: Literal["v1", "v1.5", "clip"] = "v1.5"
    norm_eps: float = 1e-5
    momentum: float = dataclasses.field(default=0.9, metadata=TRAINING)
    scan: bool = dataclasses.field(default=False, metadata=TRAINING)
    remat: Remat | tuple[Remat, ...] = dataclasses.field(default="none", metadata=TRAINING)
    input: str = "image"

    def __post_init__(self):
        if not self.depths or min(self.depths) < 1 or len(self.depths) != len(self.widths):
            raise ValueError(f"depths {self.depths} and widths {self.widths} must have an entry for each stage")
        if self.block == "bottleneck" and any(c % BOTTLENECK for c in self.widths):
            raise ValueError(f"widths {self.widths} of bottlenecks must be multiples of {BOTTLENECK}")
        if self.block == "basic" and self.style == "clip":
            raise ValueError("style 'clip' has bottlenecks only")
        if isinstance(self.remat, tuple) and len(self.remat) != len(self.depths):
            raise ValueError(f"remat {self.remat} must be one word, or one for each of the {len(self.depths)} stages")

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return ResNetEmbed(self, width, scheme, dtype, draw)

    @property
    def grid(self) -> tuple[int, int]:
        """Places (down, across) of the last feature map."""
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return tuple(self._places(side) for side in size)

    def _places(self, pixels: int) -> int:
        """A strided convolution rounds up, a mean of 2 x 2 pixels down."""
        half = (lambda n: n // 2) if self.style == "clip" else (lambda n: -(-n // 2))
        n = half(-(-pixels // 2))
        for _ in self.depths[1:]:
            n = half(n)
        if n < 1:
            raise ValueError(f"image size {self.image_size} is too small for {len(self.depths)} stages")
        return n

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return math.prod(self.grid)


class Block(nnx.Module):
    """Convolutions around which the input passes unchanged, or through a 1 x 1 convolution where its shape changes."""

    def __init__(self, spec: ResNetSpec, inputs: int, outputs: int, stride: int, scheme: Scheme, draw: Draws):
        self.pool = stride if spec.style == "clip" else 1
        step = 1 if spec.style == "clip" else stride
        if spec.block == "basic":
            plan = ((outputs, 3, step), (outputs, 3, 1))
        else:
            inner = outputs // BOTTLENECK
            first, second = (step, 1) if spec.style == "v1" else (1, step)
            plan = ((inner, 1, first), (inner, 3, second), (outputs, 1, 1))
        norm = dict(eps=spec.norm_eps, momentum=spec.momentum, kernel_init=scheme.patch, draw=draw)
        self.names = tuple(f"conv{i}" for i in range(1, len(plan) + 1))
        before = inputs
        for name, (width, size, each) in zip(self.names, plan):
            last = name == self.names[-1]
            # The last scale starts at 0, so that every block starts as the identity (Goyal et al. 2017, section 5.1).
            own = dict(act="" if last else "relu", scale_init=zeros if last else ones)
            setattr(self, name, ConvNorm(before, width, size, stride=each, **own, **norm))
            before = width
        changes = stride > 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=step, act="", **norm) if changes else None

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        """[batch, height, width, inputs] -> [batch, height / stride, width / stride, outputs], and moments."""
        y, moments = x, {}
        for name in self.names:
            y = mean_pool(y, self.pool) if name == self.names[-1] else y
            y, moments[name] = getattr(self, name)(y, train)
        if self.shortcut is not None:
            x, moments["shortcut"] = self.shortcut(mean_pool(x, self.pool), train)
        return jax.nn.relu(x + y), moments


class Stage(nnx.Module):
    """Blocks of one width: `first` may change the shape, the others are alike and stacked in `layers`."""

    def __init__(self, spec: ResNetSpec, number: int, inputs: int, scheme: Scheme, draw: Draws):
        outputs, self.scan = spec.widths[number], spec.scan
        self.remat = spec.remat[number] if isinstance(spec.remat, tuple) else spec.remat
        self.first = Block(spec, inputs, outputs, 1 if number == 0 else 2, scheme, draw)
        self.more = spec.depths[number] - 1
        build = lambda own: Block(spec, outputs, outputs, 1, scheme, own)
        self.layers = draw.alike(build, self.more) if self.more else None

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        """Runs the blocks; returns the feature map and the moments."""
        body = lambda x, block: block(x, train)
        if self.remat != "none":
            body = jax.checkpoint(body, policy=_POLICIES[self.remat], prevent_cse=not self.scan)
        with jax.named_scope("first"):
            x, first = body(x, self.first)
        if not self.more:
            return x, {"first": first}
        with jax.named_scope("layers"):
            if self.scan:
                x, layers = jax.lax.scan(body, x, self.layers)
            else:
                each = []
                for i in range(self.more):
                    x, moments = body(x, jax.tree.map(lambda a: a[i], self.layers))  # noqa: B023 (used at once)
                    each.append(moments)
                layers = jax.tree.map(lambda *a: jnp.stack(a), *each)
        return x, {"first": first, "layers": layers}


class ResNetEmbed(nnx.Module):
    """See `ResNetSpec`; [batch, height, width, 3] -> Tokens [batch, places, width], row by row, and moments by path."""

    def __init__(self, spec: ResNetSpec, width: int, scheme: Scheme, dtype, draw: Draws):
        if width != spec.widths[-1]:
            raise ValueError(f"the last stage has {spec.widths[-1]} channels and the trunk is {width} wide")
        self.spec, self.dtype, stem = spec, dtype, spec.stem_width
        clip = spec.style == "clip"
        plan = ((stem // 2, 3, 2), (stem // 2, 3, 1), (stem, 3, 1)) if clip else ((stem, 7, 2),)
        inputs = (3, *(outputs for outputs, _, _ in plan))
        norm = dict(eps=spec.norm_eps, momentum=spec.momentum, kernel_init=scheme.patch, draw=draw)
        self.stem = nnx.Dict(
            {str(i): ConvNorm(inputs[i], outputs, size, stride=stride, **norm)
             for i, (outputs, size, stride) in enumerate(plan)}
        )  # fmt: skip
        inputs = (stem, *spec.widths)
        self.stages = nnx.Dict({str(i): Stage(spec, i, inputs[i], scheme, draw) for i in range(len(spec.depths))})

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        spec, x, train = self.spec, batch[self.spec.input].astype(self.dtype), keys is not None
        size = spec.image_size if isinstance(spec.image_size, tuple) else (spec.image_size,) * 2
        if x.shape[1:3] != size:
            raise ValueError(f"the model expects {spec.image_size} pixels, got images {x.shape}")
        moments = {"stem": {}, "stages": {}}
        with jax.named_scope("stem"):
            for i in sorted(self.stem):
                x, moments["stem"][i] = self.stem[i](x, train)
            x = mean_pool(x, 2) if spec.style == "clip" else max_pool(x, 3, 2)
        for i in range(len(spec.depths)):
            with jax.named_scope(f"stage_{i}"):
                x, moments["stages"][str(i)] = self.stages[str(i)](x, train)
        return grid_tokens(x, spec.input), moments
