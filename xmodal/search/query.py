"""Questions to an index: a text, an image, or both, become one vector, and the nearest samples the answer."""

import dataclasses
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.errors import BadSample, DataError
from xmodal.evaluation.word_maps import WordMap
from xmodal.inference import Model
from xmodal.reporting.messages import Message, reason, say, term
from xmodal.search.index import Index
from xmodal.search.models import model_of
from xmodal.search.parts import IMAGE, TEXT
from xmodal.search.scripts import warning_of
from xmodal.search.top_k import Nearest, open_nearest

MOST = 1000  # results of one question
LONGEST = 2000  # characters of a text; towers read some 77 tokens
_MAPS = 16  # word maps that are kept: another word of the same text is asked for next
_CAPTIONS = 200  # that say what this tokenizer makes of these data
_DECODERS = 2  # pictures decoded at a time: each may fill as much memory as `max_pixels` of the input allows
_PATIENCE = 20.0  # seconds that a picture waits for one of them


@dataclasses.dataclass(frozen=True)
class Query:
    """What is looked for: at least one of text, image and sample.

    Attributes:
      text: in any language that the model has learnt; "" for none.
      image: an encoded picture; b"" for none.
      sample: number of a sample of the index, whose own embedding is taken for the picture; None for none.
      weight: of the picture or sample beside a text, 0 to 1: their unit vectors are added with 1 - weight and weight.
      among: "image" compares with the pictures of the index, "text" with its captions.
      top: results wanted.
    """

    text: str = ""
    image: bytes = b""
    sample: int | None = None
    weight: float = 0.5
    among: str = "image"
    top: int = 10

    def __post_init__(self):
        if not self.text.strip() and not self.image and self.sample is None:
            raise DataError(say("nothing is looked for: give a text, an image or both"))
        if self.image and self.sample is not None:
            raise DataError(say("an image and a sample are given; look for one of them"))
        if len(self.text) > LONGEST:
            raise DataError(_too_long(self.text))
        if not 0 <= self.weight <= 1:
            raise DataError(
                say("the weight is {weight}; expected 0 (the text alone) to 1 (the image alone)", weight=self.weight)
            )
        if not 1 <= self.top <= MOST:
            raise DataError(say("{top} results are asked for; expected 1 to {most:,}", top=self.top, most=MOST))


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result: number of the sample, cosine to the query, and its record (`shard`, `key`, `caption`)."""

    row: int
    score: float
    record: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Returns it as the API and `search --json` give it."""
        return dict(row=self.row, score=round(self.score, 6), **self.record)


class Searcher:
    """An index with its model, ready to be asked; several threads may ask, and take turns at the model.

    Pictures are decoded before a question's turn comes: one that takes long keeps no other question waiting.

    Attributes:
      index: see `Index`.
      model: see `xmodal.load`.
      among: what there is to compare with, "image", "text" or both.
    """

    def __init__(self, index: Index, model: Model, engine: str = "auto"):
        """Loads what the index is first asked for when it is asked; `engine` as for `open_nearest`."""
        self.index, self.model, self.among = index, model, index.kinds
        self._engine, self._nearest, self._lock = engine, dict[str, Nearest](), threading.Lock()
        self._decoders = threading.BoundedSemaphore(_DECODERS)
        self._word_map = functools.lru_cache(_MAPS)(self._mapped)

    @classmethod
    def open(cls, folder: Path, *, model: str | None = None, engine: str = "auto") -> "Searcher":
        """Opens an index and the model that made it; `model` says where that is now."""
        index = Index(folder)
        return cls(index, model_of(index.manifest["model"], model), engine)

    def load(self, among: str) -> Nearest:
        """Loads the embeddings of pictures or captions, once."""
        if among not in self._nearest:
            self._nearest[among] = open_nearest(self.index.vectors(among), self._engine)
        return self._nearest[among]

    def warm(self) -> None:
        """Loads and compiles what first questions need, so that they are answered at once."""
        self.load(self.among[0]).top(np.zeros((1, self.index.dim), np.float32), 1)
        if TEXT in self.model.inputs:
            self.model.embed_text("")
        if IMAGE in self.model.inputs:
            self.model.embed_image(np.zeros((8, 8, 3), np.uint8))

    def search(self, query: Query) -> list[Hit]:
        """Returns the samples nearest to a query, best first.

        Raises:
          DataError: the picture cannot be read, or the index or its model do not have what is asked for.
        """
        picture = self._uploaded(query.image) if query.image else None
        with self._lock:
            nearest = self.load(query.among)
            scores, rows = nearest.top(self.vector(query, picture)[None], query.top)
        found = zip(rows[0].tolist(), scores[0].tolist())
        # Half precision makes some vectors a little longer than 1.
        return [Hit(row, min(score, 1.0), self.index.record(row)) for row, score in found]

    def warning(self, text: str) -> Message | None:
        """Returns what to tell who asks in a script that the model cannot read; None where it can."""
        if TEXT not in self.model.inputs or not text.strip():
            return None
        return warning_of(self.model.tokenizer, self._as_read(text), self._some_captions)

    @functools.cached_property
    def _some_captions(self) -> list[str]:
        rows = np.unique(np.linspace(0, max(0, len(self.index) - 1), min(_CAPTIONS, len(self.index))).astype(int))
        return [self._as_read(self.index.record(row)["caption"][:LONGEST]) for row in rows.tolist()]

    def _as_read(self, text: str) -> str:
        return self.model.live.preparing.text(TEXT, text)

    @property
    def no_maps(self) -> str:
        """Why there are no word maps; "" where there are."""
        return reason(self.model.no_word_maps or ("" if self.index.has_thumbnails else "the index keeps no images"))

    def word_map(self, row: int, text: str) -> WordMap:
        """Says which patches of a sample's small picture each word of a text points to.

        Raises:
          DataError: there is no such sample, it has no picture, the text has no words, or the model has no word maps.
        """
        if self.no_maps:
            raise DataError(say("there are no word maps: {reason}", reason=self.no_maps))
        if len(text) > LONGEST:
            raise DataError(_too_long(text))
        return self._word_map(row, text)

    def _mapped(self, row: int, text: str) -> WordMap:
        content = self.index.thumbnail(row)
        if not content:
            raise DataError(say("the index keeps no image of sample {row}", row=row))
        picture = self._decoded(content)
        with self._lock:
            return self.model.word_map(picture, text)

    def vector(self, query: Query, picture: Image.Image | None = None) -> np.ndarray:
        """Returns a query as a unit vector, float32 [dim]; `picture` is that of the query, where it is decoded."""
        parts = []
        if query.text.strip():
            parts.append((1 - query.weight, self._embed(TEXT, query.text)))
        if query.image:
            picture = self._decoded(query.image) if picture is None else picture
            parts.append((query.weight, self._embed(IMAGE, picture)))
        elif query.sample is not None:
            self.index.record(query.sample)  # or an error that says how many there are
            kind = IMAGE if IMAGE in self.among else TEXT
            parts.append((query.weight, self.index.vectors(kind).take(np.array([query.sample]))[0]))
        if len(parts) == 1:
            return _unit(parts[0][1])
        return _unit(sum(weight * _unit(vector) for weight, vector in parts))

    def _embed(self, kind: str, what: str | Image.Image) -> np.ndarray:
        self._check_reads(kind)
        return (self.model.embed_text if kind == TEXT else self.model.embed_image)(what)[0]

    def _check_reads(self, kind: str) -> None:
        if kind not in self.model.inputs:
            raise DataError(
                say("the model of this index does not read {kind}: look for something else", kind=term(f"{kind}s"))
            )

    def _uploaded(self, content: bytes) -> Image.Image:
        if not self._decoders.acquire(timeout=_PATIENCE):
            raise DataError(say("other images are still being read; ask again in a while"))
        try:
            return self._decoded(content)
        finally:
            self._decoders.release()

    def _decoded(self, content: bytes) -> Image.Image:
        self._check_reads(IMAGE)
        try:
            return self.model.live.modalities[IMAGE].opened(content)
        except BadSample as bad:
            raise DataError(say("the image cannot be read: {reason}", reason=reason(bad.reason))) from None


def _too_long(text: str) -> Message:
    return say("the text has {count:,} characters; at most {most:,} are read", count=len(text), most=LONGEST)


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if length < 1e-6:
        raise DataError(say("text and image are opposites for this model, and cancel out; give another weight"))
    return (vector / length).astype(np.float32)
