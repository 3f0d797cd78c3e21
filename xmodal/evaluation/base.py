"""What an evaluator is, and what it gets to work with."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from data_pipelines.evalset import EvalSet
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.models.model import Functional
from xmodal.objectives.contrastive import normalize


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """The parts of a run that evaluators share; the same in training and offline.

    Attributes:
      model: the towers as pure functions.
      mesh: batches are split over all its devices.
      preprocess: (batch, None) -> batch with float images, on the device.
      tokenizer: that the run trains with.
      data: `config.data`.
    """

    model: Functional
    mesh: jax.sharding.Mesh
    preprocess: Callable
    tokenizer: Tokenizer
    data: Any

    def open(
        self,
        data: str | tuple[str, ...] | Mapping[str, Any],
        templates: tuple[str, ...] = (),
        limit: int = 0,
        where: str = "evaluation",
        labels: bool = False,
        images: bool = True,
    ) -> EvalSet:
        """Opens held-out samples whose captions come from `templates` (() is their text); see `EvalSet`.

        With `labels` only those that have a class of `data.label` are used; without `images` none are read, and a
        sample needs none.
        """
        config = self.data.copy_and_resolve_references()
        with config.unlocked():
            config.text.templates = tuple((1.0, template) for template in templates)
            config.label.field = config.label.field if labels else ""
            config.modalities = config.modalities if images else ("text",)
        return EvalSet(data, config, limit, where)

    def once(self, what: Any, make: Callable[[], Callable]) -> Callable:
        """Returns what `make` made for the first evaluator that asked for `what`: so it is compiled once for all."""
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    @functools.cached_property
    def _made(self) -> dict[Any, Callable]:
        return {}

    @functools.cached_property
    def embed(self) -> dict[str, Callable]:
        """Jitted (params, batch) -> unit embeddings [batch, dim] by tower; compiled once for all evaluators."""
        return {tower: jax.jit(functools.partial(self._embed, f"{tower}.pooled")) for tower in ("image", "text")}

    def _embed(self, output: str, params: Mapping, batch: Mapping) -> jax.Array:
        return normalize(self.model(params, self.preprocess(batch, None), frozenset({output}))[output])


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Figures by flat name (shares are 0..1) and pictures for the report's gallery."""

    metrics: dict[str, float]
    gallery: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """One evaluation. Subclasses are frozen dataclasses whose fields are the keys of the config entry.

    Attributes:
      urls: held-out tar shards; or else:
      source: held-out data of any kind, as an entry of `data.sources`.
      captions: templates over the json fields or columns; () is the .txt member or the caption column.
      every: how often during training; the end of the run always evaluates.
      batch_size: samples embedded at once, over all devices.
      limit: samples to use; 0 uses all.
    """

    urls: str | tuple[str, ...] = ()
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    captions: tuple[str, ...] = ()
    every: str | int = "25%"
    batch_size: int = 256
    limit: int = 0

    def __post_init__(self):
        if bool(self.urls) == bool(self.source):
            raise ValueError("give either `urls` of tar shards, or `source`, an entry as in data.sources")

    def open(self, name: str, context: EvalContext, labels: bool = False, images: bool = True) -> EvalSet:
        """Opens its held-out samples; `name` is that of the config entry. Raises DataError as `EvalSet`."""
        where = f"evals.{name}.source" if self.source else f"evals.{name}"
        return context.open(self.source or self.urls, self.captions, self.limit, where, labels, images)

    @property
    def needs(self) -> frozenset[str]:
        """Model outputs it uses, such as "image.pooled"."""
        return frozenset({"image.pooled", "text.pooled"})

    @abc.abstractmethod
    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """Reads the data and compiles nothing yet; returns the function from parameters to results.

        Args:
          name: of the config entry; metrics start with `<type>/<name>/`.
          context: what the run provides.

        Raises:
          DataError: the data cannot be used, or do not have what the entry names.
        """
