"""BERT on texts alone: trained, measured, taken out, and continued from; towers of today in CLIP."""

import json

import numpy as np
import pytest
from test_recipes_vision import task_of

from data_pipelines.text.tokenizers import Tokenizer
from tests import tiny_runs
from xmodal.config import ConfigError, load_config
from xmodal.configs import bert, clip_modern
from xmodal.interop.export import export
from xmodal.interop.recipe import continue_from
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored


def tiny_bert():
    """The recipe with a narrow model of one layer and three steps, measured in two languages."""
    config = load_config("configs/bert.py")
    config.model.towers.text.trunk.update(depth=1, width=32)
    config.data.inputs.text.length, config.data.threads, config.batch_size = 12, 1, 16
    config.schedule.update(total="3steps", warmup="0%")
    config.checkpoint.every, config.log.tensorboard = 0, False
    config.evals = {language: config.evals[language] for language in ("en", "ja")}
    for evaluation in config.evals.values():
        evaluation.limit = 16
    return config


def test_a_bert_is_trained_measured_exported_and_continued(tmp_path):
    tiny_runs.run_config(tmp_path / "run", tiny_bert())
    results = json.loads((tmp_path / "run" / "results.json").read_text())["masked_text"]
    assert results.keys() == {"en", "ja"}
    for found in results.values():
        assert found["texts"] > 2 and found["loss"] == pytest.approx(np.log(8192), rel=0.05)
    rows = [row for row in tiny_runs.rows(tmp_path / "run") if "train/masked/loss" in row]
    assert rows[-1]["train/masked/loss"] == pytest.approx(np.log(8192), rel=0.05)

    stored = open_stored(tmp_path / "run")
    export(stored, tmp_path / "hf", to="hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    again = open_stored(f"hf:{tmp_path / 'hf'}")
    before, after = (flatten_paths(model.params["text"]) for model in (stored, again))
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(before[path], after[path], err_msg=path)

    write_stored(again, tmp_path / "own")
    config = continue_from(load_config("configs/bert.py"), tmp_path / "own")
    assert list(config.data.inputs) == ["text"] and config.objectives.masked.type == "masked_text"
    task = task_of(config, batch_size=16)
    assert task.losses.objectives["masked"].mask_id == Tokenizer.load(tmp_path / "hf" / "tokenizer.json").mask_id == 4


@pytest.mark.parametrize("recipe", ["bert.py:base", "bert.py:large_512", "clip_modern.py:B16", "clip_modern.py:H14"])
def test_full_size_recipes_fit_together(recipe):
    config = load_config(f"configs/{recipe}")
    config.data.inputs.text.update(tokenizer="data_pipelines/emoji/wordpiece.json")
    config.init_from = ""
    for tower in config.model.towers.values():
        tower.trunk.depth = 1
    assert task_of(config, batch_size=64).total_steps > 0


def test_the_variants_differ_from_the_demo_in_their_text_tower_alone():
    demo, modern = load_config("configs/demo.py:stem"), load_config("configs/clip_modern.py")
    assert demo.model.towers.text != modern.model.towers.text
    modern.model.towers.text = demo.model.towers.text
    assert demo == modern
    several = load_config("configs/clip_modern.py:multilingual")
    assert set(several.evals) == set(clip_modern.LANGUAGES) and several.evals.de.captions == ("{labels.de}",)
    assert several.model.towers.image == demo.model.towers.image and several.data.sources == demo.data.sources


def test_images_are_not_decoded_for_a_model_of_texts():
    config = bert.get_config()
    config.data.inputs.image = dict(type="image")
    with pytest.raises(ConfigError, match=r"no tower of the model reads data\.inputs\.image"):
        task_of(config)
