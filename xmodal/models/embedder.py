"""What an embedder is: it makes the first tokens of a tower, of an array of the batch or of learned vectors."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from flax import nnx

from xmodal.kinds import Kind
from xmodal.models.init import Draws, Scheme

EMBEDDERS: dict[str, type["EmbedSpec"]] = {}  # by `type`


@dataclasses.dataclass(frozen=True)
class EmbedSpec(Kind, abc.ABC):
    """Description of an embedder.

    Its module maps (batch, keys=None, rows=0, read=()) to (Tokens, carry): `keys` are per-sample random keys [rows] or
    None, `rows` the rows to make where the embedder reads no array, `read` the tokens that an embedder with `absorbs`
    takes up, and `carry` the moments of BatchNorms by path (None for those that used their running statistics), {}
    without any.

    Attributes:
      takes: kind of the array that it reads: pixels of whole images, packed patches, ids, samples of
        a sound, or none ("").
      rank: axes of that array, rows included; one with one axis more holds several items of a sample.
      absorbs: the tokens that the tower reads go through the embedder and not in front of it.
    """

    KINDS: ClassVar[Mapping[str, type]] = EMBEDDERS
    takes: ClassVar[Literal["pixels", "patches", "ids", "samples", ""]] = ""
    rank: ClassVar[int] = 0
    absorbs: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, width: int, scheme: Scheme, dtype, draw: Draws) -> nnx.Module:
        """Builds the module."""

    @property
    @abc.abstractmethod
    def tokens(self) -> int:
        """Length of the sequence."""

    @property
    def prefix(self) -> int:
        """Tokens before those of the input: class token and registers."""
        return 0

    @property
    def grid(self) -> tuple[int, int] | None:
        """Places of an image (down, across); None where there are none, or images differ in them."""
        return None

    @property
    def is_grid(self) -> bool:
        """Whether the tokens are places of an image."""
        return self.takes in ("pixels", "patches")

    @property
    def decodes(self) -> bool:
        """Whether the input can grow token by token."""
        return self.takes == "ids"

    @property
    def vocabulary(self) -> int:
        """Rows of the token table `embedding`; 0 where there is none."""
        return 0
