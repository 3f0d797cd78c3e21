"""What a run leaves behind can be opened, evaluated and taken out, also where its newest checkpoint is no good."""

import json
import shutil

import numpy as np
import pytest

import xmodal
from tests import tiny_runs
from tests.data.tiny_shards import encode, write_tar
from xmodal.__main__ import main
from xmodal.checkpoints.reading import CheckpointError, list_steps
from xmodal.commands.evaluate import evaluate
from xmodal.configs.base import get_config
from xmodal.evaluation import embedding
from xmodal.interop.averaging import average, interpolate
from xmodal.interop.recipe import continue_from
from xmodal.interop.tables import InteropError
from xmodal.paths import map_paths
from xmodal.reporting.results import read_results
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

METRIC = "retrieval/held_out/image_to_text/R@1"
GROUPED = dict(data__group_key="group", schedule__total=4, optimizer__ema=0.5, data__inputs__image__exif=True)


class Flag:
    """Makes embeddings NaN from some step on."""

    def __init__(self):
        self.up, self.gather = False, embedding.gather

    def __call__(self, array):
        found = self.gather(array)
        return np.full_like(found, np.nan) if self.up and np.issubdtype(found.dtype, np.floating) else found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    """A run that was trained with a group key and wants photographs turned; checkpoints at steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    tiny_runs.run(workdir, tiny_runs.flags(data, **GROUPED))
    return workdir


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Data that have a text and no fields, as those of somebody else."""
    folder = tmp_path_factory.mktemp("suite")
    samples = {f"{i}": {"png": encode(i), "txt": f"thing {i}".encode()} for i in range(12)}
    urls = str(write_tar(folder / "other.tar", samples))
    evals = dict(r=dict(type="retrieval", urls=urls, batch_size=16, examples=0))
    (folder / "suite.json").write_text(json.dumps(dict(evals=evals)))
    return folder / "suite.json"


def test_other_data_need_not_have_the_group_key(workdir, suite):
    found = evaluate(workdir, suite=suite).results["retrieval"]["r"]
    assert (found["images"], found["captions"]) == (12, 12)


# ------------------------------------------------------------------------------------------- weights of several


def test_means_and_interpolations_are_evaluated_without_an_export(workdir, suite, data, tmp_path, capsys):
    start = tmp_path / "start"
    write_stored(open_stored(workdir, step=2), start)
    mixed = {
        ("--average", "2,4"): average(open_stored(workdir, step=step) for step in (2, 4)),
        ("--interpolate", "0.25", "--start", str(start)): interpolate(open_stored(start), open_stored(workdir), 0.25),
    }
    for number, (flags, stored) in enumerate(mixed.items()):
        out, folder = tmp_path / f"{number}.json", tmp_path / f"folder{number}"
        assert main(["eval", "--model", str(workdir), "--suite", str(suite), "--json", str(out), *flags]) == 0
        found = json.loads(out.read_text())
        write_stored(stored, folder)
        assert found["retrieval"] == evaluate(folder, suite=suite).results["retrieval"]
        assert found["model"] == str(workdir) and found["weights"].startswith(("mean of steps 2, 4", "0.25 of the way"))
    assert main(["eval", "--model", str(workdir), "--average", "last:1", "--intervals", "none"]) == 0
    capsys.readouterr()
    for flags, message in (
        (["--average", "2", "--step", "2"], "exclude each other"),
        (["--start", str(start)], "--start says where --interpolate SHARE begins"),
        (["--interpolate", "0.5"], "started from random weights"),
        (["--average", "3"], "has the checkpoints 2, 4"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", "--model", str(workdir), *flags])
        assert message in capsys.readouterr().err


def test_a_run_leaves_as_a_folder_of_our_own(workdir, suite, tmp_path, capsys):
    for dtype, limit in (("f32", 0.0), ("bf16", 2e-2)):
        out = tmp_path / dtype
        assert main(["export", "--workdir", str(workdir), "--to", "xmodal", "--dtype", dtype, "--out", str(out)]) == 0
        texts = ["thing 3", "thing 41"]
        difference = np.abs(xmodal.load(out).embed_text(texts) - xmodal.load(workdir).embed_text(texts)).max()
        assert difference <= limit and (dtype == "f32" or difference > 0)
        assert json.loads((out / "config.json").read_text())["data"]["inputs"]["text"]["tokenizer"] == "tokenizer.json"
    results = [evaluate(where, suite=suite).results["retrieval"] for where in (workdir, tmp_path / "f32")]
    assert results[0] == results[1]
    assert 'xmodal.load("DIR")' in (tmp_path / "f32" / "README.md").read_text()
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "image.jaxexport").write_bytes(b"")
    for command in (["eval", "--model"], ["embed", "x.tar", "--out", str(tmp_path / "index"), "--model"]):
        with pytest.raises(SystemExit):
            main([*command, str(tmp_path / "jax")])
        error = capsys.readouterr().err
        assert "programs for JAX alone" in error and "export --to xmodal" in error and "Traceback" not in error


def test_what_is_tuned_shows_images_as_it_learned_them(workdir):
    config = continue_from(get_config(), workdir)
    assert config.data.inputs.image.exif is True


# ------------------------------------------------------------------------------------------- damaged, diverged


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(workdir, suite, tmp_path, caplog, capsys):
    whole, damage = xmodal.load(workdir, step=2).embed_text(["thing 3"]), {}
    damage["document"] = lambda step: (step / "meta" / "data.json").write_text("{")
    damage["arrays"] = lambda step: [p.write_bytes(b"") for p in (step / "state").rglob("*") if p.is_file()]
    for name, spoil in damage.items():
        run = shutil.copytree(workdir, tmp_path / name)
        spoil(run / "checkpoints" / "4")
        caplog.clear()
        np.testing.assert_array_equal(xmodal.load(run).embed_text(["thing 3"]), whole)
        (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("xmodal")]
        assert "step 4 (" in line and "step 2 is used" in line and "\n" not in line
        assert evaluate(run, suite=suite).results["step"] == 2
        with pytest.raises(CheckpointError, match="checkpoints/4 cannot be used"):
            xmodal.load(run, step=4)
    index = ["embed", str(suite.parent / "other.tar"), "--model", str(run), "--out", str(tmp_path / "index")]
    assert main(index) == 0
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["model"]["step"] == 2
    spoil(run / "checkpoints" / "2")
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged: step 4 \(.*step 2 \("):
        xmodal.load(run)


def test_weights_that_are_no_numbers_are_refused_wherever_they_are(workdir, suite, tmp_path, capsys):
    stored = open_stored(workdir)
    path = "text/trunk/final_norm/scale"
    bad = map_paths(lambda p, a: np.full_like(a, np.nan) if p == path else np.asarray(a), stored.params)
    write_stored(type(stored)(stored.config, bad, stored.tokenizers, "a test"), tmp_path / "own")
    with pytest.raises(
        InteropError, match=f"{tmp_path}/own holds weights that are NaN or infinite:\n  {path}: 32 of 32"
    ):
        xmodal.load(tmp_path / "own")
    for command in (["eval", "--suite", str(suite)], ["embed", "x.tar", "--out", str(tmp_path / "index")]):
        with pytest.raises(SystemExit):
            main([*command, "--model", str(tmp_path / "own")])
        assert path in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--workdir", str(tmp_path / "own"), "--to", "hf", "--out", str(tmp_path / "out")])
    assert path in capsys.readouterr().err


def test_a_run_that_diverged_is_refused(workdir, monkeypatch):
    import xmodal.stored.run as trained

    restore = trained.restore_params
    spoil = lambda p, a: a.at[0].set(np.inf) if p == "objectives/contrastive/logit_scale_x" or p.endswith("bias") else a
    monkeypatch.setattr(trained, "restore_params", lambda *given: map_paths(spoil, restore(*given)))
    with pytest.raises(ValueError, match=r"checkpoints/4 .* holds weights that are NaN or infinite: \S+bias: "):
        xmodal.load(workdir)
    with pytest.raises(ValueError, match="holds weights that are NaN or infinite"):
        evaluate(workdir)


def test_a_step_whose_evaluation_is_no_number_is_never_the_best(data, tmp_path, monkeypatch, capsys):
    flag = Flag()
    monkeypatch.setattr(embedding, "gather", flag)
    options = dict(checkpoint__best=METRIC, checkpoint__keep_last=1, evals__held_out__every=1, schedule__total=4)
    lower = lambda: setattr(flag, "up", True)
    results = tiny_runs.run(tmp_path / "run", tiny_runs.flags(data, **options), tiny_runs.ActAt(2, lower))
    assert results == read_results(tmp_path / "run") == {"step": 4, "samples": 64}, "no earlier results in their place"
    rows = [row for row in tiny_runs.rows(tmp_path / "run") if f"eval/{METRIC}" in row]
    assert [row["step"] for row in rows] == [1, 2]
    best = max(rows, key=lambda row: (row[f"eval/{METRIC}"], row["step"]))["step"]
    assert list_steps(tmp_path / "run" / "checkpoints") == [best, 4]
    said = " ".join(capsys.readouterr().out.split())
    assert "no result of held_out: evals.held_out: the embedding of the image of sample 00000 of s-00.tar" in said
