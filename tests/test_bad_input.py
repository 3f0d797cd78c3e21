"""What is wrong with settings, data or disk is said in one message that names it and the remedy; exit code 1."""

import json
import os
import re
import resource
import shutil
import time
from pathlib import Path

import pytest

from tests import tiny_runs
from tests.data.tiny_shards import sample, write_tar
from tests.tiny_runs import ACCEPT, ActAt, StopAt, fail, flags, run
from xmodal.distributed.runtime import Runtime


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


# ------------------------------------------------------------------------------------------ settings

SETTINGS = {
    "unknown option": (
        dict(optimizer__lrr=1),
        r"command line: unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'",
    ),
    "wrong type": (dict(batch_size="many"), r"batch_size: expected an integer, got 'many'"),
    "unknown objective": (
        dict(objectives__contrastive__type="sofmax"),
        r"objectives.contrastive.type: expected softmax, .*got 'sofmax'. Did you mean 'softmax'",
    ),
    "unknown option of an objective": (
        dict(objectives__contrastive__wieght=1),
        r"objectives.contrastive: unknown key 'wieght'. Did you mean 'weight'",
    ),
    "missing tower": (
        dict(objectives__contrastive__between=("image", "txt")),
        r"objectives.contrastive: there is no tower 'txt'. Did you mean 'text'\? Towers: image, text",
    ),
    "towers of different widths": (
        dict(model__towers__text__embed_dim=16),
        r"objectives.contrastive: the towers must pool to the same width, not {'image': 32, 'text': 16}: set",
    ),
    "unpooled tower": (
        dict(model__towers__image__pool="none"),
        r"objectives.contrastive: needs image.pooled, so model.towers.image.pool must not be 'none'",
    ),
    "mixed images in odd rows": (
        dict(data__inputs__image__mixup=0.2, batch_size=24, data__lanes=4),
        r"each device needs an even number of rows of a micro-batch, not 3 \(batch_size=24",
    ),
    "unknown intervals": (dict(log__intervals="bcas"), r"log.intervals='bcas': expected bca, .*Did you mean 'bca'"),
    "unknown evaluator": (dict(evals__held_out__type="retreival"), r"evals.held_out.type: .*Did you mean 'retrieval'"),
    "unknown option of an evaluator": (
        dict(evals__held_out__limits=3),
        r"evals.held_out: unknown key 'limits'.*'limit'",
    ),
    "evaluator of a missing tower": (
        dict(evals__held_out__type="captioning"),
        r"evals.held_out: there is no tower 'caption'. .*Towers: image, text",
    ),
    "held-out data": (
        dict(evals__held_out__urls="nowhere.tar"),
        r"evals.held_out.source: no shard matches 'nowhere.tar'",
    ),
    "batch and devices": (
        dict(batch_size=12),
        r"batch_size=12 cannot be split .* 8 batch shards .*must be a multiple of 8; the nearest are 8 or 16",
    ),
    "batch and accumulation": (dict(accumulation=3), r"batch_size=16 .*accumulation=3 .*multiple of 24; .*24"),
    "batch and lanes": (dict(data__lanes=3), r"batch_size=16 is not a multiple of data.lanes=3"),
    "mesh": (dict(mesh__fsdp=3), r"mesh.fsdp=3, .*the fixed axes take 3 devices and there are 8; .*must divide 8"),
    "mesh rule": (
        dict(mesh__rules="(('image/nothing', ('fsdp',)),)"),
        r"mesh.rules: the pattern 'image/nothing' matches no parameter. .*some paths: ",
    ),
    "optimizer rule": (dict(optimizer__rules="(('image/nothing', {{}}),)"), r"optimizer.rules.*image/nothing.*match"),
    "optimizer": (dict(optimizer__name="adam"), r"optimizer.name: expected adamw, .*got 'adam'. Did you mean 'adamw'"),
    "skipped steps": (dict(optimizer__max_nonfinite=0), r"optimizer.max_nonfinite=0: at least 1 step"),
    "duration": (dict(schedule__total="5weeks"), r"schedule.total: '5weeks' is not a duration; write .500steps"),
    "best metric": (
        dict(checkpoint__best="retrieval/other/R@1"),
        r"checkpoint.best='retrieval/other/R@1' is no metric .*theirs begin with retrieval/held_out/",
    ),
    "image size": (
        dict(data__inputs__image__size=20),
        r"model: image size \(20, 20\) is not a multiple of the patch size 8",
    ),
    "two image sizes": (
        dict(model__towers__image__embed__image_size=32),
        r"model.towers.image.embed.image_size is 32, but data.inputs.image.size is 16: set it to 0",
    ),
    "too few positions": (
        dict(model__towers__text__embed__length=4),
        r"model.towers.text.embed.length is 4, but data.inputs.text.length is 8: set it to 0",
    ),
    "images that samples do not have": (
        dict(data__inputs="{{'text': {{'type': 'text', 'length': 8, 'tokenizer': '{data}/tokenizer.json'}}}}"),
        r"model.towers.image reads 'image', and by data.inputs samples have text",
    ),
    "a mask that the tokenizer does not have": (
        dict(objectives__contrastive__type="masked_text"),
        r"objectives.contrastive: the tokenizer has no mask \(\[MASK\] or <mask>\): take one that has",
    ),
    "no data": (dict(data__sources__main__urls=""), r"data.sources.main needs `urls`, such as"),
    "missing shard": (
        dict(data__sources__main__urls="{data}/s-{{00..04}}.tar"),
        r"data.sources.main: shard .*s-02.tar and 2 more of .* do not exist; 2 of its shards do",
    ),
    "unknown field": (
        dict(data__inputs__text__templates="((1.0, '{{lable}}'),)"),
        r"uses the field 'lable', .*did you mean 'label'.*fields there: group, label",
    ),
    "no tokenizer": (dict(data__inputs__text__tokenizer="none.json"), r"no file 'none.json' \(looked at "),
    "tokenizer of another kind": (
        dict(data__inputs__text__tokenizer="{data}/s-00.tar"),
        r"s-00.tar is not a Hugging Face tokenizer.json",
    ),
    "tokenizer larger than the model": (
        dict(model__towers__text__embed__vocab_size=100),
        r"model.towers.text.embed.vocab_size is 100, but the vocabulary of data.inputs.text.tokenizer is \d+: set it",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(data, tmp_path, capsys, case):
    changes, message = SETTINGS[case]
    changes = {key: value.format(data=data) if isinstance(value, str) else value for key, value in changes.items()}
    error = fail(tmp_path / "run", flags(data, **changes), capsys)
    assert re.search(message, error, re.DOTALL), error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_recipes(data, tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from xmodal.configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.optimizer.learning_rate = 1\n    return c\n"
    )
    error = fail(tmp_path / "run", ["--config", str(recipe)], capsys)
    assert re.search(r"recipe.py: unknown key 'optimizer.learning_rate'.*optimizer", error), error
    error = fail(tmp_path / "run", ["--config", "configs/dem.py"], capsys)
    assert "there is no recipe configs/dem.py. Did you mean 'configs/demo.py'" in error
    error = fail(tmp_path / "run", ["--config", f"{tiny_runs.RECIPE}:clipp"], capsys)
    assert "tiny.py has no variant 'clipp'. Did you mean 'clip'? Variants: clip, noisy, coca, naflex, captions" in error


def test_a_tokenizer_without_an_end_mark(data, tmp_path, capsys):
    tokenizer = json.loads((data / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None  # whose template would tell
    text = json.dumps(tokenizer, ensure_ascii=False).replace("<eos>", "<stop>")
    (tmp_path / "tokenizer.json").write_text(text)
    error = fail(tmp_path / "run", flags(data, data__inputs__text__tokenizer=tmp_path / "tokenizer.json"), capsys)
    assert re.search(r"tokenizer.json has no end token: none of <eos>, .* is in its vocabulary", error)


# ------------------------------------------------------------------------------------------ data


def test_shards_that_cannot_be_used(data, tmp_path, capsys):
    (tmp_path / "text.tar").write_bytes(b"not a tar" * 1000)
    error = fail(tmp_path / "run", flags(data, data__sources__main__urls=tmp_path / "text.tar"), capsys)
    assert re.search(r"data.sources.main: .*text.tar is not a tar", error)
    write_tar(tmp_path / "mute.tar", {f"{i}": sample(i) | dict(txt=b" \n") for i in range(9)})
    error = fail(tmp_path / "run", flags(data, data__sources__main__urls=tmp_path / "mute.tar"), capsys)
    assert re.search(r"no usable sample.*empty caption: 9", error)


def flawed(folder, bad):
    """Two shards of 24 samples, the first cut in its last one, in which `bad` of the images are damaged."""
    samples = {f"{i:05d}": sample(i) for i in range(48)}
    for i in range(bad):
        samples[f"{3 * i:05d}"]["png"] = samples[f"{3 * i:05d}"]["png"][:-20]
    samples["00004"]["txt"] = b""
    del samples["00007"]["txt"]
    names = sorted(samples)
    first = write_tar(folder / "s-00.tar", {name: samples[name] for name in names[:24]})
    first.write_bytes(first.read_bytes()[: -8 * 1024])  # end marks, and the last sample's members
    write_tar(folder / "s-01.tar", {name: samples[name] for name in names[24:]})
    return folder / "s-{00..01}.tar"


def test_flawed_data_train_and_every_loss_is_counted(data, tmp_path, capsys):
    urls = flawed(tmp_path, bad=3)
    assert run(tmp_path / "run", flags(data, data__sources__main__urls=urls), StopAt(3)) == {"step": 3}
    out = capsys.readouterr().out
    assert re.search(r"left out +empty caption 1 +no caption 1 +truncated tail 1 *\n", out), out
    last = tiny_runs.rows(tmp_path / "run")[-1]
    assert last["data/skipped/truncated_tail"] == last["data/skipped/empty_caption"] == 1
    assert last["data/replaced"] == last["data/bad/corrupt_png"] >= 3
    assert last["data/bad_share"] == pytest.approx(last["data/replaced"] / 48)
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    reasons = {(line["key"], line["reason"]) for line in lines}
    assert {("00000", "corrupt png"), ("00003", "corrupt png"), ("00004", "empty caption")} <= reasons
    assert all(Path(line["shard"]).name in ("s-00.tar", "s-01.tar") for line in lines)
    assert "corrupt png" in (tmp_path / "run" / "report.html").read_text()


def test_too_many_bad_images_stop_the_run(data, tmp_path, capsys):
    urls = flawed(tmp_path, bad=12)
    error = fail(tmp_path / "run", flags(data, data__sources__main__urls=urls, batch_size=512, data__window=32), capsys)
    assert re.search(r"\d+.\d% of 512 samples could not be read \(corrupt png \d+\); the last one is \d+ of ", error)
    assert "skipped.jsonl" in error and "above data.max_bad_share=0.05" in error


# ------------------------------------------------------------------------------------------ run folders


def test_folders_that_cannot_hold_a_run(data, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        error = fail(workdir, flags(data), capsys)
        assert error.startswith(f"error: --workdir {workdir}: no run folder can be made or written there")
    assert (tmp_path / "file").read_text() == "mine"
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):  # the superuser may write anywhere but to the kernel's own folders
        locked = Path("/proc/1")
    assert f"--workdir {locked}: no run folder can be made" in fail(locked, flags(data), capsys)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run of which two steps are done."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    run(workdir, flags(data), StopAt(2))
    return workdir


@pytest.fixture
def workdir(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def test_another_model_is_refused_with_the_difference(data, workdir, capsys):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    error = fail(workdir, [*flags(data, model__towers__image__trunk__depth=3), ACCEPT], capsys)
    assert re.search(r"checkpoints/2 was saved by a different model or optimizer:\n", error)
    assert re.search(r"image/trunk/.*/kernel: saved float32\[2, 32, \d+\], this config wants float32\[3,", error)
    assert "Use the config that began this run (its config.json), or another --workdir" in error
    error = fail(workdir, [*flags(data, optimizer__name="lion"), ACCEPT], capsys)
    assert "only in the checkpoint: opt_state/" in error
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_another_tokenizer_is_refused(data, workdir, tmp_path, capsys):
    tokenizer = json.loads((data / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "other.json").write_text(json.dumps(tokenizer))
    error = fail(workdir, flags(data, data__inputs__text__tokenizer=tmp_path / "other.json"), capsys)
    assert re.search(r"inputs.text.tokenizer: .*other.json is not the tokenizer that this run has trained with", error)


# ------------------------------------------------------------------------------------------ disk and numbers


def test_full_disk_for_metrics(data, workdir, capsys):
    def fill():
        (number,) = (
            int(entry.name)
            for entry in Path("/proc/self/fd").iterdir()
            if os.path.realpath(entry) == str((workdir / "metrics.jsonl").resolve())
        )
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, number)  # from now on the kernel says: no space left
        os.close(full)

    error = fail(workdir, flags(data), capsys, ActAt(4, fill))
    assert re.search(r"error: No space left on device while writing .*metrics.jsonl. Free space on that disk", error)
    assert "the same command again: it resumes from the last checkpoint" in error
    assert run(workdir, flags(data), StopAt(6)) == {"step": 6}
    steps = [row["step"] for row in tiny_runs.rows(workdir) if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_full_disk_for_a_checkpoint(data, workdir, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up():
        while not (workdir / "checkpoints" / "2").exists():  # saved beside the steps
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        error = fail(workdir, flags(data), capsys, ActAt(3, fill_up))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(r"error: the checkpoint of step 4 could not be written to .*: .*that large there", error)
    assert "Run the same command again when that is mended: it goes on from step 2" in error
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]


def test_a_loss_that_is_not_finite_stops_the_run_with_its_weights_unharmed(data, tmp_path, capsys):
    arguments = flags(data, objectives__contrastive__logit_scale=1000.0)  # exp of it is infinite
    error = fail(tmp_path, arguments, capsys, Runtime.start())
    assert "step 5: the loss or gradient was not finite 5 steps in a row. The weights are those of before" in error
    assert "Lower optimizer.lr (now 0.003)" in error
    early, late = ({k: v for k, v in tiny_runs.arrays(tmp_path, step).items() if k[0] in "po"} for step in (2, 4))
    assert early == late and early["params/image/embed/kernel"]["checksum"]
    moments = [v["checksum"] for k, v in early.items() if "/mu/" in k or "/nu/" in k]
    assert moments and not any(moments)
    rows = [row for row in tiny_runs.rows(tmp_path) if "train/loss" in row]
    assert rows[-1]["train/loss"] is None and rows[-1]["health/nonfinite_total"] == len(rows) == 5
    assert any("not finite" in alarm for row in rows for alarm in row.get("alarms", ()))
