"""The recipes of sound: both train on stamps, and are evaluated on held-out ones beside what length alone reaches."""

import json

import numpy as np
import pytest

import xmodal
from data_pipelines.errors import DataError
from tests import tiny_runs
from xmodal.configs import clap

pytest.importorskip("soundfile", reason="the optional extra `audio`")


def tiny(variant):
    """The recipe with towers of one narrow layer, a shard and three steps."""
    c = clap.get_config(variant)
    for tower in c.model.towers.values():
        tower.trunk.update(width=32, depth=1)
        tower.heads.pooled.embed_dim = 16
    c.data.sources.stamps.urls = f"{clap.STAMPS}/shards/unseen_speakers-0000.tar.gz"  # a small one
    c.data.inputs.sound.seconds = 1.0
    c.batch_size, c.schedule.total, c.schedule.warmup, c.checkpoint.every = 16, "3steps", "1steps", "100%"
    for entry in c.evals.values():
        entry.update(limit=40, batch_size=40, every="100%")
    return c


@pytest.mark.parametrize("variant", clap.VARIANTS)
def test_it_trains_and_is_evaluated(variant, tmp_path):
    other = {"stamps": "text", "stamps_images": "image"}[variant]
    config = tiny(variant)
    assert set(config.evals) == {"unheard", "unseen"}
    results = tiny_runs.run_config(tmp_path / "run", config)
    for name in config.evals:
        found = results["cross_retrieval"][name]
        assert found["queries"] == 40 and 1 < found["candidates"] <= 40
        for group in (f"sound_to_{other}", f"{other}_to_sound", f"sound_to_{other}_by_seconds"):
            assert 0 <= found[group]["R@1"] <= found[group]["R@10"] <= 1, group
            assert 0 < found[group]["chance"]["R@1"] < 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())
    live = xmodal.load(tmp_path / "run").live
    waves = [(np.random.default_rng(i).normal(size=9000).astype(np.float32) / 9, 8000) for i in range(3)]
    vectors = live.embed_rows("sound", lambda start, stop: live.preparing.rows("sound", waves[start:stop]), 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with pytest.raises(DataError, match=r"audio number 1 cannot be used: silent audio"):
        live.preparing.rows("sound", [waves[0], (np.zeros(9000, np.float32), 8000)])
