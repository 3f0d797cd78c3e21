"""ConvNeXt (Liu et al. 2022): a convolutional image embedder with LayerNorms, built from transformers' habits."""

import dataclasses
import itertools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models import init
from xmodal.models.conv import Conv
from xmodal.models.embedder import EmbedSpec
from xmodal.models.layers import ACTIVATIONS, Linear, Norm
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.tokens import Tokens, grid_tokens
from xmodal.models.trunk import REMAT


@dataclasses.dataclass(frozen=True)
class ConvNextSpec(EmbedSpec):
    """Images to a grid of tokens as wide as the last stage; a tower puts no trunk behind it.

    Attributes:
      image_size: pixels, a side or (height, width); 0 takes the data's size. What patches and strides do not fill at
        the lower and right edge is cut.
      patch_size: pixels of the patches that the first stage works on.
      widths: channels of the stages; each but the first begins with a map of 2 x 2 tokens to one.
      depths: blocks of the stages.
      act: activation of the blocks.
      norm_eps: of all norms.
      layer_scale: start of the vectors that multiply what a block adds; 0 has none.
      drop_path: stochastic depth of the last block, rising linearly from 0.
      scan: run the blocks of a stage as one `lax.scan` (compile time and memory) or unrolled.
      remat: what the backward pass recomputes of every block: nothing, everything, or all but matrix products.
      input: name of the array in the batch, [batch, height, width, 3].
    """

    takes: ClassVar = "pixels"
    rank: ClassVar = 4

    type: Literal["convnext"] = "convnext"
    image_size: int | tuple[int, int] = dataclasses.field(default=0, metadata=SHAPES)
    patch_size: int = 4
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    act: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    norm_eps: float = 1e-6
    layer_scale: float = dataclasses.field(default=1e-6, metadata=SHAPES)
    drop_path: float = dataclasses.field(default=0.0, metadata=TRAINING)
    scan: bool = dataclasses.field(default=True, metadata=TRAINING)
    remat: Literal["none", "full", "dots"] = dataclasses.field(default="none", metadata=TRAINING)
    input: str = "image"

    def __post_init__(self):
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(f"widths {self.widths} and depths {self.depths} are not of the same stages")

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return ConvNext(self, width, scheme, dtype, draw)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (down, across)."""
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        stride = self.patch_size * 2 ** (len(self.widths) - 1)
        if any(s < stride for s in size):
            raise ValueError(f"image size {size} is less than the {stride} pixels that become one token")
        return size[0] // stride, size[1] // stride

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.grid[0] * self.grid[1]


class ConvNext(nnx.Module):
    """See `ConvNextSpec`; [batch, height, width, 3] -> Tokens [batch, down * across, width]."""

    def __init__(self, spec: ConvNextSpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        if width != spec.widths[-1]:
            raise ValueError(f"a ConvNeXt of widths {spec.widths} needs a trunk as wide as the last, not {width}")
        self.spec, self.dtype = spec, dtype
        size = spec.patch_size
        self.patches = Conv(
            3, spec.widths[0], size, stride=size, padding=0, bias=True, kernel_init=scheme.patch, draw=draw
        )
        self.norm = Norm(spec.widths[0], eps=spec.norm_eps)
        inputs = (0, *spec.widths)  # the first stage is not made smaller
        self.stages = nnx.Dict({str(i): Stage(spec, i, inputs[i], scheme, draw) for i in range(len(spec.widths))})

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        images, spec = batch[self.spec.input].astype(self.dtype), self.spec
        size = (spec.image_size,) * 2 if isinstance(spec.image_size, int) else spec.image_size
        if images.shape[1:3] != size:
            raise ValueError(f"the model expects {size} pixels, got images {images.shape}")
        rates = itertools.repeat(None)
        if spec.drop_path and keys is not None:
            ends = list(itertools.accumulate(spec.depths))
            rates = jnp.split(jnp.linspace(0.0, spec.drop_path, ends[-1]), ends[:-1])
        x = self.norm(self.patches(images))
        for (name, stage), rate in zip(self.stages.items(), rates):
            with jax.named_scope(f"stage_{name}"):
                x = stage(x, key_tools.fold(keys, f"stage {name}"), rate)
        return grid_tokens(x, spec.input), {}


class Stage(nnx.Module):
    """Blocks of one width, after the map that halves the grid."""

    def __init__(self, spec: ConvNextSpec, index: int, inputs: int, scheme: init.Scheme, draw: init.Draws):
        self.spec, width, self.depth = spec, spec.widths[index], spec.depths[index]
        self.norm = Norm(inputs, eps=spec.norm_eps) if inputs else None
        shrink = dict(stride=2, padding=0, bias=True, kernel_init=scheme.patch)
        self.shrink = Conv(inputs, width, 2, draw=draw, **shrink) if inputs else None
        self.layers = draw.alike(lambda own: Block(spec, width, scheme, own), self.depth)

    def __call__(self, x: jax.Array, keys, rates) -> jax.Array:
        """`rates` are those of stochastic depth, [blocks], or None."""
        if self.shrink is not None:
            x = self.shrink(self.norm(x))

        def body(x, repetition):
            block, rate, number = repetition
            return block(x, key_tools.fold(keys, number), rate), None

        if self.spec.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.spec.remat], prevent_cse=not self.spec.scan)
        repetitions = (self.layers, rates, jnp.arange(self.depth))
        if self.spec.scan:
            return jax.lax.scan(body, x, repetitions)[0]
        for i in range(self.depth):
            x, _ = body(x, jax.tree.map(lambda a: a[i], repetitions))  # noqa: B023 (used at once)
        return x


class Block(nnx.Module):
    """A depthwise convolution of 7 x 7, and the MLP of a transformer for every token (figure 4 of the paper)."""

    def __init__(self, spec: ConvNextSpec, width: int, scheme: init.Scheme, draw: init.Draws):
        self.act = spec.act
        self.depthwise = Conv(width, width, 7, groups=width, bias=True, kernel_init=scheme.patch, draw=draw)
        self.norm = Norm(width, eps=spec.norm_eps)
        self.fc1 = Linear(width, 4 * width, draw=draw, kernel_init=scheme.fc_in)
        self.fc2 = Linear(4 * width, width, draw=draw, kernel_init=scheme.fc_out)
        self.gate = nnx.Param(jnp.full((width,), spec.layer_scale, jnp.float32)) if spec.layer_scale else None

    def __call__(self, x: jax.Array, keys, rate) -> jax.Array:
        y = self.fc2(ACTIVATIONS[self.act](self.fc1(self.norm(self.depthwise(x)))))
        if self.gate is not None:
            y = y * self.gate[...].astype(y.dtype)
        return x + (y if rate is None else key_tools.dropout(y, rate, keys, (1, 1, 1)))
