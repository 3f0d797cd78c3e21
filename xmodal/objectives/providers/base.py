"""What a provider is: it adds entries to a batch, and no gradient passes through it.

A frozen teacher's embeddings, the codes of a codec, averaged weights, negatives mined from the batch: an objective, a
view or a tower reads what providers give by its name in the batch, and knows nothing of where it is from.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
from ml_collections import ConfigDict

from data_pipelines.modalities import Inputs, OtherText

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Provider(abc.ABC):
    """A provider in use. Subclasses are frozen dataclasses.

    Attributes:
      whole: it compares samples with one another, so it is asked once, of the global batch. Otherwise it is asked of
        each micro-batch, and what it gives of a sample depends on that sample alone.
      follows: part of the train state that its parameters are, such as "ema"; "" where `params` has them.
    """

    whole: ClassVar[bool] = False
    follows: ClassVar[str] = ""

    @property
    @abc.abstractmethod
    def gives(self) -> frozenset[str]:
        """Names of the entries that it adds."""

    @property
    def needs(self) -> frozenset[str]:
        """Entries of the batch, or model outputs of the clean view such as `image.pooled`, which it reads."""
        return frozenset()

    @property
    def params(self) -> Mapping:
        """Frozen parameters, placed on the mesh; they are no part of the state."""
        return NOTHING

    @property
    def facts(self) -> Mapping[str, Any]:
        """What objectives may settle their options by, such as {"teacher.image.width": 512}; their names are global."""
        return NOTHING

    @property
    def texts(self) -> Mapping[str, OtherText]:
        """Captions that the stream prepares for it, by the name of their ids in the batch."""
        return NOTHING

    @property
    def fingerprint(self) -> str:
        """Of all that decides what it gives; a run continues only with the same. "" where the config says all."""
        return ""

    @property
    def summary(self) -> str:
        """One line for the start of a run."""
        return ", ".join(sorted(self.gives))

    @abc.abstractmethod
    def __call__(
        self,
        params: Mapping,
        batch: Mapping[str, jax.Array],
        outputs: Mapping,
        keys: jax.Array | None,
        mesh: jax.sharding.Mesh,
    ) -> dict[str, jax.Array]:
        """Returns {name of `gives`: array [rows, ...]}.

        Args:
          params: `params`, or the part of the state that it follows.
          batch: preprocessed, with what other providers gave.
          outputs: the model outputs among `needs`, of the clean view, without a gradient.
          keys: per-sample random keys [rows]; None asks for the fixed form.
          mesh: devices.
        """


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a provider may look at when it is opened.

    Attributes:
      config: of the run, checked.
      mesh: where parameters go.
      inputs: of the samples, each text with its tokenizer.
      stored: opens a model at rest: a run, an imported folder, "hf:DIR" -> `Stored`; raises ConfigError.
      model: makes the run's model (`Functional`).
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    inputs: Inputs
    stored: Callable[[str], Any]
    model: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class ProviderSpec(abc.ABC):
    """A config entry of `providers`. Subclasses are frozen dataclasses whose fields are its keys."""

    @property
    def needs(self) -> frozenset[str]:
        """`needs` of the provider, as far as they are known before it is opened."""
        return frozenset()

    @abc.abstractmethod
    def open(self, name: str, asked: frozenset[str], run: Opening) -> Provider:
        """Makes the provider ready for use.

        Args:
          name: of the entry; what a provider gives begins with it and a dot.
          asked: entries that objectives, towers and other providers read, of all providers together.
          run: the run that it is opened for.

        Raises:
          ConfigError: it cannot be opened, or does not fit the run.
        """


def ordered(providers: Mapping[str, Provider], entries: Iterable[str], outputs: Iterable[str]) -> dict[str, Provider]:
    """Returns the providers, each behind those whose entries it needs; those that need model outputs come last.

    Args:
      providers: by name.
      entries: what the batch has before any provider is asked.
      outputs: names of all model outputs.

    Raises:
      ValueError: a need that nothing gives, an entry that two providers give, or a cycle; the message names it.
    """
    known, outputs, givers = set(entries), set(outputs), {}
    for name, provider in providers.items():
        for entry in sorted(provider.gives):
            if entry in known or entry in givers:
                other = f"providers.{givers[entry]} gives" if entry in givers else "the data have"
                raise ValueError(f"providers.{name} gives {entry!r}, which {other} already")
            givers[entry] = name
    for name, provider in providers.items():
        if missing := sorted(provider.needs - known - outputs - givers.keys()):
            raise ValueError(f"providers.{name} needs {missing[0]!r}, which neither the data, the model nor another "
                             "provider gives")  # fmt: skip
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"the needs of providers have a cycle: {' -> '.join((*path[path.index(name) :], name))}")
        if name not in order:
            for entry in sorted(providers[name].needs & givers.keys()):
                visit(givers[entry], (*path, name))
            order.append(name)

    for name in providers:
        visit(name, ())
    late: set[str] = set()
    for name in order:
        if providers[name].needs & (outputs | {entry for other in late for entry in providers[other].gives}):
            late.add(name)
    return {name: providers[name] for name in sorted(order, key=lambda name: name in late)}
