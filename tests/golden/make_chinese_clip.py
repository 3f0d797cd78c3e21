"""Makes the golden file of Chinese-CLIP from transformers (see README.md beside it).

Run it as `make_golden.py`. The model keeps the dropout of its configuration, which has no effect in evaluation mode.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers
from make_golden import SEED, TEXT, VISION, captions, pixels, prepare, record

# [PAD] is PAD of the configuration; of "苹果" both characters are there, of "未知" none.
VOCAB = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *"一只红色的苹果猫在桌子上", "red", "apple", "##s", "!"]
TEXTS = ["一只红色的苹果", "猫在桌子上", "Red apples 苹果!", "", "未知的猫", "苹果" * 20]


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
    arrays = record(model, {"pixel_values": pixels(generator, 40, 40), "input_ids": ids, "attention_mask": mask})
    return arrays | texts(model)


def texts(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Chinese texts, the vocabulary of their tokenizer, and what the model makes of them: unit vectors."""
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}, do_lower_case=True)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=14, return_tensors="pt")
    with torch.no_grad():
        found = model.get_text_features(**batch).pooler_output
    unit = found / found.norm(dim=-1, keepdim=True)
    return {
        "vocab": np.array(json.dumps(VOCAB, ensure_ascii=False)),
        "texts": np.array(json.dumps(TEXTS, ensure_ascii=False)),
        "outputs/texts": unit.numpy(),
        "outputs/texts_ids": batch["input_ids"].numpy().astype(np.int32),
    }


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
