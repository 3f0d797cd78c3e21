"""Which patches of a picture a word points to: cosines of its tokens with every patch in the shared space.

Any dual tower has such maps. They mean something where words and patches were trained together (FILIP, SPARC, FLAIR,
attention pooling); a tower that was only trained by its class token may point anywhere.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.errors import DataError
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.building import build_objectives
from xmodal.finite import check_rows
from xmodal.live import Live
from xmodal.models.tower import TowerSpec
from xmodal.preparing import Picture

# What a map is asked about: runs without spaces, and each ideograph or kana by itself.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_PUNCTUATION = re.compile(r"[\W_]+")
_INNER = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)  # of a word: without the punctuation around it


class Word(NamedTuple):
    """A word of a text: its letters, where these stand in the text (first, one past the last), and its tokens."""

    letters: str
    span: tuple[int, int]
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class WordMap:
    """Where the words of a text point to in a picture.

    Attributes:
      words: of the text, in order.
      scores: float32 [words, rows, columns], cosines with the patches.
      picture: uint8 [height, width, 3], as the model saw it.
      text: as the model read it.
      spans: of each word in it: the first character, and one past the last.
    """

    words: tuple[str, ...]
    scores: np.ndarray
    picture: np.ndarray
    text: str
    spans: tuple[tuple[int, int], ...]

    def __getitem__(self, word: str) -> np.ndarray:
        """Scores [rows, columns] of the first word that is so spelt."""
        if word not in self.words:
            raise DataError(f"the text has no word {word!r}; its words: {', '.join(self.words)}")
        return self.scores[self.words.index(word)]

    @property
    def clearest(self) -> int:
        """Number of the word that stands out most in one place."""
        flat = self.scores.reshape(len(self.words), -1)
        return int((flat.max(axis=1) - flat.mean(axis=1)).argmax())

    def pieces(self) -> list[tuple[str, int | None]]:
        """Cuts the text into words, with their numbers, and what lies between them, with None."""
        found, done = [], 0
        for number, (first, last) in enumerate(self.spans):
            found += [(self.text[done:first], None), (self.text[first:last], number)]
            done = last
        return [piece for piece in (*found, (self.text[done:], None)) if piece[0]]

    def overlay(self, word: int | str, size: int = 256) -> Image.Image:
        """Returns the picture, faded where a word (or the word with that number) does not point to."""
        scores = self[word] if isinstance(word, str) else self.scores[word]
        return overlay(self.picture, scores, size)


def word_map(live: Live, picture: Picture, text: str) -> WordMap:
    """Says which patches of an image each word of a text points to.

    Args:
      live: the model.
      picture: a path, the bytes of a file, a Pillow image, or uint8 [height, width(, 3)].
      text: one text; words beyond the model's length have no map.

    Raises:
      DataError: the model has no such maps, the text has no words, or the image cannot be read.
    """
    if problem := no_word_maps(live):
        raise DataError(f"there are no word maps: {problem}")
    name = live.modalities.caption.name
    text = live.preparing.text(name, text)
    words = word_tokens(live.modalities.texts[name].vocabulary, text, live.modalities.texts[name].length)
    if not words:
        raise DataError(f"a word map needs a text with words, got {text!r}")
    images, image = live.preparing.rows("image", [picture]), live.modalities["image"]
    patches, tokens = _local(live, image.name, images), _local(live, name, live.preparing.encoded(name, [text]))
    scores = score_words([word.tokens for word in words], tokens, patches)
    if image.grid in images:
        rows, columns = map(int, images[image.grid][0])
    else:
        rows, columns = grid_of(live.model.spec.towers[live.inputs[image.name]], patches.shape[0])
    scores = scores[:, : rows * columns].reshape(-1, rows, columns)  # behind them is padding
    letters, spans, _ = zip(*words)
    return WordMap(letters, scores, image.pixels(images, 0), text, spans)


def no_word_maps(live: Live) -> str:
    """Why `word_map` has nothing to say of a model; "" where it has."""
    for kind in ("image", "text"):
        if kind not in live.inputs:
            return f"no tower of the model reads {kind}s alone"
    grid = getattr(live.model.spec.towers[live.inputs["image"]].embed, "grid", None)
    return "the image tower makes a single patch of a picture" if grid == (1, 1) else ""


def aligns_words(live: Live) -> bool:
    """Whether an objective of a model compares patches or words, and not whole images and texts alone."""
    objectives = build_objectives(live.config, live.model.spec).values()
    return any(need.endswith(".local") for objective in objectives for need in objective.needs)


def _local(live: Live, kind: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    return check_rows(live.local_row(kind, batch)[None], "the local embedding", lambda _: f"the {kind}")[0]


def panels(found: WordMap, size: int) -> bytes:
    """Returns a PNG: the picture as the model saw it, then one panel a word, each under its word."""
    gap, line = 8, 24
    font = ImageFont.load_default(size=16)
    images = [("", Image.fromarray(found.picture).resize((size, size), Image.Resampling.LANCZOS))]
    images += [(word, found.overlay(i, size)) for i, word in enumerate(found.words)]
    sheet = Image.new("RGB", (len(images) * (size + gap) + gap, size + line + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (word, image) in enumerate(images):
        left = gap + i * (size + gap)
        sheet.paste(image, (left, line))
        draw.text((left, 2), word, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def overlay(picture: np.ndarray, scores: np.ndarray, size: int) -> Image.Image:
    """Returns a picture, clear where scores [rows, columns] are highest and grey where lowest; `size`: longer side."""
    scale = size / max(picture.shape[:2])
    shape = tuple(max(1, round(scale * side)) for side in picture.shape[1::-1])
    low, high = float(scores.min()), float(scores.max())
    share = (scores - low) / max(high - low, 1e-12)
    heat = Image.fromarray(np.uint8(np.round(255 * share))).resize(shape, Image.Resampling.BICUBIC)
    image = Image.fromarray(picture).resize(shape, Image.Resampling.LANCZOS)
    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, (96, 96, 104)), 0.75)
    return Image.composite(image, grey, heat)


def word_tokens(tokenizer: Tokenizer, text: str, length: int) -> list[Word]:
    """Returns the words of a text with the places of their tokens in its encoding; words that are cut off are left out.

    Args:
      tokenizer: of the model.
      text: as it is encoded (lower-cased where the model does).
      length: tokens of a text, marks included.
    """
    found = []
    for match in _WORD.finditer(text):
        inner, places = _INNER.search(match[0]), token_places(tokenizer, text, length, *match.span())
        if inner and places:
            span = match.start() + inner.start(), match.start() + inner.end()
            found.append(Word(_PUNCTUATION.sub("", match[0]), span, places))
    return found


def token_places(tokenizer: Tokenizer, text: str, length: int, first: int, last: int) -> list[int]:
    """Places, in the encoding of a text, of the tokens of its characters from `first` to before `last`."""
    spans = tokenizer.spans(text, length)
    return [place for place, (a, b) in spans if a < last and b > first and text[a:b].strip()]


def score_words(words: Sequence[Sequence[int]], text: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Mean cosine of the tokens of each word with every patch.

    Args:
      words: token places of each word.
      text: unit tokens [seq, dim].
      patches: unit patches [patches, dim].

    Returns:
      float32 [words, patches].
    """
    return np.stack([(text[list(places)] @ patches.T).mean(axis=0) for places in words])


def grid_of(tower: TowerSpec, patches: int) -> tuple[int, int]:
    """Rows and columns of a tower's patches."""
    grid = getattr(tower.embed, "grid", None)
    if grid is None:
        side = round(patches**0.5)
        grid = (side, side)
    if grid[0] * grid[1] != patches:
        raise ValueError(f"{patches} patches do not fill a grid of {grid[0]} x {grid[1]}")
    return grid
