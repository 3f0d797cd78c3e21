"""Makes `scores.npz`: how well transformers' CLIP and SigLIP find pictures and captions, by CLIP_benchmark.

The models are those of `clip_vit.npz` and `siglip.npz`, as `tests/interop/folders.py` writes them. Needs torch,
torchvision and transformers, CLIP_benchmark as `make_evaluation.py` does, and what the project requires.

    python -m tests.golden.make_scores
"""

import json
import os
import pathlib
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from clip_benchmark.metrics import zeroshot_retrieval
from PIL import Image

from tests.interop import folders

SEED, COUNT, RECALLS = 20260728, 24, (1, 5, 10)
NAMES = ("clip_vit", "siglip")
PROCESSORS = (transformers.CLIPImageProcessor, transformers.SiglipImageProcessor)


def squares(rng: np.random.Generator) -> np.ndarray:
    """uint8 [2, COUNT, 6, 6, 3]: pictures of one colour a patch, to train with, and others of the same things."""
    centres = rng.integers(0, 256, (COUNT, 6, 6, 3))
    return np.clip(centres + rng.integers(-60, 61, (2, *centres.shape)), 0, 255).astype(np.uint8)


class Reference:
    """A model of transformers with what its own processor and tokenizer prepare, as CLIP_benchmark calls it."""

    def __init__(self, folder: pathlib.Path, processor: type):
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = processor.from_pretrained(folder)
        pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token=pad
        )
        self.masked = isinstance(self.model, transformers.CLIPModel)

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """Ids and their mask, [texts, 2, LENGTH]: CLIP_benchmark hands on one array."""
        found = self.tokenizer(texts, padding="max_length", max_length=folders.LENGTH, return_tensors="pt")
        return torch.stack([found["input_ids"], found["attention_mask"]], dim=1)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = dict(attention_mask=tokens[:, 1]) if self.masked else {}
        return self.model.get_text_features(input_ids=tokens[:, 0], **mask).pooler_output


def scores(name: str, processor: type, pictures: np.ndarray, captions: list[str]) -> dict[str, float]:
    """CLIP_benchmark's recalls of one picture a caption."""
    with tempfile.TemporaryDirectory() as folder:
        model = Reference(folders.hugging_face(pathlib.Path(folder) / name, name), processor)
    shown = [Image.fromarray(folders.enlarged(picture, name)) for picture in pictures]
    pixels = model.processor(images=shown, return_tensors="pt")["pixel_values"]
    batches = [(pixels[i : i + 8], [[text] for text in captions[i : i + 8]]) for i in range(0, COUNT, 8)]
    found = zeroshot_retrieval.evaluate(model, batches, model.tokens, "cpu", amp=False, recall_k_list=list(RECALLS))
    return {key: float(value) for key, value in found.items()}


def main() -> None:
    pictures = squares(np.random.default_rng(SEED))
    captions = [f"w{10 + 3 * i} w{11 + 3 * i}" for i in range(COUNT)]
    arrays = {"train": pictures[0], "held_out": pictures[1], "captions": np.array(captions)}
    for name, processor in zip(NAMES, PROCESSORS):
        for key, value in scores(name, processor, pictures[1], captions).items():
            arrays[f"{name}/{key}"] = np.array(value)
            print(name, key, f"{value:.4f}")
    versions = {m.__name__: m.__version__ for m in (torch, transformers)} | dict(clip_benchmark="1.6.2")
    path = pathlib.Path(__file__).with_name("scores.npz")
    np.savez_compressed(path, versions=np.array(json.dumps(versions)), **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
