"""Models out: Hugging Face, open_clip and xmodal folders, programs for JAX alone. Each is read back first.

What a format cannot express is refused with the reason, never approximated.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.text.preparation import Preparation
from xmodal.inference import Model
from xmodal.interop import jax_programs, open_clip, open_clip_text, preprocessing
from xmodal.interop.clip import LEGACY_EOS
from xmodal.interop.leaving import as_hf, as_open_clip, objective_note
from xmodal.interop.model_card import Card, write_card
from xmodal.interop.pipelines import pipeline_misfit
from xmodal.interop.tables import InteropError
from xmodal.interop.tokenizer_files import is_gemma, swap_ids, unsaid, write_tokenizer
from xmodal.interop.weights import cast, write_weights
from xmodal.paths import map_paths
from xmodal.stored.base import CONFIG, WEIGHTS, Stored
from xmodal.stored.opening import open_stored
from xmodal.stored.project import whole_folder, write_into

# Largest difference of a unit embedding's entries between the live model and what was read back.
TOLERANCE = {"f32": 2e-5, "bf16": 5e-2}
_TEXTS = (
    "a photo of a cat",
    "Zwei rote Äpfel, 苹果 & 🍎",
    "",
    "one two three four five six seven eight nine ten " * 12,
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the live model.

    Attributes:
      folder: where.
      kind: "hf", "open_clip", "xmodal" or "jax".
      differences: largest difference of the unit embeddings' entries, by tower.
      notes: what the user should know about it.
    """

    folder: Path
    kind: str
    differences: dict[str, float]
    notes: tuple[str, ...] = ()


def export(stored: Stored, out: Path, *, to: str, dtype: str = "f32", card: Card | None = None) -> Exported:
    """Writes a model for use elsewhere, reads it back and compares.

    Args:
      stored: the model.
      out: folder to make.
      to: "hf" (Hugging Face transformers), "open_clip", "xmodal" (a folder that every command here takes, whatever
        the towers are), or "jax" (programs that need JAX alone).
      dtype: of the weights, "f32" or "bf16".
      card: what the model card says beside how to use it.

    Raises:
      InteropError: the format has no such model, or what was read back is not the live model; nothing is left behind.
    """
    writers = {"hf": _write_hf, "open_clip": _write_open_clip, "xmodal": _write_xmodal, "jax": _write_jax}
    if to not in writers:
        raise InteropError(f"--to {to}: expected {', '.join(writers)}")
    with whole_folder(out) as folder:
        reread, notes = writers[to](stored, folder, dtype)
        differences = compare(Model(stored, dtype="float32", batch_size=8), reread(), TOLERANCE[dtype])
        card = dataclasses.replace(card or Card(), title=Path(out).resolve().name)
        write_card(folder, to, stored, dtype, differences, card, notes)
    return Exported(Path(out), to, differences, tuple(notes))


def compare(live: Model, reread: Any, limit: float) -> dict[str, float]:
    """Embeds a few pictures and texts with both; returns the largest difference by input.

    Args:
      live: the model as it is.
      reread: what was read back; has `embed_image` and `embed_text`, too.
      limit: largest difference that is allowed.

    Raises:
      InteropError: a difference is larger.
    """
    seen = [model.stored.config.data.inputs.get("image") for model in (live, reread)]
    alike = len({image.background for image in seen if image}) == 1
    probes, found = {"image": pictures(seen[0], alike) if seen[0] else [], "text": _TEXTS}, {}
    for kind in live.inputs:
        a, b = (getattr(model, f"embed_{kind}")(probes[kind]) for model in (live, reread))
        found[kind] = float(np.max(np.abs(a - b))) if a.shape == b.shape else float("inf")
        if not found[kind] <= limit:
            raise InteropError(
                f"the export was read back and its {kind} embeddings differ by {found[kind]:.1e} (allowed "
                f"{limit:.0e}): it is not written. This is a fault of xmodal: please report it with the model's config"
            )
    return found


def pictures(image: Mapping[str, Any], alpha: bool = True) -> list[Image.Image]:
    """A few pictures of different shapes and modes, one of them transparent where `alpha` says so.

    The margins of their central squares are even.
    """
    rng, size = np.random.default_rng(0), image["resize"] or image["size"]
    shapes = [(size, size), (size + 6 * (size // 4), size), (size, size + 2), (2 * size, 2 * size)]
    draw = lambda shape: Image.fromarray(rng.integers(0, 256, (5, 4, 4), np.uint8), "RGBA").resize(shape)
    return [draw(shape).convert(mode) for shape, mode in zip(shapes, ("RGB", "RGBA" if alpha else "RGB", "L", "RGB"))]


# ---------------------------------------------------------------------------------------------- formats


def _write_hf(stored: Stored, folder: Path, dtype: str) -> tuple[Callable[[], Model], list[str]]:
    notes: list[str] = []
    family, config = as_hf(stored.spec)
    if family.model_type == "clip" and stored.tokenizer is not None and stored.tokenizer.eos_id == LEGACY_EOS:
        last = stored.spec.towers["text"].embed.vocab_size - 1
        stored = _with_swapped_ids(stored, LEGACY_EOS, min(last, stored.tokenizer.vocab_size - 1))
        notes.append(
            f"the end mark's id {LEGACY_EOS} and {stored.tokenizer.eos_id} are exchanged in the tokenizer and the "
            f"embedding: a CLIPModel takes an end mark of id {LEGACY_EOS} for another rule of pooling"
        )
    if stored.tokenizer is not None:
        config.get("text_config", config).update(_mark_ids(stored))
        notes += _write_texts(stored, folder, family.processor)
        if family.tokenizer_class:
            notes.append(_class_note(family.tokenizer_class, stored))
    notes += [
        note for note in (pipeline_misfit(family, stored), objective_note(family, stored.config.objectives)) if note
    ]
    config |= _labels(stored) if "id2label" in config else {}
    config["dtype"] = {"f32": "float32", "bf16": "bfloat16"}[dtype]
    _write_json(folder / CONFIG, config)
    if family.image_processor:
        image = stored.config.data.inputs.image
        processor = preprocessing.to_processor(image, family.image_processor, family.processor)
        _write_json(folder / "preprocessor_config.json", processor)
        notes += preprocessing.background_note(image, processor) or preprocessing.pipeline_note(image)
        if image.naflex.lengths:
            notes += _packing_notes(image)
        elif image.crop != "squash" and image.rounding != "down":
            notes.append(
                "transformers rounds odd margins of the central square down, this model's evaluations to even: "
                "pictures that are not square can be shifted by one pixel"
            )
    write_weights(folder / WEIGHTS, cast(family.to_weights(stored.params, stored.spec), dtype), {"format": "pt"})
    return lambda: Model(open_stored(f"hf:{folder}"), batch_size=8), notes


def _packing_notes(image: Mapping[str, Any]) -> list[str]:
    """What the reference's processor of images and texts does not read from its file."""
    length, patch = image.naflex.length or image.naflex.lengths[-1], image.naflex.patch_size
    if (length, patch) == (256, 16):
        return []
    return [
        f"AutoProcessor takes max_num_patches=256 and patch_size=16 unless it is told {length} and {patch}; "
        "AutoImageProcessor reads them from its file"
    ]


def _write_open_clip(stored: Stored, folder: Path, dtype: str) -> tuple[Callable[[], Model], list[str]]:
    family, config = as_open_clip(stored.spec, stored.config.data.inputs.image)
    text = stored.config.data.inputs.text
    words, notes = open_clip_text.write_texts(
        stored.spec.towers["text"], stored.tokenizer, Preparation.of(text), text.length
    )
    config["model_cfg"]["text_cfg"] |= words
    _write_json(folder / open_clip.CONFIG, config)
    _write_texts(stored, folder)
    weights = cast(family.to_weights(stored.params, stored.spec), dtype)
    write_weights(folder / open_clip.WEIGHTS, weights, {"format": "pt"})
    notes = [*notes, "on the Hub, set text_cfg.hf_tokenizer_name in open_clip_config.json to the repository's name"]
    notes += preprocessing.background_note(stored.config.data.inputs.image)
    notes += [note] if (note := objective_note(family, stored.config.objectives)) else []
    return lambda: Model(open_stored(f"open_clip:{folder}"), batch_size=8), notes


def _write_xmodal(stored: Stored, folder: Path, dtype: str) -> tuple[Callable[[], Model], list[str]]:
    write_into(folder, stored, dtype)
    return lambda: Model(open_stored(folder), dtype="float32", batch_size=8), []


def _write_jax(stored: Stored, folder: Path, dtype: str) -> tuple[Callable[[], Any], list[str]]:
    jax_programs.write(stored, folder, dtype)
    if stored.tokenizer is not None:
        return lambda: jax_programs.Programs(folder, stored), _write_texts(stored, folder)
    return lambda: jax_programs.Programs(folder, stored), []


# ---------------------------------------------------------------------------------------------- parts


def _class_note(name: str, stored: Stored) -> str:
    """What is lost where the reference makes a tokenizer of its own class, whatever tokenizer.json says."""
    advice = "load this tokenizer with PreTrainedTokenizerFast.from_pretrained(DIR)"
    if is_gemma(stored.tokenizer, Preparation.of(stored.config.data.inputs.text).lowers):
        return f"AutoTokenizer makes a {name} of this folder, which keeps white space as it is: join it, or {advice}"
    return f"AutoTokenizer makes a {name}, which is Gemma's, of every folder of this kind: {advice}"


def _write_texts(stored: Stored, folder: Path, processor: str = "") -> list[str]:
    """Writes the tokenizer, with what is done to texts before; returns notes on what that leaves unsaid."""
    text, preparation = stored.config.data.inputs.text, Preparation.of(stored.config.data.inputs.text)
    embeds = (tower.embed for tower in stored.spec.towers.values() if tower.embed is not None and tower.embed.decodes)
    masked = all(embed.mask_padding for embed in embeds)
    options = dict(length=text.length, preparation=preparation, masked=masked, processor=processor)
    write_tokenizer(folder, stored.tokenizer, **options)
    return (
        [f"tokenizer.json cannot say all that this model wants of texts (`clean` of the input): {rest}"]
        if (rest := unsaid(preparation))
        else []
    )


def _classes(stored: Stored) -> tuple[str, ...]:
    return next((label.classes for label in stored.inputs.values() if label.labels), ())


def _labels(stored: Stored) -> dict:
    """Names of the classes, where they are known."""
    names = {str(i): name for i, name in enumerate(_classes(stored))}
    return dict(id2label=names, label2id={name: int(i) for i, name in names.items()}) if names else {}


def _mark_ids(stored: Stored) -> dict[str, int]:
    marks = ((name, getattr(stored.tokenizer, f"{name}_id")) for name in ("bos", "eos", "pad"))
    return {f"{name}_token_id": i for name, i in marks if i is not None}


def _with_swapped_ids(stored: Stored, a: int, b: int) -> Stored:
    order = np.arange(stored.spec.towers["text"].embed.vocab_size)
    order[[a, b]] = b, a
    swap = lambda path, x: np.asarray(x)[order] if path == "text/embed/embedding" else x
    swapped = stored.with_tokenizer(swap_ids(stored.tokenizer, a, b))
    return dataclasses.replace(swapped, params=map_paths(swap, stored.params))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
