"""The README.md of an exported model: how to use it, the run's own figures, and its recipe."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import xmodal
from xmodal.interop.huggingface import family_for
from xmodal.interop.pipelines import pipeline_misfit
from xmodal.models.embed import inputs_of
from xmodal.reporting.formatting import compact
from xmodal.reporting.results import evaluation_tables
from xmodal.stored.base import Stored
from xmodal.stored.starting import Starting


@dataclasses.dataclass(frozen=True)
class Card:
    """What the exporting command knows of a run.

    Attributes:
      weights: which they are, such as "step 500, averaged weights".
      results: nested figures of these very weights; {} when there are none.
      labels: two classes for the examples, in the language of the model.
      title: of the card; "" takes the name of the place that the model comes from.
    """

    weights: str = ""
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, str] = ("a cat", "a dog")
    title: str = ""


_USE = {
    "hf": """```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="DIR")
classify("picture.jpg", candidate_labels=LABELS, hypothesis_template="{}")
```""",
    "open_clip": """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIR")
tokenizer = open_clip.get_tokenizer("local-dir:DIR")
```

Before a push to the Hub, set `text_cfg.hf_tokenizer_name` in `open_clip_config.json` to the repository's name.""",
    "xmodal": """```python
import xmodal

model = xmodal.load("DIR")
embeddings = model.embed_{kind}("{example}")
```

So do `python -m xmodal eval`, `embed` and `export`, and a recipe's `init_from`.""",
}
_USE_SIGMOID = """```python
from transformers import AutoImageProcessor, AutoModel, PreTrainedTokenizerFast

model, processor = AutoModel.from_pretrained("DIR"), AutoImageProcessor.from_pretrained("DIR")
tokenizer = PreTrainedTokenizerFast.from_pretrained("DIR")
texts = tokenizer(labels, padding="max_length", max_length={length}, truncation=True, return_tensors="pt")
probabilities = model(**processor(images=images, return_tensors="pt"), **texts).logits_per_image.sigmoid()
```"""
_USE_IMAGES = """```python
from transformers import AutoImageProcessor, AutoModel{head}

model, processor = AutoModel{head}.from_pretrained("DIR"), AutoImageProcessor.from_pretrained("DIR")
outputs = model(**processor(images=picture, return_tensors="pt")).{output}
```"""
_USE_TEXTS = """```python
from transformers import AutoModel{head}, AutoTokenizer

model, tokenizer = AutoModel{head}.from_pretrained("DIR"), AutoTokenizer.from_pretrained("DIR")
outputs = model(**tokenizer(texts, padding=True, return_tensors="pt")).{output}
```"""
_JAX = """The tower is a program (serialised StableHLO) with its weights beside it. It needs JAX alone
(`pip install jax flatbuffers`), takes batches of any size, is lowered for cpu, cuda and tpu, gives unit vectors:

```python
import jax.export, numpy as np

tower = jax.export.deserialize(open("{name}.jaxexport", "rb").read())
weights = dict(np.load("{name}.npz"))
embeddings = tower.call(weights, {{{inputs}}})
```

{preparation}"""
_IMAGE = """Pictures are RGB, {background}{how} with Pillow's {filter} filter; the program normalises them."""
_BACKGROUNDS = dict(drop="without their alpha channel, ", white="on white where they are transparent, ",
                    black="on black where they are transparent, ")  # fmt: skip
_PATCHES = """resized to at most {length} patches of {patch} x {patch} pixels at their own aspect ratio (as
`Siglip2ImageProcessor` does it, `image_grid` says how many down and across), cut into them row by row,"""
_TEXT = """Texts are tokenised by `tokenizer.json` (`tokenizers.Tokenizer.from_file`) to {length} ids, cut in front of
the end mark and padded on the right with id {pad}; `text_valid` is true for all that is not padding."""


def write_card(
    folder: Path, to: str, stored: Stored, dtype: str, differences: Mapping[str, float], card: Card,
    notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Writes README.md into an exported folder, and the model's settings beside it as xmodal_config.json.

    Args:
      folder: to write to.
      to: kind of the export.
      stored: the model.
      dtype: of the weights.
      differences: of the embeddings when the export was read back.
      card: what the command knows of the run.
      notes: what its users should know.
    """
    config = stored.config.to_dict()
    for entry in (*config["data"]["sources"].values(), *config["evals"].values()):
        for place in ("urls", "source", "train", "val"):  # where data lie is nobody's business, and may hold a password
            entry.pop(place, None)
    (folder / "xmodal_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    library = {"hf": "transformers", "open_clip": "open_clip", "xmodal": "xmodal", "jax": "jax"}[to]
    task, use = _use(stored, to, card)
    head = ["---", f"library_name: {library}", f"pipeline_tag: {task}", "tags: [xmodal]", "---"]
    parts = [
        "\n".join(head),
        f"# {card.title or Path(stored.origin).name}",
        f"Exported by xmodal {xmodal.__version__}"
        + (f": {card.weights}." if card.weights else "."),
        "## Use", use,
        "## Model", _towers(stored),
        "## Figures", _figures(card.results),
        "## Recipe", _recipe(stored),
        "## Export", _checked(dtype, differences), *(f"Note: {note}." for note in notes),
    ]  # fmt: skip
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _use(stored: Stored, to: str, card: Card) -> tuple[str, str]:
    """Returns what the model is for, in the Hub's words, and how it is used."""
    if to == "xmodal":
        kind = "image" if "image" in inputs_of(stored.config.model.towers).values() else "text"
        return "feature-extraction", _USE[to].format(
            kind=kind, example=dict(image="picture.jpg", text=card.labels[0])[kind]
        )
    if to == "hf" and list(stored.spec.towers) == ["text"]:
        if stored.spec.towers["text"].head == "masked":
            return "fill-mask", _USE_TEXTS.format(head="ForMaskedLM", output="logits")
        return "feature-extraction", _USE_TEXTS.format(head="", output="last_hidden_state")
    if to == "jax" or "text" in stored.spec.towers:
        use = _USE[to].replace("LABELS", _quoted(card.labels)) if to != "jax" else _jax_use(stored)
        if to == "hf" and pipeline_misfit(family_for(stored.spec), stored):
            use = _USE_SIGMOID.format(length=stored.config.data.inputs.text.length)
        return "zero-shot-image-classification", use
    if any(objective.type == "classification" for objective in stored.config.objectives.values()):
        return "image-classification", _USE_IMAGES.format(head="ForImageClassification", output="logits")
    return "image-feature-extraction", _USE_IMAGES.format(head="", output="pooler_output")


def _quoted(labels: Sequence[str]) -> str:
    return f"[{', '.join(json.dumps(label, ensure_ascii=False) for label in labels)}]"


def _jax_use(stored: Stored) -> str:
    blocks = []
    for name, kind in stored.spec.alone.items():
        modality = stored.inputs[kind]
        arrays = modality.read(2).items()
        inputs = ", ".join(f'"{key}": np.ones({spec.shape}, np.{np.dtype(spec.dtype).name})' for key, spec in arrays)
        if modality.tokenized:
            preparation = _TEXT.format(length=modality.length, pad=modality.vocabulary.pad_id)
        else:
            shown = dict(how=_shown(modality), filter=modality.filter, background=_BACKGROUNDS[modality.background])
            preparation = _IMAGE.format(**shown)
        blocks.append(f"### {name}\n\n" + _JAX.format(name=name, inputs=inputs, preparation=preparation))
    return "\n\n".join(blocks)


def _pictures(image: Mapping[str, Any] | None) -> str:
    return f"{_room(image)}, crop {image.crop}" if image else "none"


def _room(image: Mapping[str, Any]) -> str:
    return f"{tuple(image.naflex.lengths)} patches at most" if image.naflex.lengths else f"{image.size} pixels"


def _shown(image: Any) -> str:
    """Says how pictures get the shape that the model takes."""
    if packing := image.packing:
        return _PATCHES.format(length=packing.length, patch=packing.patch_size)
    side, larger = f"{image.size} x {image.size} pixels", image.resize or image.size
    cut = f"the central {side} cut out,"
    if image.crop != "squash":
        return f"their shorter side resized to {larger} pixels and {cut}"
    return f"resized to {side}" if larger == image.size else f"resized to {larger} x {larger} pixels and {cut}"


def _towers(stored: Stored) -> str:
    import jax

    count = lambda name: compact(sum(a.size for a in jax.tree.leaves(stored.params[name])))
    rows = [
        [name, t.width, t.trunk.depth, t.pool, t.pooled_width, count(name)] for name, t in stored.spec.towers.items()
    ]
    return _table(["tower", "width", "layers", "pooling", "embedding", "parameters"], rows)


def _figures(results: Mapping[str, Any]) -> str:
    tables = [f"**{title}**\n\n" + _table(columns, rows) for title, columns, rows in evaluation_tables(results)]
    if not tables:
        return "None were measured with exactly these weights."
    about = (
        f"After {results['samples']:,} samples; in square brackets 95 % intervals, in round ones what guessing gives."
    )
    return "\n\n".join([about, *tables])


def _recipe(stored: Stored) -> str:
    config = stored.config
    if not config.data.sources:
        return f"Converted from `{Path(stored.origin).name}`; its training is described there."
    facts = {
        "objectives": ", ".join(f"{name} ({o.type}, weight {o.get('weight', 1.0)})"
                                for name, o in config.objectives.items()),
        "batch size": config.batch_size,
        "length": f"{config.schedule.total}, warm-up {config.schedule.warmup}, {config.schedule.decay}",
        "optimizer": f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}, weight decay "
                     f"{config.optimizer.weight_decay:g}",
        "data": ", ".join(config.data.sources),
        "pictures": _pictures(config.data.inputs.get("image")),
        "started from": str(Starting.of(config)) or "random weights",
    }  # fmt: skip
    return _table(["setting", "value"], list(facts.items())) + "\n\nAll settings are in `xmodal_config.json`."


def _checked(dtype: str, differences: Mapping[str, float]) -> str:
    found = ", ".join(f"{value:.1e} ({name})" for name, value in differences.items())
    return f"Weights in {dtype}. Read back after writing, the largest difference of an embedding's entries is {found}."


def _table(columns: list, rows: list) -> str:
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
