"""Retrieval between two towers: which candidates there are, which are right, and what a number alone reaches."""

import numpy as np
import pytest
from tiny_world import SAMPLES, World, held_out

from data_pipelines.errors import DataError
from tests.data.tiny_shards import write_tar
from xmodal.evaluation.cross_retrieval import CrossRetrieval
from xmodal.evaluation.retrieval import chance_recall


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), 1)


def measured(world, **options):
    result = world.evaluate(CrossRetrieval(urls=world.urls, captions=("{kind}",), **options))
    prefix = "cross_retrieval/x/"
    return {name.removeprefix(prefix): value for name, value in result.metrics.items()}


def test_each_sample_alone(world):
    found = measured(world)
    assert found["queries"] == found["candidates"] == SAMPLES
    assert found["image_to_text/chance/R@5"] == pytest.approx(5 / SAMPLES)
    assert 0 <= found["text_to_image/R@1"] <= found["text_to_image/R@10"] <= 1


def test_candidates_and_groups(world):
    found = measured(world, item="side", group="kind", by="kind")
    assert found["candidates"] == 2 and found["queries"] == SAMPLES
    assert {name.split("/")[0] for name in found if "_of_" in name} == {
        f"image_to_text_of_{kind}" for kind in ("star", "moon", "sun")
    }
    grouped = measured(world, group="kind")
    wanted = np.mean(chance_recall(1, SAMPLES, np.full(SAMPLES, SAMPLES // 3)))
    assert grouped["image_to_text/chance/R@1"] == pytest.approx(wanted)


def test_control(world):
    found = measured(world, control=("number", "number"))
    assert found["image_to_text_by_number/R@1"] == 1.0, "the number tells every sample apart"
    with pytest.raises(DataError, match=r"control: a field of .* is no number in every sample"):
        measured(world, control=("number", "side"))
    with pytest.raises(DataError, match=r"group: no sample of .* has the field 'colour'; fields there: kind"):
        measured(world, group="colour")
    with pytest.raises(ValueError, match="give two fields"):
        CrossRetrieval(urls="x", control=("number",))


def test_between_two_towers_of_one_kind(world, tmp_path):
    """Both towers may read what files hold: here the image twice, which always finds itself."""
    write_tar(tmp_path / "a.tar", {f"{i}": held_out(i) for i in range(10)})
    result = world.evaluate(
        CrossRetrieval(urls=str(tmp_path / "a.tar"), captions=("{kind}",), between=("image", "image"))
    )
    assert result.metrics["cross_retrieval/x/image_to_image/R@1"] == 1.0
