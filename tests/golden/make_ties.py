"""Writes ties.npz: what torch makes of scores among which many are equal.

python tests/golden/make_ties.py

For `argmax` and `sort(stable=True)` torch documents which of equal scores comes first: the first. For `topk` it
documents that the order may vary, and on a CPU it is not that of `sort`: so `topk` sets no rule.
"""

import pathlib

import numpy as np
import torch

OUT = pathlib.Path(__file__).with_name("ties.npz")


def main():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (64, 12)).astype(np.float32)
    given = torch.tensor(scores)
    order = torch.sort(given, dim=1, descending=True, stable=True).indices.numpy()
    labels, right = rng.integers(0, 12, 64), rng.random((64, 12)) < 0.2
    right[np.arange(64), labels] = True
    np.savez_compressed(
        OUT, scores=scores.astype(np.int8), labels=labels.astype(np.int8), right=right, order=order.astype(np.int8),
        argmax=torch.argmax(given, dim=1).numpy().astype(np.int8), torch=torch.__version__,
    )  # fmt: skip
    print(OUT.stat().st_size)


if __name__ == "__main__":
    main()
