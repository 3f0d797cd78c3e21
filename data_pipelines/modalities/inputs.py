"""The inputs of samples: `config.data.inputs` as modalities, and what loops over all of them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.host import Memory
from data_pipelines.modalities.base import SECTION, ArraySpec, Modality
from data_pipelines.modalities.text import Text
from data_pipelines.specs import read_spec
from data_pipelines.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    import jax


class Inputs(Mapping[str, Modality]):
    """Modalities by the name of their input; never changed.

    First come inputs that are named as their modality (`image`, `text`), then the others by name: a config keeps no
    order. The first text is the one whose captions reports show and held-out sets have.
    """

    def __init__(self, modalities: Mapping[str, Modality] | Iterable[Modality]):
        """Takes modalities that know their names; each finds the others that its options name."""
        found = modalities.values() if isinstance(modalities, Mapping) else modalities
        named = {modality.name: modality for modality in found}
        order = sorted(named, key=lambda name: (name != named[name].type, name))
        named = {name: named[name] for name in order}
        self._named = {name: modality.linked(named) for name, modality in named.items()}

    def __getitem__(self, name: str) -> Modality:
        if name not in self._named:
            raise KeyError(name)
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    # ------------------------------------------------------------------------------------------ others of them

    def changed(self, name: str, **changes: Any) -> "Inputs":
        """Returns inputs of which one has other options."""
        return Inputs(self._named | {name: self._named[name].changed(**changes)})

    def only(self, names: Iterable[str]) -> "Inputs":
        """Returns these inputs."""
        wanted = set(names)
        return Inputs({name: modality for name, modality in self.items() if name in wanted})

    def with_(self, *others: Modality) -> "Inputs":
        """Returns them with others behind them, or in the place of those of the same name."""
        return Inputs(self._named | {modality.name: modality for modality in others})

    def with_tokenizers(self, tokenizers: Mapping[str, Tokenizer]) -> "Inputs":
        """Returns inputs whose texts have tokenizers that were read."""
        known = {name: tokenizer for name, tokenizer in tokenizers.items() if name in self._named}
        return Inputs(self._named | {name: self._named[name].with_tokenizer(t) for name, t in known.items()})

    # ------------------------------------------------------------------------------------------ some of them

    @property
    def stored(self) -> dict[str, Modality]:
        """Those that files hold, and not records."""
        return {name: modality for name, modality in self.items() if modality.stored}

    @property
    def texts(self) -> dict[str, Text]:
        """Those that are texts, each with its tokenizer."""
        return {name: modality for name, modality in self.items() if modality.tokenized}

    @property
    def caption(self) -> Text | None:
        """The first text: what a sample is called in reports and found by; None where there is none."""
        return next(iter(self.texts.values()), None)

    def of_type(self, kind: str) -> dict[str, Any]:
        """Returns those of a modality, by the name of its class in MODALITIES."""
        return {name: modality for name, modality in self.items() if modality.type == kind}

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """The tokenizer of each text. Raises DataError where one cannot be read."""
        return {name: text.vocabulary for name, text in self.texts.items()}

    # ------------------------------------------------------------------------------------------ all of them

    def check(self, device: bool = False) -> None:
        """Raises DataError where options cannot be used; see `Modality.check`."""
        if not self:
            raise DataError(f"{SECTION} names nothing that samples have; add for example {_EXAMPLE}")
        for modality in self.values():
            modality.check(device)
        given: dict[str, str] = {}
        for modality in self.values():
            for array in modality.specs(1):
                if array in given:
                    raise DataError(f"{modality.where} and {given[array]} both give batches {array!r}: rename one")
                given[array] = modality.where

    def specs(self, rows: int, draws: Mapping[str, int] | None = None) -> dict[str, ArraySpec]:
        """Returns all arrays of a batch that come from inputs; `draws` as for `empty`."""
        drawn = draws or {}
        return {k: spec for n, modality in self.items() for k, spec in modality.specs(rows, drawn.get(n, 0)).items()}

    def empty(
        self, rows: int, draws: Mapping[str, int] | None = None, memory: Memory | None = None
    ) -> dict[str, np.ndarray]:
        """Returns uninitialised arrays of a batch.

        Args:
            rows: of the batch.
            draws: the length of each input in this batch, see `Modality.draw`; None takes those outside the training.
            memory: gives the large ones.
        """
        drawn = draws or {}
        return {k: a for n, modality in self.items() for k, a in modality.empty(rows, drawn.get(n, 0), memory).items()}

    def nbytes(self) -> int:
        """Returns the bytes of a row of the training, at most."""
        return sum(modality.nbytes() for modality in self.values())

    def on_device(self, batch: "Mapping[str, jax.Array]", keys: "jax.Array | None") -> "dict[str, jax.Array]":
        """Returns a batch as towers take it, see `Modality.on_device`; inputs that it lacks are passed over."""
        batch = dict(batch)
        for modality in self.values():
            batch = modality.on_device(batch, keys)
        return batch

    def identity(self) -> dict[str, Any]:
        """Returns all that decides what a model sees, by input; as json has it."""
        return {name: modality.identity() for name, modality in self.items()}

    def entries(self) -> dict[str, dict[str, Any]]:
        """Returns them as `config.data.inputs`, all options written out."""
        return {name: modality.entry() for name, modality in self.items()}


def tokenizer_files(names: Iterable[str]) -> dict[str, str]:
    """Returns the file of the tokenizer of each text in the folder of a model: tokenizer.json where there is one."""
    names = list(names)
    return {name: "tokenizer.json" if len(names) == 1 else f"{name}.tokenizer.json" for name in names}


_EXAMPLE = 'dict(image=dict(type="image"), text=dict(type="text", tokenizer="tokenizer.json"))'


def open_inputs(section: Any, registry: Mapping[str, type[Modality]]) -> Inputs:
    """Returns `config.data.inputs` as modalities of a registry.

    Raises:
        DataError: there is no such modality, or an option is wrong.
    """
    found = {}
    for name, entry in section.items():
        where = f"{SECTION}.{name}"
        if not hasattr(entry, "items"):
            raise DataError(f"{where} is {entry!r}; expected the options of an input, such as {_EXAMPLE}")
        kind = entry.get("type")
        if kind not in registry:
            expected = ", ".join(registry)
            raise DataError(f"{where}.type is {kind!r:.100}, not one of {expected}{did_you_mean(str(kind), registry)}")
        found[name] = read_spec(registry[kind], entry, where).changed(name=name)
    return Inputs(found)
