"""What parameters start from: which distribution for each kind of matrix, exactly as published, and which key."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, normal, truncated_normal, variance_scaling, xavier_uniform, zeros

torch_conv = variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default: uniform in +-fan_in^-0.5
lecun = variance_scaling(1.0, "fan_in", "truncated_normal")  # Flax's default
he = variance_scaling(2.0, "fan_in", "truncated_normal")
he_out = variance_scaling(2.0, "fan_out", "normal")  # of convolutions before a ReLU (He et al. 2015)

_AHEAD = 16  # keys derived at a time: each derivation is a loop to compile


class Draws:
    """Draws the parameters of a model one after another, each with a key of its own.

    The keys are those that `flax.nnx.Rngs` would give. But that derives each by itself and counts them in an array:
    the initialisation of a small model then takes a quarter longer to compile, and its trace a fifth.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def __call__(self, initializer: Initializer, *shape: int) -> nnx.Param:
        """Returns a new parameter, float32 [*shape]."""
        return nnx.Param(initializer(self._next(), shape, jnp.float32))

    def alike(self, make: Callable[["Draws"], nnx.Module], count: int) -> nnx.Module | None:
        """Returns `count` modules that `make` builds, stacked: with one more axis, the first, of every parameter.

        Without any, None; as many keys are used up.
        """
        keys = jax.random.split(jax.random.fold_in(self._next(), 0), count)
        return nnx.vmap(lambda key: make(Draws(key)))(keys) if count else None

    def _next(self) -> jax.Array:
        place = self._count % _AHEAD
        if not place:
            self._keys = jax.vmap(lambda i: jax.random.fold_in(self._key, i))(self._count + jnp.arange(_AHEAD))
        self._count += 1
        return self._keys[place]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One initialiser per role in a transformer of a given width and depth."""

    attn_in: Initializer
    attn_out: Initializer
    fc_in: Initializer
    fc_out: Initializer
    fc_bias: Initializer
    patch: Initializer
    token: Initializer
    image_position: Initializer
    text_position: Initializer
    class_token: Initializer
    probe: Initializer
    projection: Initializer
    head: Initializer


def _clip(width: int, depth: int) -> Scheme:
    """CLIP (Radford et al. 2021), the published code's text tower.

    That code leaves the image trunk at its framework's defaults; here both trunks start from the published scheme.
    """
    residual = normal(width**-0.5 * (2 * max(depth, 1)) ** -0.5)
    scaled = normal(width**-0.5)
    return Scheme(
        attn_in=scaled, attn_out=residual, fc_in=normal((2 * width) ** -0.5), fc_out=residual, fc_bias=zeros,
        patch=torch_conv, token=normal(0.02), image_position=scaled, text_position=normal(0.01), class_token=scaled,
        probe=scaled, projection=scaled, head=normal(0.02),
    )  # fmt: skip


def _siglip(width: int, depth: int) -> Scheme:
    """SigLIP (Zhai et al. 2023), the initialisers of big_vision's `vit` and `text_transformer`."""
    del depth
    dense = xavier_uniform()
    position = normal(width**-0.5)
    return Scheme(
        attn_in=dense, attn_out=dense, fc_in=dense, fc_out=dense, fc_bias=normal(1e-6),
        patch=lecun, token=variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0),
        image_position=position, text_position=position, class_token=zeros, probe=dense, projection=lecun, head=lecun,
    )  # fmt: skip


def _bert(width: int, depth: int) -> Scheme:
    """BERT, ViT and their kin: everything from a normal of 0.02, cut at two deviations."""
    del width, depth
    small = truncated_normal(0.02)
    return Scheme(*(small,) * 4, fc_bias=zeros, **dict.fromkeys(
        ("patch", "token", "image_position", "text_position", "class_token", "probe", "projection", "head"), small
    ))  # fmt: skip


def _resnet(width: int, depth: int) -> Scheme:
    """ResNet: convolutions as He et al. 2015, the classifier from a normal of 0.01 (Goyal et al. 2017, section 5.1)."""
    return dataclasses.replace(_bert(width, depth), patch=he_out, projection=normal(0.01))


SCHEMES = {"clip": _clip, "siglip": _siglip, "bert": _bert, "resnet": _resnet}


def scheme(name: str, width: int, depth: int) -> Scheme:
    """Returns the scheme `name` for a trunk of this width and depth."""
    return SCHEMES[name](width, depth)


LOGIT_SCALE_CLIP = math.log(1 / 0.07)
LOGIT_SCALE_SIGLIP = math.log(10.0)
LOGIT_BIAS_SIGLIP = -10.0


def draw(initializer: Initializer, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws one float32 parameter."""
    return initializer(key, shape, jax.numpy.float32)
