"""Three lines to embeddings: `model = xmodal.load(...)`, `model.embed_image(pictures)`, `model.embed_text(texts)`.

Pictures and texts are prepared by what is stored with the weights, so nothing about a model has to be known to use it.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from data_pipelines.errors import BadSample, DataError
from data_pipelines.images.arrays import ImageArrays
from data_pipelines.images.decode import full_image, to_rgb
from data_pipelines.images.device import preprocess_batch
from data_pipelines.text.preparation import Preparation
from xmodal.config import ConfigError, make_spec
from xmodal.distributed.mesh import batch_sharding, make_mesh, num_batch_shards
from xmodal.distributed.sharding import shardings
from xmodal.evaluation.classes import ensemble, fill, has_place
from xmodal.evaluation.word_maps import WordMap, grid_of, score_words, word_tokens
from xmodal.finite import check_rows
from xmodal.interop.folder import Stored, open_stored
from xmodal.models.model import Functional, embeds_alone
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.contrastive import normalize, of_all

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray
CONTRASTIVE = ("softmax", "sigmoid", "distillation")  # types of objectives with a temperature of whole embeddings
_SIZES = (1, 8, 64)  # batch sizes that are compiled, beside `batch_size`; a smaller batch is padded to the next one


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
    """A model with its tokenizer and the preparation of its pictures."""

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
        # Without the towers' weights: those on the devices are the ones that count.
        self.stored = dataclasses.replace(stored, params={"objectives": stored.params.get("objectives", {})})
        self.tokenizer = stored.tokenizer
        config = stored.config.copy_and_resolve_references()
        config.model.dtype = dtype or config.model.dtype
        self._data, self._prepare = config.data, Preparation.of(config.data.text)
        self._mesh = mesh or make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.local_devices())
        model = Functional.build(Stored(config, {}, None, stored.origin).spec)
        params = model.own(stored.params)
        placed = shardings(jax.eval_shape(lambda p: p, params), self._mesh, config.mesh.rules)
        self._params = jax.tree.map(lambda a, s: jax.device_put(np.asarray(a), s), params, placed)
        self._names = {kind: name for name, kind in own_inputs(model).items()}
        jitted = lambda call: {kind: jax.jit(functools.partial(call, model, n)) for kind, n in self._names.items()}
        self._towers, self._locals = jitted(self._embed), jitted(self._embed_local)
        shards = num_batch_shards(self._mesh)
        up = lambda size: -(-size // shards) * shards
        self.inputs = tuple(self._towers)  # "image", "text": what can be embedded
        self.batch_size = up(batch_size)
        self._sizes = sorted({up(size) for size in (*_SIZES, batch_size) if size <= batch_size})

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
        pictures = [pictures] if isinstance(pictures, Picture) else list(pictures)
        prepare = lambda start, stop: self.prepare_images(pictures[start:stop], start)
        found = self.embed_rows("image", prepare, len(pictures))
        return check_rows(found, "the embedding", lambda i: _named(i, pictures[i]))

    def embed_text(self, texts: str | Iterable[str]) -> np.ndarray:
        """Embeds texts, one or several, to unit vectors, float32 [texts, dim]."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [t for t in texts if not isinstance(t, str)]:
            raise DataError(f"embed_text takes strings, got {wrong[0]!r}")
        found = self.embed_rows("text", lambda start, stop: self.prepare_texts(texts[start:stop]), len(texts))
        return check_rows(found, "the embedding", lambda i: f"the text {texts[i]!r}")

    def prepare_images(self, pictures: Sequence[Picture], first: int = 0) -> dict[str, np.ndarray]:
        """Returns the model's input for some pictures, of which the first is number `first` of the user's."""
        arrays = ImageArrays(self._data.image)
        batch = arrays.empty(len(pictures))

        def prepare(row: int, picture: Picture) -> None:
            arrays.evaluate(_decoded(first + row, picture, arrays), batch, row)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(prepare, itertools.count(), pictures))
        return batch

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the model's input for some texts, as users have them."""
        return self._encoded([self._prepare(text) for text in texts])

    def _encoded(self, prepared: Sequence[str]) -> dict[str, np.ndarray]:
        ids, valid = self.tokenizer.encode(prepared, self._data.text.length)
        return {"text": ids, "text_valid": valid}

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
        own = self._objective()
        logits = np.exp(own["logit_scale"]) * (images @ classes.T) + own.get("logit_bias", 0.0)
        if "logit_bias" in own:
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
        if self.no_word_maps:
            raise DataError(f"there are no word maps: {self.no_word_maps}")
        text = self._prepare(text)
        words = word_tokens(self.tokenizer, text, self._data.text.length)
        if not words:
            raise DataError(f"a word map needs a text with words, got {text!r}")
        images, texts = self.prepare_images([picture]), self._encoded([text])
        patches, tokens = (self._local(kind, batch) for kind, batch in (("image", images), ("text", texts)))
        scores = score_words([word.tokens for word in words], tokens, patches)
        if "image_grid" in images:
            rows, columns = map(int, images["image_grid"][0])
        else:
            rows, columns = grid_of(self.stored.spec.towers[self._names["image"]], patches.shape[0])
        scores = scores[:, : rows * columns].reshape(-1, rows, columns)  # behind them is padding
        letters, spans, _ = zip(*words)
        return WordMap(letters, scores, ImageArrays(self._data.image).shown(images, 0), text, spans)

    @property
    def no_word_maps(self) -> str:
        """Why `word_map` has nothing to say; "" where it has."""
        for kind in ("image", "text"):
            if kind not in self._names:
                return f"no tower of the model reads {kind}s alone"
        grid = getattr(self.stored.spec.towers[self._names["image"]].embed, "grid", None)
        return "the image tower makes a single patch of a picture" if grid == (1, 1) else ""

    @property
    def aligns_words(self) -> bool:
        """Whether an objective of the model compares patches or words, and not whole pictures and texts alone."""
        for name, entry in self.stored.config.objectives.items():
            own = {key: value for key, value in entry.items() if key != "type"}
            needs = make_spec(OBJECTIVES[entry["type"]], own, f"objectives.{name}").needs
            if any(need.endswith(".local") for need in needs):
                return True
        return False

    def _local(self, kind: str, batch: Mapping) -> np.ndarray:
        """Unit patches or words of the first row, [seq, dim]."""
        self._check(kind)
        batch = {name: np.repeat(a, self._sizes[0], axis=0) for name, a in batch.items()}
        batch = jax.device_put(batch, batch_sharding(self._mesh))
        with jax.set_mesh(self._mesh):
            found = np.asarray(self._locals[kind](self._params, batch)[:1])
        return check_rows(found, "the local embedding", lambda _: f"the {kind}")[0]

    def _objective(self) -> dict[str, float]:
        for name, own in self.stored.params.get("objectives", {}).items():
            entry = self.stored.config.objectives[name]
            if entry["type"] in CONTRASTIVE and {"image", "text"} == set(entry["between"]):
                return {key: float(value) for key, value in of_all(own).items()}
        raise ConfigError(f"{self.stored.origin} has no contrastive objective between images and texts: no zero_shot")

    def _check(self, kind: str) -> None:
        if kind not in self._towers:
            raise ConfigError(f"{self.stored.origin} has no tower that embeds {kind}s alone")

    def _embed(self, model: Functional, name: str, params: Mapping, batch: Mapping) -> jax.Array:
        return normalize(self._output(model, f"{name}.pooled", params, batch))

    def _embed_local(self, model: Functional, name: str, params: Mapping, batch: Mapping) -> jax.Array:
        return normalize(self._output(model, f"{name}.local", params, batch)["x"])

    def _output(self, model: Functional, output: str, params: Mapping, batch: Mapping):
        batch = preprocess_batch(batch, None, self._data.image)
        return model(params, batch, frozenset({output}))[output]

    def embed_rows(self, kind: str, prepare: Callable[[int, int], Mapping[str, np.ndarray]], count: int) -> np.ndarray:
        """Embeds rows that are prepared batch by batch: while the devices work, the next batch is made.

        Args:
          kind: "image" or "text".
          prepare: gives the model's input for the rows [start, stop), as `prepare_images` and `prepare_texts` do; it
            is asked for all rows in order, once.
          count: of the rows.

        Returns:
          Unit vectors, float32 [count, dim].
        """
        self._check(kind)
        if not count:
            return np.zeros((0, self.dim), np.float32)
        step, pending, parts = self._sizes[-1], None, []
        for start in range(0, count, step):
            batch = prepare(start, stop := min(start + step, count))
            size = next(s for s in self._sizes if s >= stop - start)
            pad = lambda a: np.concatenate([a, np.repeat(a[-1:], size - len(a), axis=0)])  # noqa: B023 (used at once)
            batch = jax.device_put({name: pad(a) for name, a in batch.items()}, batch_sharding(self._mesh))
            with jax.set_mesh(self._mesh):
                result = self._towers[kind](self._params, batch)
            if pending is not None:
                parts.append(np.asarray(pending[0])[: pending[1]])
            pending = result, stop - start
        parts.append(np.asarray(pending[0])[: pending[1]])
        return np.concatenate(parts).astype(np.float32)


def own_inputs(model: Functional) -> dict[str, str]:
    """Returns {tower: input} of the towers that embed one modality by themselves."""
    return embeds_alone(model.spec.towers)


def _decoded(number: int, picture: Picture, arrays: ImageArrays) -> Image.Image:
    """Reads a picture as RGB."""
    try:
        if isinstance(picture, np.ndarray):
            grey = picture.ndim == 2
            if picture.dtype != np.uint8 or not (grey or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
                raise BadSample(f"expected uint8 [height, width, 3], got {picture.dtype} {picture.shape}")
            picture = Image.fromarray(picture)
        if isinstance(picture, Image.Image):
            return to_rgb(picture, arrays.options.background)
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        return full_image(data, arrays.options)
    except (BadSample, OSError, ValueError) as error:
        raise DataError(f"{_named(number, picture)} cannot be used: {error}") from None


def _named(number: int, picture: Picture) -> str:
    """What messages call a picture."""
    return f"picture {picture if isinstance(picture, str | os.PathLike) else f'number {number}'}"
