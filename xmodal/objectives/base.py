"""What an objective is: a loss with its view, its needs and its parameters."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from data_pipelines.modalities.base import THERE

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Schedule = Callable[[jax.Array], jax.Array]


class Loss(NamedTuple):
    """What an objective returns; the loss of a batch is `sum / weight`, both over the global batch.

    Attributes:
      sum: float32 scalar.
      weight: float32 scalar: samples, tokens or pairs that `sum` is over.
      metrics: scalars by name, each a mean over the same `weight`.
      carry: what `Objective.update` makes the next carried state of. Of a loss that is a sum over samples, sums, which
        are added over micro-batches.
    """

    sum: jax.Array
    weight: jax.Array
    metrics: Metrics
    carry: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A weight that changes over the run: linear from `start` to `end`, constant before and after.

    Attributes:
      start: weight at first.
      end: weight at last.
      over: duration of the change.
      after: duration from the start of the run before the change begins.
    """

    start: float
    end: float
    over: str = "100%"
    after: str = "0%"

    def schedule(self, steps: Callable[[str, str], int]) -> Schedule:
        """Returns the weight by step (int32 scalar -> float32 scalar).

        Args:
          steps: (duration, name of its key) -> steps.

        Raises:
          ValueError: the change takes no time and comes at once, so `start` would have no effect.
        """
        begin, length = steps(self.after, "after"), steps(self.over, "over")
        if begin + length == 0:
            raise ValueError(f"over={self.over!r} and after={self.after!r} are 0 steps, so start={self.start} has no "
                             "effect: give the weight as a number")  # fmt: skip

        def weight(step: jax.Array) -> jax.Array:
            share = jnp.clip((step - begin) / max(length, 1), 0.0, 1.0) if length else step >= begin
            return self.start + (self.end - self.start) * jnp.asarray(share, jnp.float32)

        return weight


def belong(entries: Iterable[str], kinds: Iterable[str]) -> dict[str, list[str]]:
    """Returns the arrays of each input among the entries of a batch: `text` and `text_valid` belong to `text`.

    An entry belongs to one input, that of the longest name; `<input>_there` belongs to none.
    """
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for entry in entries:
        fitting = [kind for kind in found if entry == kind or entry.startswith(f"{kind}_")]
        if fitting and not entry.endswith(f"_{THERE}"):
            found[max(fitting, key=len)].append(entry)
    return found


def weighed(losses: jax.Array, batch: Batch) -> jax.Array:
    """Returns the losses of samples [batch, ...] by `loss_weight` of their sources, and 0 for samples without an input.

    Without either in the batch the losses stay as they are.
    """
    by_sample = lambda a: a.reshape(-1, *(1,) * (losses.ndim - 1))
    if "loss_weight" in batch:
        losses = losses * by_sample(batch["loss_weight"])
    return jnp.where(by_sample(batch[THERE]), losses, 0.0) if THERE in batch else losses


def present(values: jax.Array, batch: Batch) -> jax.Array:
    """Returns values [batch, ...] (weights of tokens, say), 0 for samples without an input."""
    if THERE not in batch:
        return values
    return jnp.where(batch[THERE].reshape(-1, *(1,) * (values.ndim - 1)), values, 0.0)


def count_rows(batch: Batch, rows: int) -> jax.Array:
    """Returns float32: how many of the `rows` of a batch have every input."""
    return jnp.sum(batch[THERE].astype(jnp.float32)) if THERE in batch else jnp.float32(rows)


def mean_rows(values: jax.Array, batch: Batch) -> jax.Array:
    """Mean over the samples that have every input; 0 where none has.

    Args:
      values: [rows, ...], of each sample one row or several, side by side.
      batch: of the objective.

    Returns:
      [...].
    """
    if THERE not in batch:
        return jnp.mean(values, axis=0)
    there = jnp.repeat(batch[THERE], len(values) // len(batch[THERE]))
    total = jnp.sum(jnp.where(there.reshape(-1, *(1,) * (values.ndim - 1)), values, 0.0), axis=0)
    return total / jnp.maximum(jnp.sum(there.astype(jnp.float32)), 1.0)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """What turns the cosine of two embeddings into a logit: exp(logit_scale) * cosine + logit_bias.

    Attributes:
      logit_scale: log of the inverse temperature.
      logit_bias: of a sigmoid, whose logits are each a probability; None where they are compared with one another.
    """

    logit_scale: float
    logit_bias: float | None = None


@dataclasses.dataclass(frozen=True)
class View:
    """What objectives see of a batch. Equal views (they are hashable) share one forward pass.

    The base class is the clean view: the batch as it is.

    Attributes:
      rows: rows that the view makes of each sample, side by side.
    """

    rows: ClassVar[int] = 1

    @property
    def cuts(self) -> tuple[str, ...]:
        """Edges between towers that this view leaves out, such as "caption<image": the reader first."""
        return ()

    def __call__(self, batch: Batch, keys: jax.Array | None) -> Batch:
        """Returns the view's batch; `keys` are per-sample random keys [batch], None asks for the fixed form."""
        del keys
        return batch


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A loss. Subclasses are frozen dataclasses whose fields are the keys of the objective's config entry.

    Attributes:
      weight: factor of this loss in the sum: a number, or a `Ramp` such as dict(start=0.0, end=1.0, over="20%").
      trains: regex of whole parameter paths, such as "critic/.*": the gradients of this loss reach only these.
      global_batch: the loss compares samples with one another, so it must see the whole batch at once; accumulation
        then goes through GradCache. Otherwise the loss is a sum over samples and may be cut anywhere.
      needs_labels: the loss reads `label` of the batch, an input of type `label`.
      takes_mixed: the loss handles images that show two samples (`mix_weight` in the batch).
      takes_captions: the loss handles several captions of a sample (more rows in the outputs of a text tower).
    """

    weight: float | Ramp = 1.0
    trains: str = ".*"
    global_batch: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = False
    takes_captions: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    @classmethod
    def settle(cls, entry: Mapping[str, Any], tokenizer: Any, sources: tuple[str, ...] = ()) -> dict[str, Any]:
        """Fills in options that a config entry leaves to the tokenizer and the data.

        Args:
          entry: of the objective.
          tokenizer: of the texts.
          sources: names of the entries of `data.sources`, in the order in which `source` of a batch counts them.

        Raises:
          ValueError: the tokenizer does not have what the objective needs.
        """
        del entry, tokenizer, sources
        return {}

    @classmethod
    def settle_facts(cls, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Fills in options that a config entry leaves to the providers.

        Args:
          entry: of the objective.
          facts: what the run's providers say of themselves, `Provider.facts`, such as {"teacher.image.width": 512}.

        Raises:
          ValueError: a provider does not have what the objective needs.
        """
        del entry, facts
        return {}

    @classmethod
    def alone(cls, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the config entry of what a run without providers keeps of the objective; None for nothing."""
        return dict(entry)

    def schedule(self, steps: Callable[[str, str], int]) -> Schedule | None:
        """Returns the weight by step where it changes over the run, else None; `steps` as for `Ramp.schedule`."""
        return self.weight.schedule(steps) if isinstance(self.weight, Ramp) else None

    @property
    def asks(self) -> frozenset[str]:
        """Entries of the batch that providers must give, such as `teacher.image`."""
        return frozenset()

    @property
    def inputs(self) -> frozenset[str]:
        """Inputs that the loss reads from the batch itself, beside those that the towers in `needs` embed."""
        return frozenset()

    @property
    def view(self) -> View:
        """The view that the forward pass runs on."""
        return View()

    @property
    @abc.abstractmethod
    def needs(self) -> frozenset[str]:
        """Names of model outputs, such as `image.pooled`."""

    def check(self, model_spec) -> None:  # noqa: B027 (most objectives fit any model)
        """Raises ValueError when the objective makes no sense on this model (`ModelSpec`)."""

    def init(self, key: jax.Array | None = None, model_spec=None) -> dict:
        """Returns the objective's parameters; they live at `objectives/<name>` in the parameter tree.

        Args:
          key: for those that start at random values.
          model_spec: `ModelSpec`, for those whose shapes depend on the model.
        """
        del key, model_spec
        return {}

    def carried(self, key: jax.Array | None = None, model_spec=None) -> dict:
        """Returns the state that a step changes without a gradient, as it is at first: queues, averaged codebooks.

        It lives at `carried/objectives/<name>` of the train state. The arguments are those of `init`.
        """
        del key, model_spec
        return {}

    def update(self, carried: Mapping, seen: Mapping) -> Mapping:
        """Returns the carried state after a step.

        Args:
          carried: before it.
          seen: `carry` of the loss, of the global batch.
        """
        del seen
        return carried

    def bound(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Keeps the objective's parameters within their range after an update."""
        return params

    def temperature(self, params: Mapping) -> Temperature | None:
        """Returns the temperature between pooled embeddings that the objective has learned; None where it has none.

        Args:
          params: what `init` returned, as trained so far.
        """
        del params
        return None

    @abc.abstractmethod
    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Returns the loss of a model that knows nothing: what a run should start near and must fall below."""

    @abc.abstractmethod
    def __call__(self, outputs: Mapping, batch: Batch, params: Mapping, mesh: jax.sharding.Mesh) -> Loss:
        """Computes the loss.

        Args:
          outputs: the model outputs that `needs` names.
          batch: the view's batch; with `there`, bool [batch], where samples may lack an input: the others are in no
            sum, weight or metric.
          params: what `init` returned, as trained so far, and what `carried` returned, as carried so far.
          mesh: the device mesh, for objectives that talk across the batch.
        """
