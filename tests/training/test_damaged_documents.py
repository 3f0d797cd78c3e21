"""Damaged files of checkpoints and run folders: the step before, or one line; no traceback, and never other weights."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fuzzing import damaged, damaged_json, survives
from xmodal.checkpoints.reading import CheckpointError, DamagedError, open_newest, read_meta
from xmodal.checkpoints.writing import Checkpoints
from xmodal.config import ConfigError, load_saved
from xmodal.reporting.files import write_json
from xmodal.reporting.report import build_report

PLACED = jax.ShapeDtypeStruct((300,), jnp.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep_last=9) as checkpoints:
        for step in (1, 2):
            extra = {"config": '{"seed": 0}', "batches": [[0, 0, 8]]}
            checkpoints.save(step, {"x": jnp.arange(300.0) + step}, position=8 * step, extra=extra)
    return folder


def damage(folder, seed):
    """Damages a file of the newest step; returns its name."""
    files = sorted(path for path in (folder / "checkpoints" / "2").rglob("*") if path.is_file())
    draw = random.Random(seed)
    document = folder / "checkpoints" / "2" / "meta" / "data.json"
    path = document if draw.random() < 0.5 else draw.choice(files)
    if path == document and draw.random() < 0.6:
        text = json.dumps(damaged_json(json.loads(path.read_text()), seed))
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    else:
        path.write_bytes(damaged(path.read_bytes(), seed))
    return path.name


def test_checkpoints(saved, tmp_path, fuzz_cases):
    for seed in range(fuzz_cases // 3):  # a step takes longer to read than a document
        folder = shutil.copytree(saved, tmp_path / "copy")
        name = damage(folder, seed)

        def restore(folder=folder):
            open_newest(folder, read_meta)
            state, meta = Checkpoints(folder, keep_last=9).restore({"x": PLACED})
            np.testing.assert_array_equal(state["x"], np.arange(300.0) + meta["step"])
            assert meta["position"] == 8 * meta["step"] and meta["step"] in (1, 2)

        survives(restore, (CheckpointError, ConfigError), (seed, name))
        shutil.rmtree(folder)


@pytest.mark.parametrize("text", ["[1]", '"x"', "null", "[" * 5000, '{"checksum": 1}', "\xff", '{"a": NaN}', ""])
def test_documents_of_another_kind(saved, tmp_path, text):
    folder = shutil.copytree(saved, tmp_path / "copy")
    path = folder / "checkpoints" / "2" / "meta" / "data.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DamagedError, match=r"meta/data.json"):
        read_meta(path.parents[1])
    assert open_newest(folder, read_meta)["step"] == 1 and Checkpoints.newest(folder)["step"] == 1
    assert Checkpoints(folder).restore({"x": PLACED})[1]["step"] == 1


METRICS = {"step": 2, "samples": 8, "time": 1.0, "train/loss": 2.0, "eval/retrieval/held_out/image_to_text/R@1": 0.5}
FILES = {
    "config.json": {"seed": 0, "optimizer": {"lr": 0.1, "rules": [["a", {"lr": 1}]]}},
    "environment.json": {"python": "3", "run": {"total_steps": 4, "chance_loss": {"a": 2.0}, "parameters": {"t": 9}}},
    "results.json": {"step": 2, "samples": 8, "retrieval": {"held_out": {"image_to_text": {"R@1": 0.5}, "images": 4}}},
    "gallery.json": {"retrieval/held_out": {"image_to_text": []}},
}


def test_run_folders(tmp_path, fuzz_cases):
    for seed in range(fuzz_cases):
        draw = random.Random(seed)
        folder = tmp_path / str(seed)
        for name, value in FILES.items():
            write_json(folder / name, value)
        (folder / "metrics.jsonl").write_text(json.dumps(METRICS) + "\n")
        name = draw.choice([*FILES, "metrics.jsonl"])
        if name in FILES and draw.random() < 0.6:
            text = json.dumps(damaged_json(FILES[name], seed))
            (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        else:
            (folder / name).write_bytes(damaged((folder / name).read_bytes(), seed))
        survives(lambda folder=folder: load_saved(folder / "config.json"), (ConfigError,), (seed, name))
        survives(lambda folder=folder: build_report(folder), (ValueError,), (seed, name))
