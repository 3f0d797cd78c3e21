"""The preset of fine-tuning on an imported folder: the reference's scores before the first step, and more after."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from tests import tiny_runs
from tests.interop import folders
from xmodal.distributed.mesh import make_mesh
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored
from xmodal.training import loop

RECALLS = {f"{way}/R@{k}": f"{side}_retrieval_recall@{k}"  # CLIP_benchmark names what is searched
           for way, side in (("text_to_image", "image"), ("image_to_text", "text")) for k in (1, 5, 10)}  # fmt: skip


def write_pairs(folder, golden, split, name):
    """A CSV of pictures that no library has to resize, and their captions."""
    with (folder / f"{split}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i, (squares, caption) in enumerate(zip(golden[split], golden["captions"])):
            Image.fromarray(folders.enlarged(squares, name)).save(folder / f"{split}_{i}.png")
            rows.writerow([f"{split}_{i}.png", str(caption)])
    return folder / f"{split}.csv"


@pytest.mark.parametrize("name,kind", [("clip_vit", "full"), ("siglip", "lora")])
def test_the_references_scores_at_the_start_and_more_at_the_end(name, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))  # less to compile
    golden, own = folders.load("scores"), tmp_path / "own"
    write_stored(open_stored(f"hf:{folders.hugging_face(tmp_path / 'hf', name)}"), own)
    changes = {
        "data.sources.train.urls": write_pairs(tmp_path, golden, "train", name),
        "evals.held_out.source.urls": write_pairs(tmp_path, golden, "held_out", name),
        "evals.held_out.every": "100%", "checkpoint.every": "100%",
        "batch_size": 24, "schedule.total": "40steps", "optimizer.lr": 2e-3,  # a tiny model has far to go in few steps
    }  # fmt: skip
    arguments = ["--config", f"configs/finetune.py:{kind}@{own}", *(f"--config.{k}={v}" for k, v in changes.items())]
    tiny_runs.run(tmp_path / "tuned", arguments)

    found = {row["step"]: row for row in tiny_runs.rows(tmp_path / "tuned") if "eval/retrieval/held_out/images" in row}
    first, last = ({key: row[f"eval/retrieval/held_out/{key}"] for key in RECALLS} for row in (found[0], found[40]))
    assert first == {key: pytest.approx(float(golden[f"{name}/{theirs}"])) for key, theirs in RECALLS.items()}
    for recalls in (list(RECALLS)[:3], list(RECALLS)[3:]):  # of either way
        assert np.mean([last[key] for key in recalls]) > np.mean([first[key] for key in recalls])
