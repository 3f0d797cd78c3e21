"""Makes `positions.npz`: position embeddings resized by torch's antialiased filters, as open_clip does on loading."""

import pathlib

import numpy as np
import torch

CASES = (((7, 7), (14, 14)), ((14, 14), (7, 7)), ((6, 6), (4, 9)), ((5, 8), (11, 3)))


def main() -> None:
    generator, arrays = torch.Generator().manual_seed(20260726), {}
    for i, (old, new) in enumerate(CASES):
        table = torch.randn((old[0] * old[1], 6), generator=generator).half().float()
        grid = table.T.reshape(1, 6, *old)
        arrays |= {f"{i}/table": table.half().numpy(), f"{i}/old": np.array(old), f"{i}/new": np.array(new)}
        for method in ("bicubic", "bilinear"):
            resized = torch.nn.functional.interpolate(grid, new, mode=method, antialias=True, align_corners=False)
            arrays[f"{i}/{method}"] = resized.reshape(6, -1).T.contiguous().numpy()
    path = pathlib.Path(__file__).with_name("positions.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
