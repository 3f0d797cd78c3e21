"""Makes `lines.npz`: a retrieval tar as CLIP_benchmark's are (a caption a line of KEY.txt), and its figures on it.

Needs CLIP_benchmark and torch. Images, texts and embeddings are made up here.
"""

import io
import json
import pathlib
import tarfile

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_retrieval
from PIL import Image

COUNTS, DIM = (5, 5, 5, 2, 1, 5, 3, 5, 5, 5, 5, 4), 6


class Model:
    """Looks its embeddings up."""

    def __init__(self, texts: np.ndarray):
        self.texts = torch.tensor(texts)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode_text(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.texts[numbers]


def packed(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i, text in enumerate(texts):
            image = io.BytesIO()
            Image.new("RGB", (8, 8), (20 * i, 9 * i, 255 - 20 * i)).save(image, "PNG")
            for name, content in ((f"{i:04}.png", image.getvalue()), (f"{i:04}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def main() -> None:
    rng = np.random.default_rng(11)
    texts = ["\n".join(f"Caption {j} of thing {i}" for j in range(count)) for i, count in enumerate(COUNTS)]
    texts[5] = texts[5].replace("\n", "\r\n") + "\n"
    image = np.repeat(np.arange(len(COUNTS)), COUNTS)
    images = rng.normal(size=(len(COUNTS), DIM)).astype(np.float32)
    captions = (images[image] + 1.5 * rng.normal(size=(len(image), DIM))).astype(np.float32)
    lines = [text.splitlines() for text in texts]  # as its `build_wds_dataset` maps the texts
    flat = [line for own in lines for line in own]
    number = {line: place for place, line in enumerate(flat)}
    batches = [(torch.tensor(images[i : i + 5]), lines[i : i + 5]) for i in range(0, len(lines), 5)]
    tokenise = lambda given: torch.tensor([number[line] for line in given])
    found = zeroshot_retrieval.evaluate(Model(captions), batches, tokenise, "cpu", amp=False, recall_k_list=[1, 5, 10])
    path = pathlib.Path(__file__).with_name("lines.npz")
    np.savez_compressed(
        path, tar=np.frombuffer(packed(texts), np.uint8), images=images, texts=captions, captions=np.array(flat),
        figures=np.array(json.dumps(found)),
    )  # fmt: skip
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", found)


if __name__ == "__main__":
    main()
