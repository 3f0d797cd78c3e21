"""Runs with several captions of a sample: what they learn from, and what they refuse."""

import jax
import numpy as np
import pytest

from data_pipelines.modalities import inputs_of
from tests import tiny_runs
from xmodal.config import ConfigError, load_config
from xmodal.distributed.mesh import make_mesh
from xmodal.training import loop
from xmodal.training.settle import resolve
from xmodal.training.task import build_losses


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


def test_a_run_learns_from_several_captions(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    arguments = tiny_runs.flags(data, "captions", checkpoint__every=4, schedule__total=4)
    results = tiny_runs.run(tmp_path, arguments)
    rows = [row for row in tiny_runs.rows(tmp_path) if "train/flair/loss" in row]
    assert len(rows) == 4 and all(np.isfinite(row["train/loss"]) for row in rows)
    assert rows[0]["train/loss"] == pytest.approx(0.5 * (rows[0]["train/flair/loss"] + rows[0]["train/sigmoid/loss"]))
    # Bias and temperature of the start: of the captions that an image sees some are its own, each costs ten.
    assert 10 < rows[0]["train/sigmoid/loss"] < 15 and 15 < rows[0]["train/flair/loss"] < 30
    assert results["retrieval"]["held_out"]["captions"] == 48, "an evaluation has one caption of a sample"


@pytest.mark.parametrize(
    ("variant", "objectives", "message"),
    [
        (
            "clip",
            None,
            r"objectives\.contrastive takes one caption of a sample, and data\.inputs\.text\.num_items=2; set it to 1",
        ),
        (
            "clip",
            dict(sigmoid=dict(type="sigmoid", between=("text", "image"))),
            r"with .*=2 the tower that reads 'text' comes second",
        ),
        (
            "coca",
            dict(sigmoid=dict(type="sigmoid")),
            r"num_items=2 needs towers without wiring, .*towers\.caption reads",
        ),
    ],
)
def test_what_takes_one_caption_refuses_more(data, variant, objectives, message):
    arguments = tiny_runs.flags(data, variant, data__inputs__text__num_items=2)
    config = load_config(arguments[1], arguments[2:])
    config.objectives = objectives or config.objectives
    resolved = resolve(config, inputs_of(config.data))
    with pytest.raises(ConfigError, match=message):
        build_losses(resolved, make_mesh(config.mesh, jax.devices()[:1]), inputs_of(config.data))
