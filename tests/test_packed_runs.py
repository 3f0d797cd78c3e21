"""Runs over packed patches: one compiled step a length, the same bits after a stop, models that leave and start."""

import shutil

import jax
import numpy as np
import pytest

import xmodal
from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from tests import helpers, tiny_runs
from tests.data.tiny_shards import encode, write_tar
from tests.interop import folders
from xmodal.__main__ import main
from xmodal.config import ConfigError
from xmodal.configs import base
from xmodal.distributed.watchdog import Watchdog
from xmodal.evaluation.base import EvalContext
from xmodal.evaluation.pointing import Pointing
from xmodal.interop.export import export
from xmodal.interop.positions import resize_grid
from xmodal.interop.recipe import continue_from
from xmodal.live import Live
from xmodal.models import presets
from xmodal.paths import flatten_paths
from xmodal.search.index import Index
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored
from xmodal.training.init_from import start_from
from xmodal.training.task import Task, build_task

SELDOM = dict(checkpoint__every=4)
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
        results = tiny_runs.run(workdir, tiny_runs.flags(data, "naflex", **SELDOM))
    return workdir, results, steps[0], patient


def pictures():
    return [folders.picture("RGB", shape, seed=i) for i, shape in enumerate(SHAPES)]


def test_the_step_is_compiled_once_for_each_length(trained):
    workdir, results, step, patient = trained
    assert step._cache_size() == 2  # the run has drawn both of its lengths
    # A later length is compiled in the middle of the run: the watchdog must wait for it as for the first.
    assert patient.count("compiling the step") == 2
    losses = [row["train/loss"] for row in tiny_runs.rows(workdir) if "train/loss" in row]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert results["retrieval"]["held_out"]["images"] == results["zero_shot"]["named"]["images"] == 48


def test_a_stopped_run_goes_on_with_the_same_bits(trained, data, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "8")  # as a run that was killed after its fourth step
    tiny_runs.run(workdir, tiny_runs.flags(data, "naflex", **SELDOM))
    assert tiny_runs.arrays(workdir, 8) == tiny_runs.arrays(trained[0], 8)


def test_pictures_of_any_shape_are_embedded(trained):
    model = xmodal.load(trained[0])
    whole = model.embed_image(pictures())
    assert whole.shape == (4, 32)
    alone = np.concatenate([model.embed_image(picture) for picture in pictures()])
    np.testing.assert_allclose(alone, whole, atol=1e-6)
    batch = model.prepare_images(pictures())
    assert batch["image"].shape == (4, 6, 192) and batch["image_grid"].tolist() == [[2, 3], [1, 4], [5, 1], [2, 3]]
    assert model.zero_shot(pictures(), ["thing 1", "thing 2"]).shape == (4, 2)


def test_words_point_to_patches_of_a_picture_in_its_shape(trained):
    found = xmodal.load(trained[0]).word_map(pictures()[1], "thing 1")
    assert found.words == ("thing", "1")
    assert found.scores.shape == (2, 1, 4) and found.picture.shape == (8, 32, 3)
    assert (np.abs(found.scores) <= 1 + 1e-5).all() and found.overlay("thing").size == (256, 64)
    with pytest.raises(DataError, match="pointing needs square images"):
        stored = open_stored(trained[0])
        Pointing(urls="none.tar").prepare("x", EvalContext(Live.of(stored, helpers.mesh())))


def test_an_index_holds_what_the_model_gives(trained, tmp_path):
    shown = {f"{i}": dict(png=encode(i, size=shape), txt=b"thing 1") for i, shape in enumerate(SHAPES)}
    shown["3"]["png"] = shown["3"]["png"][:100]
    write_tar(tmp_path / "s.tar", shown)
    assert main(["embed", str(tmp_path / "s.tar"), "--model", str(trained[0]), "--out", str(tmp_path / "index"),
                 "--batch-size", "8"]) == 0  # fmt: skip
    index = Index(tmp_path / "index")
    whole = xmodal.load(trained[0], batch_size=8).embed_image([shown[f"{i}"]["png"] for i in range(3)])
    assert [record["key"] for record in index.records()] == ["0", "1", "2"]
    np.testing.assert_allclose(index.vectors("image").matrix(), whole, atol=6e-4)


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
    image = again.config.data.inputs.image
    assert (image.crop, image.naflex.lengths, image.naflex.patch_size) == ("whole", (6,), 8)
    mine, theirs = (xmodal.load(where).embed_image(pictures()) for where in (trained[0], tmp_path / to))
    # The processor of this family is bilinear by default, and ours is what the run says: it is written down.
    np.testing.assert_allclose(theirs, mine, atol=1e-6)


def test_a_run_goes_on_from_squares(tmp_path):
    """SigLIP 2's own way: packed patches for the last part of the training."""
    given = open_stored(f"hf:{folders.hugging_face(tmp_path / 'hf', 'siglip')}")
    write_stored(given, tmp_path / "squares")
    config = continue_from(base.get_config(), tmp_path / "squares")
    image = config.model.towers.image.to_dict()
    config.data.inputs.image.update(crop="whole", naflex=dict(lengths=(36,), patch_size=8))
    config.batch_size = 8

    def started(positions):
        config.model.towers.image = presets.naflex(image, positions)
        with jax.set_mesh(mesh := helpers.mesh()):
            inputs = inputs_of(config.data).with_tokenizers(given.tokenizers)
            task = build_task(config, mesh, inputs, 100)
            ones = lambda s: jax.device_put(np.ones(s.shape, s.dtype), s.sharding)
            state = jax.tree.map(ones, task.abstract_state())
            return start_from(task, state)[0]["params"]["image"]

    same, fewer = started(6), started(4)
    for path, array in flatten_paths(given.params["image"]).items():
        np.testing.assert_array_equal(flatten_paths(same)[path], array, err_msg=path)
    resized = resize_grid(given.params["image"]["embed"]["position"], (6, 6), (4, 4))
    np.testing.assert_array_equal(fewer["embed"]["position"], resized)
    image["trunk"]["pattern"][0][1]["act"] = "relu"
    with pytest.raises(ConfigError, match="act: is 'relu', the weights have 'gelu_tanh'"):
        started(6)


def test_towers_and_data_must_agree(data, tmp_path, capsys):
    wrong = tiny_runs.flags(data, "naflex", data__inputs__image__naflex__lengths=(), data__inputs__image__crop="squash")
    message = tiny_runs.fail(tmp_path / "a", wrong, capsys)
    assert "naflex.lengths=() makes squares, and model.towers.image.embed takes packed patches" in message
    wrong = tiny_runs.flags(data, "clip", data__inputs__image__naflex__lengths=(4,), data__inputs__image__crop="whole")
    message = tiny_runs.fail(tmp_path / "b", wrong, capsys)
    assert "makes packed patches, and model.towers.image.embed takes squares" in message
    wrong = tiny_runs.flags(data, "naflex", data__inputs__image__naflex__patch_size=4)
    message = tiny_runs.fail(tmp_path / "c", wrong, capsys)
    assert "model.towers.image.embed.patch_size is 8, but data.inputs.image.naflex.patch_size is 4" in message
