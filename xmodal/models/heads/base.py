"""What a head is: something that is read off the tokens of a tower, by name."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
from flax import nnx

from xmodal.kinds import Kind
from xmodal.models.init import Draws, Scheme
from xmodal.models.spec import Sublayer
from xmodal.models.tokens import Tokens

HEADS: dict[str, type["HeadSpec"]] = {}  # by `type`, in the order in which a tower draws their parameters


class Described(Protocol):
    """What heads know of the description of their tower, a `TowerSpec`; none imports it, as it holds the heads."""

    width: int
    trunk: Any
    embed: Any
    reads: Mapping[str, Any]
    heads: Mapping[str, "HeadSpec"]


class Built(Protocol):
    """What heads use of their tower: its description, its embedder and the modules that `HeadSpec.parts` built."""

    spec: Described
    embed: Any

    def part(self, head: str, part: str) -> nnx.Module | None:
        """Returns a module of a head, or None where the head has no such part."""


@dataclasses.dataclass(frozen=True)
class Site:
    """What the modules of a head are built for.

    Attributes:
      tower: description of the tower.
      mlp: the tower's first MLP sublayer, or a default one: activation, biases and norm of heads follow it.
      scheme: initialisers.
      draw: draws parameters.
    """

    tower: Described
    mlp: Sublayer
    scheme: Scheme
    draw: Draws


@dataclasses.dataclass(frozen=True)
class HeadSpec(Kind, abc.ABC):
    """Description of a head.

    A tower has `heads: {name: HeadSpec}`, and the model gives `<tower>.<name>`. The modules of a head that is named
    like its type are parts of the tower itself (`<tower>/projection/kernel`); those of a head with another name lie
    under that name (`<tower>/codes/head/kernel`).
    """

    KINDS: ClassVar[Mapping[str, type]] = HEADS

    def parts(self, site: Site) -> dict[str, nnx.Module]:
        """Builds the modules of the head, by name; the base class has none."""
        del site
        return {}

    @abc.abstractmethod
    def width(self, tower: Described) -> int:
        """Width of what the head returns."""

    @abc.abstractmethod
    def __call__(self, name: str, tower: Built, tokens: Tokens, batch: Mapping[str, jax.Array]) -> Any:
        """Returns the output `<tower>.<name>`.

        Args:
          name: of this head; `tower.part(name, part)` is a module that `parts` built.
          tower: the tower, whose other heads and whose embedder may be looked at.
          tokens: of its trunk, [batch, seq, width].
          batch: raw arrays by name.
        """


def segment_of(tokens: Tokens, segment: str) -> tuple[str, Tokens]:
    """Returns (name, tokens) of the last segment that has the name; "" is the last of all."""
    names = [name for name, _ in tokens.segments]
    if segment and segment not in names:
        raise ValueError(f"a head reads the segment {segment!r}; the tower's tokens have {', '.join(names)}")
    number = len(names) - 1 - (names[::-1].index(segment) if segment else 0)
    return names[number], tokens.segment(number)
