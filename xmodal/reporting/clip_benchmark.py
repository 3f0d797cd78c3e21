"""Results as CLIP_benchmark writes them: one file an evaluation, with its names of figures; its `build` reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal.reporting.files import write_json

# evaluator -> (task there, {figure there: path of it here})
TASKS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "zero_shot": (
        "zeroshot_classification",
        {"acc1": ("top1",), "acc5": ("top5",), "mean_per_class_recall": ("mean_per_class",)},
    ),
    "retrieval": (
        "zeroshot_retrieval",
        {f"image_retrieval_recall@{k}": ("text_to_image", f"R@{k}") for k in (1, 5, 10)}
        | {f"text_retrieval_recall@{k}": ("image_to_text", f"R@{k}") for k in (1, 5, 10)},
    ),
    "linear_probe": (
        "linear_probe",
        {"lp_acc1": ("top1",), "lp_acc5": ("top5",), "lp_mean_per_class_recall": ("mean_per_class",)},
    ),
    "pairs": ("image_caption_selection", {"image_acc": ("image",), "text_acc": ("text",), "acc": ("group",)}),
}


def documents(model: str, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns name of the evaluation -> its document; evaluations that CLIP_benchmark does not have are left out.

    Args:
      model: what the model is called.
      results: nested results.
    """
    found = {}
    for kind, (task, names) in TASKS.items():
        for name, node in results.get(kind, {}).items():
            metrics = {other: value for other, path in names.items() if (value := _at(node, path)) is not None}
            if "acc" in names and "acc" not in metrics:  # one image: it is always the closest one
                metrics |= {"image_acc": 1.0, "acc": metrics["text_acc"]}
            step = f"step {results['step']}" if "step" in results else ""
            head = {"dataset": name, "model": str(model), "pretrained": step, "task": task}
            key = name if name not in found else f"{name}_{kind}"
            found[key] = head | {"metrics": metrics, "language": "en"}
    return found


def write_documents(folder: Path, model: str, results: Mapping[str, Any]) -> None:
    """Writes each document as `<evaluation>.json` into a folder."""
    for name, document in documents(model, results).items():
        write_json(folder / f"{name}.json", document)


def _at(node: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
