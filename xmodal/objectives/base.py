"""What an objective is: a loss with its view, its needs and its own parameters."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def taught(tower: str) -> str:
    """Name in the batch of the teacher's embedding that a tower learns from: [batch, width], unit vectors."""
    return f"teacher.{tower}"


def weighed(losses: jax.Array, batch: Batch) -> jax.Array:
    """Multiplies the losses of samples [batch, ...] by `loss_weight` of their sources, where these have one."""
    if "loss_weight" not in batch:
        return losses
    return losses * batch["loss_weight"].reshape(-1, *(1,) * (losses.ndim - 1))


@dataclasses.dataclass(frozen=True)
class TeacherFacts:
    """What objectives have to know of a teacher before it says anything.

    Attributes:
      widths: of its embeddings, by the tower of the student that learns from them.
      logit_scale: log of the inverse temperature between its images and texts; None where it has none.
      follows: it is the average of the student's own weights.
    """

    widths: Mapping[str, int]
    logit_scale: float | None
    follows: bool = False


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
    """

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
      weight: factor of this loss in the sum.
      global_batch: the loss compares samples with one another, so it must see the whole batch at once; accumulation
        then goes through GradCache. Otherwise the loss is a sum over samples and may be cut anywhere.
      reads: entries of the view's batch that a loss over the global batch looks at, where they are there.
      needs_labels: the loss reads `label` of the batch, an input of type `label`.
      takes_mixed: the loss knows what to do with images that show two samples (`mix_weight` in the batch).
      takes_captions: the same of several captions of a sample (rows of their own in the outputs of a text tower).
    """

    weight: float = 1.0
    global_batch: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    takes_mixed: ClassVar[bool] = False
    takes_captions: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    @classmethod
    def settle(cls, entry: Mapping[str, Any], tokenizer: Any, sources: tuple[str, ...] = ()) -> dict[str, Any]:
        """Returns keys of a config entry that it leaves to the tokenizer or the data, filled in.

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
    def settle_teacher(cls, entry: Mapping[str, Any], facts: TeacherFacts) -> dict[str, Any]:
        """Returns keys of a config entry that it leaves to the teacher, filled in.

        Raises:
          ValueError: the teacher does not have what the objective needs.
        """
        del entry, facts
        return {}

    @classmethod
    def without_teacher(cls, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the config entry of what a run without a teacher keeps of the objective; None for nothing."""
        return dict(entry)

    @property
    def teacher_needs(self) -> tuple[str, ...]:
        """Towers that learn from the teacher; each is told its embeddings, see `taught`."""
        return ()

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
        """Returns the objective's own parameters; they live at `objectives/<name>` in the parameter tree.

        Args:
          key: for those that start at random values.
          model_spec: `ModelSpec`, for those whose shapes depend on the model.
        """
        del key, model_spec
        return {}

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
    def __call__(self, outputs: Mapping, batch: Batch, params: Mapping, mesh: jax.sharding.Mesh):
        """Returns (loss_sum, weight, metrics): scalars whose quotient over the global batch is the loss.

        Args:
          outputs: the model outputs that `needs` names.
          batch: the view's batch.
          params: what `init` returned, as trained so far.
          mesh: the device mesh, for objectives that talk across the batch.
        """
