"""What becomes of a text before the tokenizer: one function for training, evaluation, inference and search.

Every text is cut to a length that is safe to work with, cleaned, its white space joined to single spaces, and then
lower-cased if the model wants that. A model that meets a text here in another form than in training gives another
embedding for it, so nothing else in the project changes a text on its way to the tokenizer.
"""

import dataclasses
import functools
import html
import string
import unicodedata
from collections.abc import Callable
from typing import Any

from data_pipelines.errors import DataError, did_you_mean

LONGEST = 2**14
"""Characters of a text that are used: of megabytes, each visit would cost seconds."""

_LONGEST_FIXED = 2**12  # of what ftfy mends, line by line: thousands of lines take a second
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def _none(text: str) -> str:
    return text


def _basic(text: str) -> str:
    return unicodedata.normalize("NFC", _unescape(_unescape(text)))


def _whitespace(text: str) -> str:
    return _unescape(_unescape(_fix()(text[:_LONGEST_FIXED])))


def _lower(text: str) -> str:
    return _joined(_whitespace(text)).lower()


def _canonicalize(text: str) -> str:
    return _whitespace(text).translate(_NO_PUNCTUATION).lower()


_CLEANERS: dict[str, Callable[[str], str]] = dict(
    none=_none, basic=_basic, whitespace=_whitespace, lower=_lower, canonicalize=_canonicalize
)
CLEANING = tuple(_CLEANERS)
"""Values of `clean` of a text input; the last three are open_clip's, by its names."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Prepares texts: call it with one.

    Attributes:
        clean: `none`; `basic`: HTML entities to characters (twice: captions from the web hold entities of entities) and
            Unicode NFC; `whitespace`: what open_clip calls so, texts that were decoded wrongly are mended (ftfy:
            encodings, curly quotes, full-width letters) and then HTML entities, twice; `lower`: the same in lower case;
            `canonicalize`: the same in lower case and without punctuation.
        lower: lower-case what comes out.

    Raises:
        DataError: there is no such way to clean.
    """

    clean: str = "none"
    lower: bool = False

    def __post_init__(self):
        if self.clean not in CLEANING:
            raise DataError(f"clean is {self.clean!r}, not one of {CLEANING}{did_you_mean(str(self.clean), CLEANING)}")

    @classmethod
    def of(cls, text: Any) -> "Preparation":
        """Reads `clean` and `lower` of a text input. Raises DataError as above, with the path of the option."""
        try:
            return cls(text.clean, bool(text.lower))
        except DataError as error:
            raise DataError(f"{text.where}.{error}") from None

    @property
    def lowers(self) -> bool:
        """Whether nothing that comes out has capitals."""
        return self.lower or self.clean in ("lower", "canonicalize")

    def __call__(self, text: str) -> str:
        text = _CLEANERS[self.clean](text[:LONGEST])
        # Half of a surrogate pair, which json may hold, is no character and cannot be encoded.
        text = _joined(text.encode("utf-8", "replace").decode())
        return text.lower() if self.lower else text

    def after(self, first: "Preparation") -> "Preparation":
        """Returns what is left to do for texts that `first` has prepared."""
        clean = "none" if self.clean == first.clean else self.clean
        return Preparation(clean, self.lower and not first.lowers)


def _joined(text: str) -> str:
    return " ".join(text.split())


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # "&#" and thousands of digits
        return text


@functools.cache
def _fix() -> Callable[[str], str]:
    import ftfy  # takes 150 ms to import, and few configurations need it

    return ftfy.fix_text
