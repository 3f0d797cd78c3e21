"""Batch normalisation (Ioffe and Szegedy 2015) as pure functions: running statistics are data, never changed in place.

The running statistics of a model are a part of its parameter tree, `statistics/<tower>/<path of the norm>/{mean,var}`,
so that evaluators, averaged weights, checkpoints and converters take them along. The optimizer never touches them.
In training a norm uses the statistics of its batch, which are those of all devices, and returns them as `Moments`
beside its output; the training step puts them into the tree with `updated`, once a step. A norm whose scale and bias
are both frozen (`optimizer.rules`) uses its running statistics in training, too, and they stay as they are.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, ones

STATISTICS = "statistics"  # where the running statistics are in the parameter tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """What one BatchNorm saw of one batch, channel by channel.

    Attributes:
      mean: float32 [channels]; norms that are stacked for `lax.scan` have leading axes.
      var: float32, same shape: the mean of the squared distances from `mean`.
      count: static, values that each of them is a mean of.
      momentum: static, of the norm's running statistics.
    """

    mean: jax.Array
    var: jax.Array
    count: int = dataclasses.field(metadata={"static": True})
    momentum: float = dataclasses.field(metadata={"static": True})


class BatchNorm(nnx.Module):
    """Normalises each channel, the last axis, over all others; always in float32, with the result in the type of x."""

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.9, scale_init: Initializer = ones):
        """`momentum` is the share of the old running statistics that a step keeps (PyTorch counts what it replaces)."""
        self.eps, self.momentum = eps, momentum
        self.frozen = False  # set by `Functional.bind`
        self.scale = nnx.Param(scale_init(None, (width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Moments | None]:
        """Returns (the normalised x, moments of this batch); None where the running statistics are used.

        Args:
          x: [batch, ..., channels].
          train: use the statistics of this batch.
        """
        running = jax.lax.stop_gradient(self.mean[...]), jax.lax.stop_gradient(self.var[...])
        x32, moments = x.astype(jnp.float32), None
        if train and not self.frozen:
            mean, var = _moments(x32, running[0])
            count = x.size // x.shape[-1]
            moments = Moments(*jax.lax.stop_gradient((mean, var)), count=count, momentum=self.momentum)
        else:
            mean, var = running
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return ((x32 - mean) * factor + self.bias[...]).astype(x.dtype), moments


def _moments(x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the last axis in one pass; distances from a value `near` the mean keep all digits."""
    axes, distance = tuple(range(x.ndim - 1)), x - near
    mean, square = jnp.mean(distance, axes), jnp.mean(jnp.square(distance), axes)
    return near + mean, jnp.maximum(square - jnp.square(mean), 0.0)


# ---------------------------------------------------------------------------------------------- trees of moments
# The tree has the layout of the statistics, with `Moments` (or None) in the place of {"mean", "var"}.


def pooled_parts(moments: Mapping) -> dict:
    """Moments of a batch from those of its equal parts, which lie along the leading axis of each array."""

    def join(m: Moments) -> Moments:
        parts = m.mean.shape[0]
        return _joined(m, m.mean, m.var, np.full(parts, m.count))

    return jax.tree.map(join, moments, is_leaf=_is_moments)


def pooled(batches: Sequence[Mapping]) -> dict:
    """Moments of several batches together, such as the views of one."""

    def join(*all_moments: Moments) -> Moments:
        mean, var = (jnp.stack([getattr(m, name) for m in all_moments]) for name in ("mean", "var"))
        return _joined(all_moments[0], mean, var, np.array([m.count for m in all_moments]))

    return batches[0] if len(batches) == 1 else jax.tree.map(join, *batches, is_leaf=_is_moments)


def _joined(like: Moments, means: jax.Array, variances: jax.Array, counts: np.ndarray) -> Moments:
    """Mean of means; variances within the parts, and of their means."""
    mean_of = lambda a: jnp.tensordot((counts / counts.sum()).astype(np.float32), a, axes=1)
    mean = mean_of(means)
    var = mean_of(variances + jnp.square(means - mean))
    return dataclasses.replace(like, mean=mean, var=var, count=int(counts.sum()))


def updated(running: Mapping, moments: Mapping | Moments | None) -> Mapping:
    """Running statistics after a step: momentum * running + (1 - momentum) * batch, with the unbiased variance.

    Args:
      running: a tree of statistics, `params["statistics"]`.
      moments: what the norms saw; those that are missing or None keep what they have.
    """
    if moments is None:
        return running
    if not isinstance(moments, Moments):
        return {name: updated(own, moments.get(name)) for name, own in running.items()}
    keep, unbiased = moments.momentum, moments.count / max(moments.count - 1, 1)
    return {
        "mean": keep * running["mean"] + (1.0 - keep) * moments.mean,
        "var": keep * running["var"] + (1.0 - keep) * unbiased * moments.var,
    }


def _is_moments(x) -> bool:
    return isinstance(x, Moments)
