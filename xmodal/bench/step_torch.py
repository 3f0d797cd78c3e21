"""open_clip's training step for `bench step --beside open_clip`, in a process of its own.

As open_clip trains: float32 parameters, bfloat16 autocast, torch.compile, fused AdamW. Batches are random ones that
already lie on the GPU, so that no data loader stands in its way.
"""

import json
import sys
import time


def main(settings: dict) -> dict[str, object]:
    """Trains for some steps; returns the figures by name.

    Args:
      settings: `model` (a model_cfg), `batch` (0: the largest that fits), `steps`, `image_size`, `optimizer`.
    """
    import torch

    from xmodal.bench.step import ROUND

    batch, measured = settings["batch"] or _largest(settings), None
    while measured is None:
        try:
            measured = _train(settings, batch, settings["steps"])
        except torch.cuda.OutOfMemoryError:
            if settings["batch"]:
                raise
            batch = batch * 15 // 16 // ROUND * ROUND
    seconds, compile_seconds, peak = measured
    return {
        "devices": f"1 x {torch.cuda.get_device_name()}",
        "global batch": batch,
        "samples/s": round(batch * settings["steps"] / seconds, 1),
        "step ms": round(1000 * seconds / settings["steps"], 1),
        "compile s": round(compile_seconds, 1),
        "peak memory per device": f"{peak / 2**30:.1f} GiB",
    }


def _largest(settings: dict) -> int:
    import torch

    from xmodal.bench.step import ROUND, SHARE, fitting

    tried = {batch: _train(settings, batch, 1)[2] for batch in (4 * ROUND, 8 * ROUND)}
    return fitting(tried, int(SHARE * torch.cuda.get_device_properties(0).total_memory), ROUND)


def _train(settings: dict, batch: int, steps: int) -> tuple[float, float, int]:
    """Returns (seconds of `steps` steps, seconds of the two before, which compile, peak bytes)."""
    import torch
    from open_clip import ClipLoss
    from open_clip.model import CLIP

    _forget()
    torch.set_float32_matmul_precision("high")
    model = CLIP(**settings["model"]).cuda().train()
    vocab, length = settings["model"]["text_cfg"]["vocab_size"], settings["model"]["text_cfg"]["context_length"]
    images = torch.randint(0, 256, (batch, 3, settings["image_size"], settings["image_size"]), device="cuda").byte()
    texts = torch.randint(1, vocab, (batch, length), device="cuda")
    compiled, loss = torch.compile(model), ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **settings["optimizer"])

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(*compiled((images.float() - 128) / 64, texts)[:3])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    began = time.perf_counter()
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    compile_seconds, began = time.perf_counter() - began, time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - began, compile_seconds, torch.cuda.max_memory_allocated()


def _forget() -> None:
    import gc

    import torch

    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
