"""EfficientNet (Tan and Le 2019): inverted bottlenecks with squeeze-and-excitation, scaled as a whole."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from xmodal import keys as key_tools
from xmodal.models.conv import ConvNorm
from xmodal.models.embedder import EmbedSpec
from xmodal.models.init import Draws, Scheme, he_out
from xmodal.models.layers import ACTIVATIONS, Linear
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.tokens import Tokens, grid_tokens
from xmodal.models.trunk import REMAT

# Table 1 of the paper: kernel size, stride, expansion, channels, blocks of each stage.
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EfficientNetSpec(EmbedSpec):
    """Images to a grid of tokens; a tower puts no trunk behind it.

    Attributes:
      image_size: pixels, a side or (height, width); 0 takes the data's size.
      width_factor: multiplies all channels, which are then rounded to multiples of `divisor`.
      depth_factor: multiplies the blocks of a stage, rounded up.
      divisor: of the channels.
      stem: channels of the first convolution, before scaling.
      stages: (kernel size, stride, expansion, channels, blocks) of each stage, before scaling; the stride is that of
        its first block.
      top: channels of the convolution after the last stage, before scaling; 0 has none (ALIGN).
      squeeze: width of the squeeze, as a share of the channels that come into the block.
      act: activation.
      norm_eps: of all BatchNorms.
      norm_momentum: share of the running statistics that a step keeps.
      drop_connect: stochastic depth that the last block would be followed by, rising linearly from 0.
      square_padding: numbers of blocks, among all, whose strided convolution pads alike on all sides, as is right for
        grids of odd size; the others pad one less above and to the left. Published models list those of the size that
        they were trained at.
      scan: run the equal blocks of a stage as one `lax.scan` (compile time and memory) or unrolled.
      remat: what the backward pass recomputes of every block: nothing, everything, or all but matrix products.
      input: name of the array in the batch, [batch, height, width, 3].
    """

    takes: ClassVar = "pixels"
    rank: ClassVar = 4

    type: Literal["efficientnet"] = "efficientnet"
    image_size: int | tuple[int, int] = dataclasses.field(default=0, metadata=SHAPES)
    width_factor: float = 1.0
    depth_factor: float = 1.0
    divisor: int = 8
    stem: int = 32
    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    top: int = 1280
    squeeze: float = 0.25
    act: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    norm_eps: float = 1e-3
    norm_momentum: float = dataclasses.field(default=0.99, metadata=TRAINING)
    drop_connect: float = dataclasses.field(default=0.2, metadata=TRAINING)
    square_padding: tuple[int, ...] = ()
    scan: bool = dataclasses.field(default=True, metadata=TRAINING)
    remat: Literal["none", "full", "dots"] = dataclasses.field(default="none", metadata=TRAINING)
    input: str = "image"

    def __post_init__(self):
        if strides := {stage[1] for stage in self.stages} - {1, 2}:
            raise ValueError(f"stages {self.stages}: a stride of {min(strides)}, expected 1 or 2")

    def filters(self, channels: int) -> int:
        """Scaled channels: the nearest multiple of the divisor that is no more than 10 % too few."""
        wanted = channels * self.width_factor
        rounded = max(self.divisor, int(wanted + self.divisor / 2) // self.divisor * self.divisor)
        return rounded + self.divisor if rounded < 0.9 * wanted else rounded

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return EfficientNet(self, width, scheme, dtype, draw)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Scaled blocks of each stage."""
        return tuple(math.ceil(self.depth_factor * stage[4]) for stage in self.stages)

    @property
    def width(self) -> int:
        """Channels that come out."""
        return self.filters(self.top or self.stages[-1][3])

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (down, across)."""
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        least = 2 ** (1 + sum(stage[1] == 2 for stage in self.stages))
        if any(s < least for s in size):
            raise ValueError(f"image size {size} is less than the {least} pixels that become one token")
        size, number = [s // 2 for s in size], 0
        for stage, blocks in zip(self.stages, self.blocks):
            up = stage[1] - 1 if number in self.square_padding else 0
            size, number = [(s + up) // stage[1] for s in size], number + blocks
        return tuple(size)

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.grid[0] * self.grid[1]


class EfficientNet(nnx.Module):
    """See `EfficientNetSpec`; [batch, height, width, 3] -> (Tokens [batch, down * across, width], moments)."""

    def __init__(self, spec: EfficientNetSpec, width: int, scheme: Scheme, dtype, draw: Draws):
        del scheme  # convolutions start as published
        if width != spec.width:
            raise ValueError(f"this EfficientNet gives {spec.width} channels and needs a trunk as wide, not {width}")
        self.spec, self.dtype = spec, dtype
        inputs = spec.filters(spec.stem)
        self.stem = ConvNorm(3, inputs, 3, stride=2, padding=((0, 1), (0, 1)), draw=draw, **_common(spec))
        self.stages, number = nnx.Dict(), 0
        for i, (stage, blocks) in enumerate(zip(spec.stages, spec.blocks)):
            self.stages[str(i)] = Stage(spec, stage, inputs, number, blocks, draw)
            inputs, number = spec.filters(stage[3]), number + blocks
        self.top = ConvNorm(inputs, width, 1, draw=draw, **_common(spec)) if spec.top else None

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        images, spec, train = batch[self.spec.input].astype(self.dtype), self.spec, keys is not None
        size = spec.image_size if isinstance(spec.image_size, tuple) else (spec.image_size,) * 2
        if images.shape[1:3] != size:
            raise ValueError(f"the model expects {size} pixels, got images {images.shape}")
        moments = {}
        x, moments["stem"] = self.stem(images, train)
        moments["stages"] = {}
        for name, stage in self.stages.items():
            with jax.named_scope(f"stage_{name}"):
                x, moments["stages"][name] = stage(x, train, key_tools.fold(keys, f"stage {name}"))
        if self.top is not None:
            x, moments["top"] = self.top(x, train)
        return grid_tokens(x, spec.input), moments


class Stage(nnx.Module):
    """A block that may change width and size, and equal ones after it."""

    def __init__(self, spec: EfficientNetSpec, stage: tuple, inputs: int, number: int, blocks: int, draw: Draws):
        self.spec, self.repeats = spec, blocks - 1
        size, stride, expansion, channels, _ = stage
        width = spec.filters(channels)
        small = size // 2 - (stride == 2 and number not in spec.square_padding)
        self.first = Block(spec, inputs, width, size, stride, (small, size // 2), expansion, draw)
        build = lambda own: Block(spec, width, width, size, 1, (size // 2, size // 2), expansion, own)
        self.rest = draw.alike(build, self.repeats) if self.repeats else None
        rate = lambda i: spec.drop_connect * i / sum(spec.blocks)
        self.rates = tuple(rate(number + 1 + i) for i in range(self.repeats))

    def __call__(self, x: jax.Array, train: bool, keys) -> tuple[jax.Array, dict]:
        remat = lambda f, scan: (
            f if self.spec.remat == "none" else jax.checkpoint(f, policy=REMAT[self.spec.remat], prevent_cse=not scan)
        )
        x, first = remat(lambda x, block: block(x, train), False)(x, self.first)
        if self.rest is None:
            return x, {"first": first}

        def body(x, repetition):
            block, rate, number = repetition
            y, moments = block(x, train)
            return x + key_tools.dropout(y, rate, key_tools.fold(keys, number), (1, 1, 1)), moments

        body = remat(body, self.spec.scan)
        repetitions = (self.rest, jnp.asarray(self.rates), jnp.arange(self.repeats))
        if self.spec.scan:
            x, rest = jax.lax.scan(body, x, repetitions)
            return x, {"first": first, "rest": rest}
        rest = []
        for i in range(self.repeats):
            x, moments = body(x, jax.tree.map(lambda a: a[i], repetitions))  # noqa: B023 (used at once)
            rest.append(moments)
        return x, {"first": first, "rest": jax.tree.map(lambda *a: jnp.stack(a), *rest)}


class Block(nnx.Module):
    """MBConv (Sandler et al. 2018) with squeeze-and-excitation (Hu et al. 2018), without its residual connection."""

    def __init__(
        self, spec: EfficientNetSpec, inputs: int, outputs: int, size: int, stride: int, padding: tuple[int, int],
        expansion: int, draw: Draws,
    ):  # fmt: skip
        self.act, inner = spec.act, inputs * expansion
        squeezed = max(1, int(inputs * spec.squeeze))
        common = dict(draw=draw, **_common(spec))
        self.expand = ConvNorm(inputs, inner, 1, **common) if expansion != 1 else None
        own = dict(stride=stride, padding=(padding, padding), groups=inner)
        own["kernel_init"] = normal(math.sqrt(2.0) / size)  # He's, for one output a filter
        self.depthwise = ConvNorm(inner, inner, size, **own, **common)
        self.squeeze = Linear(inner, squeezed, draw=draw, kernel_init=he_out)
        self.excite = Linear(squeezed, inner, draw=draw, kernel_init=he_out)
        self.project = ConvNorm(inner, outputs, 1, **common | dict(act=""))

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Mapping]:
        """Returns (what the block makes of x, moments)."""
        moments = {}
        if self.expand is not None:
            x, moments["expand"] = self.expand(x, train)
        x, moments["depthwise"] = self.depthwise(x, train)
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(x.dtype)
        x = x * jax.nn.sigmoid(self.excite(ACTIVATIONS[self.act](self.squeeze(mean))))
        x, moments["project"] = self.project(x, train)
        return x, moments


def _common(spec: EfficientNetSpec) -> dict:
    return dict(act=spec.act, eps=spec.norm_eps, momentum=spec.norm_momentum)
