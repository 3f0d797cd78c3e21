"""Runs over packed patches: one compiled step for each length, the same bits after a stop, models that leave and start."""

import numpy as np
import pytest

import xmodal
from tests import tiny_runs
from tests.interop import folders
from xmodal.distributed.watchdog import Watchdog
from xmodal.interop.export import export
from xmodal.interop.folder import open_stored
from xmodal.training.task import Task

SHAPES = ((24, 20), (60, 15), (9, 40), (7, 5))  # width, height


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A finished run, its results, its jitted step, and what the watchdog was told to be patient with."""
    workdir, steps, patient = tmp_path_factory.mktemp("runs") / "run", [], []
    with pytest.MonkeyPatch.context() as patch:
        compile_step, slow = Task.compile_step, Watchdog.slow
        keep = lambda step: steps.append(step) or step
        patch.setattr(Task, "compile_step", lambda task, state: keep(compile_step(task, state)))
        patch.setattr(Watchdog, "slow", lambda dog, what: patient.append(what) or slow(dog, what))
        results = tiny_runs.run(workdir, tiny_runs.flags(data, "naflex"))
    return workdir, results, steps[0], patient


def pictures():
    return [folders.picture("RGB", shape, seed=i) for i, shape in enumerate(SHAPES)]


def test_the_step_is_compiled_once_for_each_length(trained):
    workdir, results, step, patient = trained
    assert step._cache_size() == 3  # the run has drawn all of its three lengths
    # A later length is compiled in the middle of the run: the watchdog must wait for it as for the first.
    assert patient.count("compiling the step") == 3
    losses = [row["train/loss"] for row in tiny_runs.rows(workdir) if "train/loss" in row]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert results["retrieval"]["held_out"]["images"] == results["zero_shot"]["named"]["images"] == 48


def test_a_stopped_run_goes_on_with_the_same_bits(trained, data, tmp_path):
    arguments = tiny_runs.flags(data, "naflex")
    tiny_runs.run(tmp_path, arguments, tiny_runs.StopAt(3))
    tiny_runs.run(tmp_path, arguments)
    assert tiny_runs.arrays(tmp_path, 8) == tiny_runs.arrays(trained[0], 8)


def test_pictures_of_any_shape_are_embedded(trained):
    model = xmodal.load(trained[0])
    whole = model.embed_image(pictures())
    assert whole.shape == (4, 32)
    alone = np.concatenate([model.embed_image(picture) for picture in pictures()])
    np.testing.assert_allclose(alone, whole, atol=1e-6)
    batch = model.prepare_images(pictures())
    assert batch["image"].shape == (4, 6, 192) and batch["image_grid"].tolist() == [[2, 3], [1, 6], [5, 1], [2, 3]]
    assert model.zero_shot(pictures(), ["thing 1", "thing 2"]).shape == (4, 2)


@pytest.mark.parametrize("to", ["hf", "jax"])
def test_it_leaves_and_comes_back(trained, tmp_path, to):
    done = export(open_stored(trained[0]), tmp_path / to, to=to)
    assert max(done.differences.values()) < 2e-5
    card = (tmp_path / to / "README.md").read_text()
    if to == "jax":
        assert "(2, 6, 192), np.uint8" in card and "at most 6 patches of 8 x 8 pixels" in card
        return
    assert any("PreTrainedTokenizerFast" in note for note in done.notes)
    again = open_stored(f"hf:{tmp_path / to}")
    image = again.config.data.image
    assert (image.crop, image.naflex.lengths, image.naflex.patch_size) == ("whole", (6,), 8)
    mine, theirs = (xmodal.load(where).embed_image(pictures()) for where in (trained[0], tmp_path / to))
    # The processor of this family is bilinear by default, and ours is what the run says: it is written down.
    np.testing.assert_allclose(theirs, mine, atol=1e-6)


def test_a_run_goes_on_from_squares(data, tmp_path):
    """SigLIP 2's own way: packed patches for the last part of the training."""
    squares = tmp_path / "squares"
    style = ["--config.data.image.crop=squash", "--config.data.image.naflex.lengths=()", "--config.data.image.size=32"]
    image = dict(type="patch", patch_size=8, class_token=False)
    arguments = tiny_runs.flags(data, "naflex", evals={}, schedule__total="1steps", model__towers__image__embed=image)
    tiny_runs.run(squares, arguments + style)
    arguments = tiny_runs.flags(data, "naflex", init_from=squares, schedule__total="1steps", optimizer__lr=0.0)
    tiny_runs.run(tmp_path / "packed", arguments)
    before, after = (open_stored(where).params["image"]["embed"] for where in (squares, tmp_path / "packed"))
    for name in ("kernel", "position"):  # a grid of 4 x 4 in both
        np.testing.assert_array_equal(before[name], after[name])


def test_towers_and_data_must_agree(data, tmp_path, capsys):
    wrong = tiny_runs.flags(data, "naflex", data__image__naflex__lengths=(), data__image__crop="squash")
    message = tiny_runs.fail(tmp_path / "a", wrong, capsys)
    assert "naflex.lengths=() makes squares, and model.towers.image.embed takes packed patches" in message
    wrong = tiny_runs.flags(data, "clip", data__image__naflex__lengths=(4,), data__image__crop="whole")
    message = tiny_runs.fail(tmp_path / "b", wrong, capsys)
    assert "makes packed patches, and model.towers.image.embed takes squares" in message
    wrong = tiny_runs.flags(data, "naflex", data__image__naflex__patch_size=4)
    message = tiny_runs.fail(tmp_path / "c", wrong, capsys)
    assert "model.towers.image.embed.patch_size is 8, but data.image.naflex.patch_size is 4" in message
