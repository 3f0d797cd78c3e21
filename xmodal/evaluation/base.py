"""What an evaluator is, and what it gets to work with."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from data_pipelines.errors import DataError
from data_pipelines.io.urls import without_secrets
from data_pipelines.modalities import Inputs, Label, Text
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.text.preparation import Preparation
from xmodal.distributed.mesh import assert_same_data
from xmodal.live import Live
from xmodal.models.model import Functional
from xmodal.reporting.scores import Scores

_PLACES = ("urls", "dataset", "samples")  # keys of `data.sources` that say where samples come from


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """The parts of a run that evaluators share; the same in training and offline.

    Attributes:
      live: the model. Evaluators get the parameters with each evaluation, as training changes them.
    """

    live: Live

    @property
    def model(self) -> Functional:
        """The towers as pure functions."""
        return self.live.model

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """Batches are split over all its devices."""
        return self.live.mesh

    @property
    def preprocess(self) -> Callable:
        """(batch, None) -> batch with float images, on the device."""
        return self.live.preprocess

    @property
    def inputs(self) -> Inputs:
        """What the model reads, each text with the tokenizer that it was trained with."""
        return self.live.modalities

    @property
    def data(self) -> Any:
        """The section `data` of the config."""
        return self.live.data

    def open(
        self,
        data: str | tuple[str, ...] | Mapping[str, Any],
        templates: tuple[str, ...] = (),
        limit: int = 0,
        where: str = "evaluation",
        label: Label | None = None,
        files: bool = True,
        lines: bool | None = None,
    ) -> EvalSet:
        """Opens held-out samples whose captions come from `templates` (() is their text); see `EvalSet`.

        With `lines` each line of a text is a caption, without they are one; None takes what the run trains with. With a
        `label` only those that have a class of it are used; without `files` what files hold (images, sounds) is not
        read, and a sample needs none.
        """
        inputs = self.inputs.only(name for name, modality in self.inputs.items() if files and not modality.on_record)
        text = self.inputs.caption
        if text is not None:
            given = tuple((1.0, template) for template in templates)
            kept = (text.lines and not templates) if lines is None else lines
            inputs = inputs.with_(text.changed(templates=given, lines=kept, buckets=(), after="", before=None))
        if label is not None:
            inputs = inputs.with_(label)
        config = self.data.copy_and_resolve_references()
        with config.unlocked():
            config.group_key = ""  # says what the training data call equal; other data need not have the field
        opened = EvalSet(data, config, limit, where, inputs)
        assert_same_data(where, opened.fingerprint)
        return opened

    @functools.cached_property
    def text(self) -> Text:
        """The text whose captions are evaluated: the first. Raises DataError where the model reads none."""
        if self.inputs.caption is None:
            raise DataError("this evaluation needs texts, and data.inputs has none")
        return self.inputs.caption

    @property
    def prepare(self) -> Preparation:
        """Prepares a text as captions are in training: for texts that do not come as captions of a set."""
        return self.text.prepare

    def input_of(self, tower: str) -> str:
        """Returns the input that a tower embeds."""
        return self.model.spec.towers[tower].embed.input

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
        """Jitted (params, batch) -> unit embeddings, by tower; compiled once for all evaluators. See `Live.embed`."""
        return self.live.embed

    @functools.cached_property
    def embed_local(self) -> dict[str, Callable]:
        """Jitted (params, batch) -> unit patches or words, by tower. See `Live.embed_local`."""
        return self.live.embed_local


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
      metrics: figures by flat name; shares are 0..1.
      gallery: pictures for the report.
      scores: what each query scored, by the group that `metrics` has its figures in: gives them their intervals.
      details: tables for results and report by flat name, a row a dict.
    """

    metrics: dict[str, float]
    gallery: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: dict[str, Scores] = dataclasses.field(default_factory=dict)
    details: dict[str, list[dict]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """One evaluation. Subclasses are frozen dataclasses whose fields are the keys of the config entry.

    Attributes:
      urls: held-out shards, folders or lists: short for the `urls` of `source`, which then names none.
      source: held-out data of any kind, as an entry of `data.sources`.
      captions: templates over the json fields or columns; () is the .txt member or the caption column.
      lines: each line of that text is a caption; None takes what the run trains with.
      every: how often during training; the end of the run always evaluates.
      batch_size: samples embedded at once, over all devices.
      limit: samples to use; 0 uses all.
    """

    urls: str | tuple[str, ...] = ()
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    captions: tuple[str, ...] = ()
    lines: bool | None = None
    every: str | int = "25%"
    batch_size: int = 256
    limit: int = 0

    def __post_init__(self):
        if not self.urls and not self.source:
            raise ValueError("give `urls` of shards, folders or lists, or `source`, an entry as in data.sources")

    def open(
        self,
        name: str,
        context: EvalContext,
        *,
        instead: str = "",
        label: Label | None = None,
        files: bool = True,
        data: str | tuple[str, ...] | Mapping[str, Any] = (),
        where: str = "",
    ) -> EvalSet:
        """Opens held-out samples.

        Args:
          name: of the config entry.
          context: what the run provides.
          instead: a field that samples need in place of a caption, where the entry does not say what captions are.
          label: as for `EvalContext.open`.
          files: as for `EvalContext.open`.
          data: other samples than those of the entry: `urls`, or an entry as in `data.sources`.
          where: key of `data` in the entry.

        Raises:
          DataError: as `EvalSet`, or both `urls` and `source` name samples.
        """
        captions = self.captions or ((f"{{{instead}}}",) if instead else ())
        data, where = data or self.entry(name), f"evals.{name}.{where or 'source'}"
        return context.open(data, captions, self.limit, where, label, files, self.lines)

    def entry(self, name: str) -> dict[str, Any]:
        """Returns the held-out samples as an entry of `data.sources`; `urls` and `source` are one.

        Raises:
          DataError: both name samples.
        """
        if not self.urls:
            return dict(self.source)
        if named := next((key for key in _PLACES if self.source.get(key)), ""):
            raise DataError(
                f"evals.{name}.urls is set, and evals.{name}.source names samples, too ({named}="
                f"{without_secrets(repr(self.source[named]))}): set --config.evals.{name}.source.urls=... instead of "
                f"--config.evals.{name}.urls"
            )
        return dict(self.source) | dict(urls=self.urls)

    @property
    @abc.abstractmethod
    def needs(self) -> frozenset[str]:
        """Model outputs it uses, such as "image.pooled"."""

    @abc.abstractmethod
    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """Reads the data and compiles nothing yet; returns the function from parameters to results.

        Args:
          name: of the config entry; metrics start with `<type>/<name>/`.
          context: what the run provides.

        Raises:
          DataError: the data cannot be used, or do not have what the entry names.
        """


@dataclasses.dataclass(frozen=True)
class BetweenTowers(Evaluator):
    """An evaluation of two towers that embed into one space.

    Attributes:
      between: the tower of what files hold, such as images, and that of the captions.
    """

    between: tuple[str, str] = ("image", "text")

    @property
    def needs(self) -> frozenset[str]:
        """The embeddings of both."""
        return frozenset(f"{tower}.pooled" for tower in self.between)
