"""Makes `spectrograms.npz`: log-mel spectrograms of transformers' feature extractors for a few waves.

Needs torch and transformers.

    python -m tests.golden.make_spectrograms
"""

import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import transformers

SEED = 20261201


def wave(rate: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """int16 [samples]: a rising tone, noise, an offset and a pause; all that a front end may treat in its way."""
    time = np.arange(round(rate * seconds)) / rate
    x = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.05 * rng.standard_normal(len(time)) + 0.01
    x[len(x) // 2 : len(x) // 2 + rate // 10] *= 1e-3
    return np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)


def main() -> None:
    """Writes the file beside this script."""
    rng, arrays = np.random.default_rng(SEED), {}
    whisper = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    kaldi = transformers.ASTFeatureExtractor(max_length=64)
    clap = transformers.ClapFeatureExtractor(truncation="rand_trunc", max_length_s=1)
    extractors = dict(
        whisper=lambda x: whisper(x, sampling_rate=16000, return_tensors="np").input_features[0],
        kaldi=lambda x: kaldi(x, sampling_rate=16000, return_tensors="np").input_values[0].T,
        clap=lambda x: clap(x, sampling_rate=48000, return_tensors="np").input_features[0, 0].T,
    )
    for kind, extract in extractors.items():
        for name, seconds in (("short", 0.3), ("long", 0.8)):
            x = wave(48000 if kind == "clap" else 16000, seconds, rng)
            arrays[f"{kind}/{name}/wave"] = x
            arrays[f"{kind}/{name}/mel"] = extract(x.astype(np.float32) / 32768).astype(np.float32)
    path = pathlib.Path(__file__).with_name("spectrograms.npz")
    np.savez_compressed(path, **arrays)
    print({name: array.shape for name, array in arrays.items()}, path.stat().st_size)


if __name__ == "__main__":
    main()
