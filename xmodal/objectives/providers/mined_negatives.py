"""Hard negatives mined from the batch: for each image a near text of another sample, and for each text a near image.

A negative is drawn with the probability that the softmax of its similarity gives it among all samples of the global
batch that are no positives (ALBEF, Li et al. 2021, section 3.2; BLIP, Li et al. 2022, section 3.1).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal import keys as key_tools
from xmodal.distributed.mesh import BATCH_AXES
from xmodal.distributed.sharding import constrain
from xmodal.objectives.base import THERE
from xmodal.objectives.contrastive import normalize, similarity
from xmodal.objectives.pairs import chunk_size, identities, positives
from xmodal.objectives.providers.base import Opening, Provider, ProviderSpec


@dataclasses.dataclass(frozen=True)
class MinedNegatives(ProviderSpec):
    """Near samples of the batch as negatives, for the objective `itm`.

    Attributes:
      between: the two towers whose `pooled` are compared.
      temperature: of the softmax that negatives are drawn by.
    """

    between: tuple[str, str] = ("image", "text")
    temperature: float = 0.07

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: expected a number above 0")

    def open(self, name: str, asked: frozenset[str], run: Opening) -> "Miner":
        """Looks up what the two towers embed."""
        towers = run.model().spec.towers
        inputs = tuple(towers[tower].embed.input for tower in self.between)
        of_input = lambda kind: tuple(run.inputs[kind].read(1)) if kind in run.inputs else (kind,)
        return Miner(name, self.between, inputs, self.temperature, tuple(map(of_input, inputs)))


@dataclasses.dataclass(frozen=True)
class Miner(Provider):
    """See `MinedNegatives`. Gives the arrays of the drawn samples, and who has drawn one.

    Row i of `<name>.<entry>` [batch, ...] holds the entry (`text`, `text_valid`, `image`) of the sample that was drawn
    for sample i; `<name>.<input>_found`, bool [batch], says whether there was any to draw.

    Attributes:
      name: of the provider.
      between: the two towers.
      inputs: what they embed.
      temperature: of the softmax.
      entries: of each input, those of the batch.
    """

    name: str
    between: tuple[str, str]
    inputs: tuple[str, str]
    temperature: float
    entries: tuple[tuple[str, ...], tuple[str, ...]]
    whole: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """Both embeddings, the inputs, and who is whose positive."""
        pooled = frozenset(f"{tower}.pooled" for tower in self.between)
        return pooled | {"key_id", "caption_id"}.union(*self.entries)

    @property
    def gives(self) -> frozenset[str]:
        """The arrays of the drawn samples."""
        drawn = {f"{self.name}.{entry}" for entries in self.entries for entry in entries}
        return frozenset(drawn | {f"{self.name}.{kind}_found" for kind in self.inputs})

    def __call__(self, params, batch, outputs, keys, mesh):
        """See `Provider`."""
        ids = identities(batch, multi_positive=True)
        x, y = (normalize(outputs[f"{tower}.pooled"]) / self.temperature**0.5 for tower in self.between)
        masks = [batch[f"{kind}_{THERE}"] for kind in self.inputs if f"{kind}_{THERE}" in batch]
        there = jnp.all(jnp.stack(masks), axis=0) if masks else jnp.ones(len(ids), bool)
        keys = key_tools.sample_keys(0, 0, len(ids)) if keys is None else keys
        given = {}
        # For each sample of the first input one of the second, and the other way round.
        for kind, entries, rows, columns in zip(self.inputs[::-1], self.entries[::-1], (x, y), (y, x), strict=True):
            index, found = draw_negatives(rows, columns, ids, there, key_tools.fold(keys, kind))
            given[f"{self.name}.{kind}_found"] = found
            for entry in entries:
                given[f"{self.name}.{entry}"] = constrain(jnp.take(batch[entry], index, axis=0), jax.P(BATCH_AXES))
        return given


def draw_negatives(
    rows: jax.Array, columns: jax.Array, ids: jax.Array, there: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws for each row a column of another identity, by the softmax of their products.

    The arg-max of logits and Gumbel noise is a draw from their softmax (Gumbel 1954); it goes block by block of the
    columns, so that no [batch, batch] is held. The noise of a pair depends on the row's key and the column's number
    alone: sharding changes nothing.

    Args:
      rows: float32 [batch, dim].
      columns: float32 [batch, dim], whose products with the rows are the logits.
      ids: uint32 [batch, kinds, 2]; pairs that share one are positives.
      there: bool [batch], samples that may be drawn.
      keys: per-sample keys [batch].

    Returns:
      int32 [batch], the column, and bool [batch], whether there was one; where not, the column is 0.
    """
    size = chunk_size(len(columns))
    whole = lambda a: constrain(a, jax.P()).reshape(-1, size, *a.shape[1:])
    number = jnp.arange(len(columns), dtype=jnp.int32)

    def block(best, part):
        value, index = best
        columns, other, free, numbers = part
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, numbers[0]), (size,)))(keys)
        allowed = ~positives(ids, other) & free[None]
        scores = jnp.where(allowed, similarity(rows, columns) + noise, -jnp.inf)
        top = jnp.max(scores, axis=1)
        index = jnp.where(top > value, numbers[jnp.argmax(scores, axis=1)], index)
        return (jnp.maximum(value, top), index), None

    start = (jnp.full(len(rows), -jnp.inf), jnp.zeros(len(rows), jnp.int32))
    (value, index), _ = jax.lax.scan(block, start, jax.tree.map(whole, (columns, ids, there, number)))
    return index, jnp.isfinite(value) & there
