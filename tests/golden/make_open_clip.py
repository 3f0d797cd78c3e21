"""Makes `clip_vit_wide.npz`: open_clip's CLIP with a ViT for pictures that are not square (transformers wants squares).

Run it as `make_resnet.py`. The reference computes in float64.
"""

import argparse
import json
import pathlib

import numpy as np
import open_clip
import torch
from make_golden import EOS, LENGTHS, PAD, SEED, captions, nhwc, pixels, prepare
from make_resnet import contrast

HEIGHT, WIDTH = 24, 40
NORM = dict(norm_kwargs=dict(eps=2e-3))  # an epsilon of 1e-5 would hide in the rounding


def clip_vit_wide() -> dict[str, np.ndarray]:
    """3 x 5 patches, quick GELU, causal text of three lengths with padding, pooled at the first eos; CLIP's loss."""
    generator = torch.Generator().manual_seed(SEED + 34)
    config = dict(
        embed_dim=12, quick_gelu=True,
        vision_cfg=dict(image_size=[HEIGHT, WIDTH], layers=2, width=16, head_width=8, patch_size=8, mlp_ratio=1.5,
                        **NORM),
        text_cfg=dict(context_length=LENGTHS[0], vocab_size=99, width=16, heads=2, layers=2, mlp_ratio=2.5,
                      pool_type="eos", eos_id=EOS, pad_id=PAD, **NORM),
    )  # fmt: skip
    model = prepare(open_clip.CLIP(**config), generator).double()
    ids, mask = captions(generator)
    images = pixels(generator, HEIGHT, WIDTH).double().requires_grad_()
    outputs, loss = contrast(model, images, ids)
    loss.backward()
    versions = {"torch": torch.__version__, "open_clip": open_clip.__version__}
    single = lambda a: a.detach().numpy().astype(np.float32)
    arrays = {
        "config": np.array(json.dumps(dict(model_cfg=config))), "versions": np.array(json.dumps(versions)),
        "inputs/pixel_values": nhwc(images).astype(np.float16), "inputs/input_ids": ids.numpy().astype(np.int32),
        "inputs/attention_mask": mask.numpy().astype(np.int32), "loss": single(loss),
        "input_grads/pixel_values": nhwc(images.grad).astype(np.float32),
    }  # fmt: skip
    arrays |= {f"outputs/{name}": single(value) for name, value in outputs.items()}
    for name, parameter in model.named_parameters():
        arrays[f"weights/{name}"] = parameter.detach().numpy().astype(np.float16)
        arrays[f"grads/{name}"] = single(parameter.grad)
    return arrays


def main() -> None:
    """Writes the golden file into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    path = parser.parse_args().out / "clip_vit_wide.npz"
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    arrays = clip_vit_wide()
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
