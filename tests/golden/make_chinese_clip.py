"""Makes the golden file of Chinese-CLIP from transformers (see README.md beside it).

Run it as `make_golden.py`. The model keeps the dropout of its configuration, which has no effect in evaluation mode.
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers
from make_golden import SEED, TEXT, VISION, captions, pixels, prepare, record


def chinese_clip() -> dict[str, np.ndarray]:
    """Chinese-CLIP: CLIP's ViT, BERT read at its first token, both projected without bias; three lengths, 40 px."""
    generator = torch.Generator().manual_seed(SEED + 30)
    text = {key: value for key, value in TEXT.items() if key not in ("bos_token_id", "eos_token_id")}
    config = transformers.ChineseCLIPConfig(
        vision_config=dict(**VISION, image_size=40, projection_dim=24),
        text_config=text | dict(max_position_embeddings=14, type_vocab_size=3),
        projection_dim=24,
        attn_implementation="eager",
    )
    model = prepare(transformers.ChineseCLIPModel(config), generator)
    model.config.architectures = ["ChineseCLIPModel"]  # as a published file has it
    ids, mask = captions(generator)
    return record(model, {"pixel_values": pixels(generator, 40, 40), "input_ids": ids, "attention_mask": mask})


def main() -> None:
    """Writes the golden file into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    path = parser.parse_args().out / "chinese_clip.npz"
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    arrays = chinese_clip()
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
