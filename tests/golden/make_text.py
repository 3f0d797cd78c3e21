"""Makes the golden files of text towers from the reference implementations in PyTorch (see README.md beside it).

Run it as `make_golden.py`. The loss is a fixed random combination of all outputs, or the masked language model's own.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers
from make_golden import LENGTHS, PAD, SEED, captions, describe, prepare
from make_vision import saved

SIZE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,  # more than the texts have
    "pad_token_id": PAD,
    "layer_norm_eps": 1e-3,  # far above the published one: that would hide in the rounding
    "attn_implementation": "eager",
}
MASK, UNSEEN = 5, -100  # id of the mask token; label of a position that does not count
PLACES = ((1, 4, 9), (2, 3), (7,))  # positions to be guessed in each text


def inputs_of(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Ids, mask and kinds: every text has a second half of kind 1."""
    ids, mask = captions(generator)
    kinds = (torch.arange(LENGTHS[0]) >= torch.tensor(LENGTHS)[:, None] // 2).long() * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


def record(model: torch.nn.Module, inputs: dict, outputs: dict, loss: torch.Tensor, extra: dict) -> dict:
    """Runs backward once and returns the arrays of a golden file."""
    model.config.architectures = [type(model).__name__]  # as a published file has it
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    weights = saved(model, dict(model.state_dict()))
    arrays = {
        "config": np.array(describe(model.config)),
        "versions": np.array(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})),
        "loss": loss.detach().numpy(),
    }
    arrays |= {f"inputs/{name}": value.numpy().astype(np.int32) for name, value in inputs.items()}
    arrays |= {f"outputs/{name}": value.detach().numpy() for name, value in outputs.items()}
    arrays |= {f"weights/{name}": value.astype(np.float16) for name, value in weights.items()}
    return arrays | {f"grads/{name}": value for name, value in saved(model, grads).items()} | extra


def bert() -> dict[str, np.ndarray]:
    """BERT with its pooler: three lengths with padding, two kinds of tokens."""
    generator = torch.Generator().manual_seed(SEED + 20)
    model = prepare(transformers.BertModel(transformers.BertConfig(**SIZE)), generator)
    inputs = inputs_of(generator)
    out = model(**inputs)
    outputs = {"tokens": out.last_hidden_state, "pooled": out.pooler_output}
    weights = {k: torch.randn(v.shape, generator=generator).half().float() for k, v in outputs.items()}
    weights["tokens"] *= inputs["attention_mask"][..., None]  # what is computed on padding means nothing
    loss = sum((outputs[name] * weights[name]).mean() for name in outputs)
    extra = {f"inputs/{name}_weight": weight.numpy().astype(np.float16) for name, weight in weights.items()}
    return record(model, inputs, outputs, loss, extra)


def bert_masked() -> dict[str, np.ndarray]:
    """BERT's masked language model, with its loss over six positions of three texts."""
    generator = torch.Generator().manual_seed(SEED + 21)
    model = prepare(transformers.BertForMaskedLM(transformers.BertConfig(**SIZE)), generator)
    inputs = inputs_of(generator)
    labels = torch.full_like(inputs["input_ids"], UNSEEN)
    for row, places in enumerate(PLACES):
        labels[row, list(places)] = inputs["input_ids"][row, list(places)]
        inputs["input_ids"][row, list(places)] = MASK
    out = model(**inputs, labels=labels)
    return record(model, inputs, {"logits": out.logits}, out.loss, {"inputs/labels": labels.numpy().astype(np.int32)})


def qwen3() -> dict[str, np.ndarray]:
    """Layers of a language model of today: causal, rotary positions, RMSNorm, SwiGLU, grouped queries, no biases."""
    generator = torch.Generator().manual_seed(SEED + 22)
    size = {k: v for k, v in SIZE.items() if k not in ("layer_norm_eps", "pad_token_id")}
    config = transformers.Qwen3Config(**size, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-3)
    model = prepare(transformers.Qwen3Model(config), generator)
    inputs = inputs_of(generator)
    del inputs["token_type_ids"]
    out = model(**inputs)
    outputs = {"tokens": out.last_hidden_state}
    weight = torch.randn(out.last_hidden_state.shape, generator=generator).half().float()
    weight *= inputs["attention_mask"][..., None]
    loss = (out.last_hidden_state * weight).mean()
    return record(model, inputs, outputs, loss, {"inputs/tokens_weight": weight.numpy().astype(np.float16)})


def main() -> None:
    """Writes the golden files into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    folder = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    for make in (bert, bert_masked, qwen3):
        arrays = make()
        path = folder / f"{make.__name__}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
