"""Makes the golden files of SigLIP 2 with packed patches (NaFlex) from the reference (see README.md beside it).

Run it as `make_golden.py`; the preprocessing needs torchvision, too, and the pictures of `preprocessing.npz`.
"""

import io
import json
import pathlib

import numpy as np
import PIL
import torch
import torchvision
import transformers
from make_golden import SEED, TEXT, VISION, captions, describe, prepare
from PIL import Image
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

FOLDER = pathlib.Path(__file__).parent
PATCH, POSITIONS, LENGTH = 4, 5, 24
SMALL = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, patch_size=PATCH, num_patches=POSITIONS**2)
WORDS = dict(hidden_size=16, intermediate_size=24, projection_size=32)
GRIDS = ((4, 6), (3, 5), (7, 2))  # fills its sequence, wider than the positions, higher
PICTURES, ROOM = 60, 25
ODD = ((1, 1), (1, 5000), (5000, 1), (16, 16), (17, 16), (480, 640), (641, 480), (9999, 10001), (3, 50), (12000, 7))


def model() -> transformers.Siglip2Model:
    """Tiny, with temperature and bias away from 0."""
    config = transformers.Siglip2Config(
        vision_config=VISION | SMALL, text_config=TEXT | WORDS, attn_implementation="eager"
    )
    made = transformers.Siglip2Model(config)
    with torch.no_grad():
        made.logit_scale.fill_(1.5)
        made.logit_bias.fill_(-2.0)
    return made


def siglip2() -> dict[str, np.ndarray]:
    """Three aspect ratios in one batch; what is behind a picture is noise, which must not be seen."""
    generator = torch.Generator().manual_seed(SEED + 30)
    reference = prepare(model(), generator)
    ids, _ = captions(generator)
    shapes = torch.tensor(GRIDS)
    mask = (torch.arange(LENGTH) < shapes.prod(1, keepdim=True)).int()
    patches = torch.randn((len(GRIDS), LENGTH, 3 * PATCH**2), generator=generator).half().float().requires_grad_()
    out = reference(
        input_ids=ids, pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes, return_loss=True
    )
    out.loss.backward()
    arrays = {
        "config": np.array(describe(reference.config)),
        "versions": np.array(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})),
        "inputs/pixel_values": patches.detach().numpy().astype(np.float16),
        "inputs/spatial_shapes": shapes.numpy().astype(np.int32),
        "inputs/input_ids": ids.numpy().astype(np.int32),
        "outputs/image_embeds": out.image_embeds,
        "outputs/text_embeds": out.text_embeds,
        "outputs/vision_last_hidden_state": out.vision_model_output.last_hidden_state,
        "outputs/text_last_hidden_state": out.text_model_output.last_hidden_state,
        "outputs/logits_per_image": out.logits_per_image,
        "loss": out.loss,
        "input_grads/pixel_values": patches.grad,
    }
    for name, parameter in reference.named_parameters():
        arrays[f"weights/{name}"] = parameter.detach().half()
        arrays[f"grads/{name}"] = parameter.grad
    return {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()}


def preprocessing() -> dict[str, np.ndarray]:
    """What the processor makes of pictures before normalisation, and the grids of many sizes."""
    with np.load(FOLDER / "preprocessing.npz") as file:
        data, ends = file["files"].tobytes(), file["ends"]
    processor = transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=ROOM, do_convert_rgb=True)
    patches, grids = [], []
    for start, end in list(zip([0, *ends], ends))[:PICTURES]:
        with Image.open(io.BytesIO(data[start:end])) as image:
            image.load()
            found = processor(images=image, do_normalize=False, return_tensors="np")
        values = np.asarray(found["pixel_values"][0]) * 255
        assert np.abs(values - np.round(values)).max() < 1e-2
        patches.append(np.round(values).astype(np.uint8))
        grids.append(found["spatial_shapes"][0])
    rng = np.random.default_rng(SEED)
    sizes = [*ODD, *rng.integers(1, 1200, (250, 2)).tolist()]
    rooms = [(int(rng.choice((4, 14, 16))), int(rng.choice((9, 64, 128, 196, 256, 1024)))) for _ in sizes]
    fits = [get_image_size_for_max_num_patches(h, w, p, n) for (h, w), (p, n) in zip(sizes, rooms)]
    versions = {m.__name__: m.__version__ for m in (transformers, torchvision, PIL, np)}
    return {
        "patches": np.stack(patches), "grids": np.array(grids, np.int32), "versions": np.array(json.dumps(versions)),
        "sizes": np.array(sizes, np.int32), "rooms": np.array(rooms, np.int32), "fits": np.array(fits, np.int32),
    }  # fmt: skip


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    for name, make in (("siglip2", siglip2), ("siglip2_preprocessing", preprocessing)):
        path, arrays = FOLDER / f"{name}.npz", make()
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
