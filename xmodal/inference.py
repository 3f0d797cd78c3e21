"""Three lines to embeddings: `model = xmodal.load(...)`, `model.embed_image(images)`, `model.embed_text(texts)`.

Images and texts are prepared by what is stored with the weights, so nothing about a model has to be known to use it.
This is the friendly layer; `xmodal.live.Live` does the work.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.errors import DataError
from xmodal.config import ConfigError
from xmodal.distributed.mesh import make_mesh
from xmodal.evaluation import word_maps
from xmodal.evaluation.classes import ensemble, fill, has_place
from xmodal.evaluation.word_maps import WordMap
from xmodal.finite import check_rows
from xmodal.live import Live
from xmodal.preparing import Picture, named
from xmodal.stored.base import Stored
from xmodal.stored.opening import open_stored


def load(
    where: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    batch_size: int = 256,
    step: int | None = None,
    ema: bool | None = None,
) -> "Model":
    """Loads a model, ready to embed.

    Args:
      where: a run folder, an imported or exported folder, or "hf:DIR".
      dtype: "bfloat16" computes in bfloat16 (weights, norms and embeddings stay in float32), "float32" does not; None
        takes what the model was trained with.
      mesh: devices, of this process; by default all of them, each with a share of the batch.
      batch_size: pictures or texts embedded at once.
      step: checkpoint of a run; None takes the newest good one.
      ema: averaged or trained weights of a run; None takes those that its evaluations used.

    Raises:
      ConfigError: there is no model that can be read; the message says what is wrong with it.
    """
    return Model(open_stored(where, step=step, ema=ema), dtype=dtype, mesh=mesh, batch_size=batch_size)


class Model:
    """A model with its tokenizer and the preparation of its images."""

    def __init__(
        self,
        stored: Stored,
        *,
        dtype: str | None = None,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int = 256,
    ):
        """See `load`."""
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least 1 picture or text is embedded at once")
        mesh = mesh or make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.local_devices())
        self.live = Live.place(stored, mesh, dtype=dtype or "")
        self.stored = self.live.stored  # without the towers' weights: those on the devices are the ones that count
        self.tokenizer = stored.tokenizer
        self.inputs = tuple(self.live.inputs)  # what can be embedded, such as "image"
        self.batch_size = self.live.rows(batch_size)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return next(iter(self.stored.spec.towers.values())).pooled_width

    def embed_image(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
        """Embeds pictures.

        Args:
          pictures: one or several, each a path, the bytes of a file, a Pillow image, or uint8 [height, width(, 3)].

        Returns:
          Unit vectors, float32 [pictures, dim].

        Raises:
          DataError: a picture cannot be read; the message says which.
        """
        return self.embed("image", [pictures] if isinstance(pictures, Picture) else list(pictures))

    def embed(self, name: str, parts: Sequence[Any]) -> np.ndarray:
        """Embeds what any input takes that a tower reads alone.

        Args:
          name: of the input, one of `inputs`.
          parts: what the input's `evaluate` takes: files, arrays, texts.

        Returns:
          Unit vectors, float32 [parts, dim].

        Raises:
          DataError: a part cannot be read; the message says which.
        """
        prepare = lambda start, stop: self.live.preparing.rows(name, parts[start:stop], start)
        found, noun = self.embed_rows(name, prepare, len(parts)), self.live.modalities[name].noun
        return check_rows(found, "the embedding", lambda i: named(i, parts[i], noun))

    def embed_text(self, texts: str | Iterable[str]) -> np.ndarray:
        """Embeds texts, one or several, to unit vectors, float32 [texts, dim]."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [t for t in texts if not isinstance(t, str)]:
            raise DataError(f"embed_text takes strings, got {wrong[0]!r}")
        found = self.embed_rows("text", lambda start, stop: self.prepare_texts(texts[start:stop]), len(texts))
        return check_rows(found, "the embedding", lambda i: f"the text {texts[i]!r}")

    def prepare_images(self, pictures: Sequence[Picture], first: int = 0) -> dict[str, np.ndarray]:
        """Returns the model's input for some images, of which the first is number `first` of the user's."""
        return self.live.preparing.rows("image", pictures, first)

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the model's input for some texts, as users have them."""
        return self.live.preparing.rows("text", texts)

    def zero_shot(
        self,
        pictures: Picture | Iterable[Picture],
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("{label}",),
    ) -> np.ndarray:
        """Says how well each label fits each picture.

        Args:
          pictures: as for `embed_image`.
          labels: class names.
          templates: prompts with `{label}`, `{c}` or `{}`, such as "a photo of a {label}"; a label's prompts are
            averaged after normalisation (Radford et al. 2021, section 3.1.4).

        Returns:
          Probabilities, float32 [pictures, labels]: over the labels (softmax) for a model trained so, of each label by
          itself (sigmoid) for SigLIP.
        """
        labels = list(labels)
        if bad := [t for t in templates if not has_place(t)] or not labels or not templates:
            raise DataError(
                f"zero_shot needs labels, and templates with a place {{label}}; got {bad if labels else []}"
            )
        images = self.embed_image(pictures)
        texts = self.embed_text([fill(t, label) for label in labels for t in templates])
        classes = ensemble(texts, [len(templates)] * len(labels))
        learned = self.live.temperature("image", "text")
        if learned is None:
            raise ConfigError(
                f"{self.stored.origin} has no contrastive objective between images and texts: no zero_shot"
            )
        logits = np.exp(learned.logit_scale) * (images @ classes.T) + (learned.logit_bias or 0.0)
        if learned.logit_bias is not None:
            return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def word_map(self, picture: Picture, text: str) -> WordMap:
        """Says which patches of a picture each word of a text points to.

        Args:
          picture: one picture, as for `embed_image`.
          text: one text; words beyond the model's length have no map.

        Returns:
          Cosines of each word with each patch, and the picture as the model saw it: see `WordMap`.
        """
        return word_maps.word_map(self.live, picture, text)

    @property
    def no_word_maps(self) -> str:
        """Why `word_map` has nothing to say; "" where it has."""
        return word_maps.no_word_maps(self.live)

    @property
    def aligns_words(self) -> bool:
        """Whether an objective of the model compares patches or words, and not whole images and texts alone."""
        return word_maps.aligns_words(self.live)

    def embed_rows(self, kind: str, prepare: Callable[[int, int], Mapping[str, np.ndarray]], count: int) -> np.ndarray:
        """Embeds rows that are prepared batch by batch; see `Live.embed_rows`."""
        return self.live.embed_rows(kind, prepare, count, self.batch_size)
