"""Image-text matching: does a fused representation come from a pair that belongs together?"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import lecun_normal

from xmodal import keys as key_tools
from xmodal.objectives.base import Loss, Objective, View, belong, present, weighed

PAIRS = 3  # rows of a sample: the pair, the first input with a mined second one, and a mined first one with the second


@dataclasses.dataclass(frozen=True)
class MatchedPairs(View):
    """Makes three pairs of each sample, side by side: the true one, and two with a mined part.

    Attributes:
      provider: name of the provider of the mined parts, `<provider>.<entry>`.
      inputs: the two inputs of a pair.
    """

    provider: str = "negatives"
    inputs: tuple[str, str] = ("image", "text")
    rows: ClassVar[int] = PAIRS

    def __call__(self, batch, keys):
        """See `View`."""
        view = dict(batch)
        mine = [entry for entry in batch if f"{self.provider}.{entry}" in batch]
        for place, entries in enumerate(belong(mine, self.inputs).values()):
            for entry in entries:
                true, mined = batch[entry], batch[f"{self.provider}.{entry}"]
                parts = [true, true, true]
                parts[2 if place == 0 else 1] = mined
                view[entry] = jnp.stack(parts, axis=1).reshape(-1, *true.shape[1:])
        return view


@dataclasses.dataclass(frozen=True)
class Matching(Objective):
    """Image-text matching with mined negatives (ALBEF, Li et al. 2021, section 3.2; BLIP, Li et al. 2022, section 3.1).

    A fusion tower sees each pair, its negatives with either part replaced by that of another sample, and a linear layer
    over its pooled output says whether both belong together: binary cross-entropy, mean over the pairs.

    Attributes:
      tower: the fusion tower, whose `pooled` is classified.
      provider: name of the provider (type `mined_negatives`) in `config.providers`.
      pair: the two inputs of a pair.
    """

    tower: str = "fusion"
    provider: str = "negatives"
    pair: tuple[str, str] = ("image", "text")

    @property
    def view(self) -> View:
        """Three pairs of each sample."""
        return MatchedPairs(self.provider, self.pair)

    @property
    def needs(self) -> frozenset[str]:
        """The fused representation of each pair."""
        return frozenset({f"{self.tower}.pooled"})

    @property
    def asks(self) -> frozenset[str]:
        """The mined parts."""
        return frozenset(f"{self.provider}.{kind}" for kind in self.pair)

    def init(self, key=None, model_spec=None) -> dict:
        """The classifier."""
        width = model_spec.towers[self.tower].pooled_width
        kernel = lecun_normal()(key_tools.named(key, "matching"), (width, 2), jnp.float32)
        return {"head": {"kernel": kernel, "bias": jnp.zeros(2, jnp.float32)}}

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """One pair in three is true: the entropy of that."""
        return -(math.log(1 / PAIRS) + (PAIRS - 1) * math.log(1 - 1 / PAIRS)) / PAIRS

    def __call__(self, outputs, batch, params, mesh):
        """See `Objective`."""
        head, x = params["head"], outputs[f"{self.tower}.pooled"].astype(jnp.float32)
        logits = jnp.dot(x, head["kernel"], precision=jax.lax.Precision.HIGHEST) + head["bias"]
        logits = logits.reshape(-1, PAIRS, 2)
        labels = jnp.broadcast_to(jnp.arange(PAIRS) == 0, logits.shape[:2]).astype(jnp.int32)
        first, second = (batch[f"{self.provider}.{kind}_found"] for kind in self.pair)
        counts = present(jnp.stack([jnp.ones_like(first), second, first], axis=1).astype(jnp.float32), batch)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels) * counts
        count = jnp.sum(counts)
        right = jnp.sum((jnp.argmax(logits, axis=-1) == labels) * counts)
        return Loss(jnp.sum(weighed(nll, batch)), count, {"accuracy": right / jnp.maximum(count, 1.0)})
