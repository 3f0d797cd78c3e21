"""ALIGN from its recipe: at full size it fits together; a tiny one is trained and leaves as an `AlignModel`."""

import json

import numpy as np
import pytest
from test_recipes_vision import task_of

from tests import tiny_runs
from xmodal.config import load_config
from xmodal.interop.align import ALIGN
from xmodal.interop.export import export
from xmodal.interop.huggingface import family_for
from xmodal.models import presets
from xmodal.models.batch_norm import STATISTICS
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored

WIDTHS = {"B7": 640, "L2": 1376}


@pytest.mark.parametrize("variant", WIDTHS)
def test_the_full_size_recipe_fits_together(variant):
    config = load_config(f"configs/align.py:{variant}")
    config.data.inputs.text.tokenizer = "data_pipelines/emoji/wordpiece.json"
    task = task_of(config)
    spec = task.losses.model.spec
    assert [tower.pooled_width for tower in spec.towers.values()] == [WIDTHS[variant]] * 2
    assert spec.towers["image"].embed.grid == (9, 9)  # 289 pixels, an even number at every stride
    assert family_for(spec) is ALIGN and len(ALIGN.table(spec)) > 1000
    assert task.chance_losses() == {"contrastive": pytest.approx(np.log(16_384))}
    assert task.total_steps == 1_200_000 and float(task.schedule(605_000)) == pytest.approx(5e-4)


def tiny_align():
    """The recipe with one stage and one layer, three steps."""
    config = load_config("configs/align.py:emoji")
    image = presets.efficientnet_tower(0.5, 1.0, stages=((3, 2, 2, 32, 1),), top=0, norm_momentum=0.5)
    text = presets.bert_tower(16, 1, 2, pooler=False, embed_dim=16, dropout=0.0)
    config.model = presets.dual_tower(image=image, text=text)
    config.data.inputs.image.size, config.data.inputs.text.length, config.data.threads, config.batch_size = 32, 8, 1, 32
    config.optimizer.lr = 0.1
    config.schedule.update(total="3steps", warmup="0%")
    config.checkpoint.update(every=0, best="")
    config.log.update(every=1, tensorboard=False)
    config.evals = {}
    return config


def test_a_tiny_align_is_trained_and_leaves_as_an_align_model(tmp_path):
    tiny_runs.run_config(tmp_path / "run", tiny_align())
    rows = [row for row in tiny_runs.rows(tmp_path / "run") if "train/contrastive/loss" in row]
    assert rows[0]["train/contrastive/loss"] == pytest.approx(np.log(32), rel=0.06)  # the temperature starts at 1
    assert rows[0]["train/contrastive/logit_scale"] == pytest.approx(1.0, abs=1e-6)
    moved = abs(rows[-1]["train/contrastive/logit_scale"] - 1.0)
    assert moved > 0.05, "LAMB moves a temperature whose logarithm starts at 0"

    stored = open_stored(tmp_path / "run")
    assert stored.params.keys() == {"image", "text", "objectives", STATISTICS}
    for path, array in flatten_paths(stored.params[STATISTICS]).items():
        assert np.ptp(array) > 0, f"{path} is as it started"
    export(stored, tmp_path / "hf", to="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["AlignModel"] and config["projection_dim"] == 16
    again = open_stored(f"hf:{tmp_path / 'hf'}")
    before, after = flatten_paths(stored.params), flatten_paths(again.params)
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_allclose(before[path], after[path], rtol=1e-6, err_msg=path)
