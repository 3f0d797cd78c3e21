"""A whole run, as a user starts it: what it leaves behind, what it has learned, and what the commands make of it."""

import html.parser
import json
import re
import shutil
import textwrap

import pytest

from tests import tiny_runs
from xmodal.__main__ import main
from xmodal.config import load_config, load_saved
from xmodal.distributed.runtime import Runtime
from xmodal.reporting.results import nest

STEPS, BATCH = 100, 48


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def arguments(data):
    return tiny_runs.flags(
        data, "coca", batch_size=BATCH, schedule__total=STEPS, schedule__warmup=10, optimizer__lr=5e-3,
        checkpoint__every="50%", checkpoint__best="retrieval/held_out/image_to_text/R@1", log__every=10,
        log__tensorboard=True, evals__held_out__every="50%", evals__written__every="50%",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    """The folder of a run that saw 48 pairs a hundred times, and what it printed."""
    workdir = tmp_path_factory.mktemp("run") / "new" / "folder"
    code, out, error = tiny_runs.finish(tiny_runs.start_training(workdir, arguments))
    assert code == 0, error
    assert "Traceback" not in error
    return workdir, out


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished[0] / "results.json").read_text())


def test_run_folder(finished, arguments):
    workdir, _ = finished
    expected = "checkpoints config.json environment.json gallery.json metrics.jsonl report.html results.json"
    more = {"results.scores.npz", "tensorboard", "tokenizer.json"}
    assert {p.name for p in workdir.iterdir()} == {*expected.split(), *more}
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["100", "50"]
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    config = load_config(arguments[1], arguments[2:])
    saved = load_saved(workdir / "config.json")
    assert saved.schedule == config.schedule and saved.data == config.data
    assert saved.model.towers.text.embed.vocab_size > 0, "what the tokenizer decides is filled in"
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["run"]["total_steps"] == STEPS and environment["run"]["parameters"]["caption"] > 1000
    meta = json.loads((workdir / "checkpoints" / "100" / "meta" / "data.json").read_text())
    assert meta["position"] == STEPS * BATCH
    assert json.loads(meta["config"]) == json.loads((workdir / "config.json").read_text())
    assert meta["tokenizers"]["text"] == (workdir / "tokenizer.json").read_text()
    assert meta["metrics"]["retrieval/held_out/image_to_text/R@1"] >= 0.95


def test_what_was_shown_was_learned(results):
    assert (results["step"], results["samples"]) == (STEPS, STEPS * BATCH)
    retrieval, written = results["retrieval"]["held_out"], results["captioning"]["written"]
    for way in ("image_to_text", "text_to_image"):
        assert retrieval[way]["R@1"] >= 0.95 and retrieval[way]["R@10"] == 1
        assert retrieval[way]["chance"]["R@1"] == pytest.approx(1 / tiny_runs.SAMPLES)
        low, high = retrieval[way]["ci95"]["R@1"]
        assert 0.8 < low <= retrieval[way]["R@1"] <= high <= 1
    assert (retrieval["images"], retrieval["captions"]) == (tiny_runs.SAMPLES, tiny_runs.SAMPLES)
    assert written["exact_match"] >= 0.95 and written["token_accuracy"] >= 0.95
    assert written["chance"]["exact_match"] == pytest.approx(1 / tiny_runs.SAMPLES)
    assert written["chance"]["token_accuracy"] < 0.75


def test_metrics(finished, results):
    rows = tiny_runs.rows(finished[0])
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(10, STEPS + 1, 10))
    assert all(row["samples"] == row["step"] * BATCH for row in rows)
    assert all(a["time"] <= b["time"] for a, b in zip(rows, rows[1:]))
    first, last = training[0], training[-1]
    for name in ("lr", "train/grad_norm", "train/contrastive/loss", "train/captioning/accuracy", "data/bad_share"):
        assert name in last, sorted(last)
    assert {"health/image_norm", "health/modality_gap", "health/nonfinite_total"} <= last.keys()
    assert last["throughput/samples_per_s"] > 0 and 0 <= last["throughput/data_wait"] <= 1
    assert last["train/loss"] < first["train/loss"] / 5
    assert last["lr"] < first["lr"]
    evaluations = [row for row in rows if any(key.startswith("eval/") for key in row)]
    assert [row["step"] for row in evaluations] == [50, 50, 100, 100]
    final = {key[5:]: value for row in evaluations[-2:] for key, value in row.items() if key.startswith("eval/")}
    assert {"step": STEPS, "samples": STEPS * BATCH} | nest(final) == without_intervals(results)


def without_intervals(tree):
    """Results as the series of metrics has them: a row holds figures, not their intervals."""
    return {k: without_intervals(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "ci95"}


class Links(html.parser.HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.pictures = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "href", "data", "poster", "action") and tag != "a":
                self.pictures += (value or "").startswith("data:image/")
                if not (value or "").startswith(("data:", "#")):
                    self.loaded.append((tag, name, value))


def test_report_is_one_file(finished):
    text = (finished[0] / "report.html").read_text()
    links = Links(text)
    assert not links.loaded and links.pictures >= 8
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)|@import", text)
    for shown in ("thing 1", "100.0 %", "contrastive", "written", "schedule"):
        assert shown in text, shown


def test_summary_and_table_are_printed(finished):
    _, out = finished
    for line in (r"devices +1 x cpu", r"mesh +data 1 x fsdp 1 x tensor 1", r"chance loss .*contrastive 3\.871",
                 r"start +fresh", r"schedule +100 steps", r"image → text +(9|100)"):  # fmt: skip
        assert re.search(line, out), line


def test_evaluating_the_checkpoint_gives_the_same_figures(finished, results, tmp_path, monkeypatch):
    """In a process like that of the run the floats are equal; `--step` reads an older checkpoint."""
    monkeypatch.setenv("COLUMNS", "300")  # tables in one piece
    workdir, _ = finished
    script = "import sys; from xmodal.__main__ import main; [main(['eval', *a.split()]) for a in sys.argv[1:]]"
    commands = [f"--workdir {workdir} --json {tmp_path}/{name}.json" for name in ("newest", "older")]
    commands[1] += " --step 50 --only held_out --intervals none"
    code, out, error = tiny_runs.finish(tiny_runs.start(["-c", script, *commands]))
    assert code == 0, error
    assert json.loads((tmp_path / "newest.json").read_text()) == results
    older = json.loads((tmp_path / "older.json").read_text())
    row = next(r for r in tiny_runs.rows(workdir) if "eval/retrieval/held_out/images" in r)
    metrics = {key[5:]: value for key, value in row.items() if key.startswith("eval/")}
    assert older == {"step": 50, "samples": 50 * BATCH} | nest(metrics)
    assert len(re.findall(r"image → text", out)) == 4, "as each evaluation ends, and in its table"


def test_a_finished_run_is_only_evaluated_again_on_any_mesh(finished, arguments, results, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(finished[0], workdir)
    before = tiny_runs.arrays(workdir, STEPS)
    again = tiny_runs.run(workdir, [*arguments, "--config.mesh.fsdp=4"], devices=8)  # the run had one
    assert again["retrieval"] == results["retrieval"] and again["captioning"] == results["captioning"]
    assert tiny_runs.rows(workdir) == tiny_runs.rows(finished[0])
    assert tiny_runs.arrays(workdir, STEPS) == before


def test_report_is_rebuilt_from_the_folder(finished, tmp_path, capsys):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    (workdir / "report.html").unlink()
    assert main(["report", "--workdir", str(workdir)]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")
    assert not Links((workdir / "report.html").read_text()).loaded


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval --workdir {run} --only held_in", r"has no evaluator 'held_in'. Did you mean 'held_out'\? .*written"),
        ("eval --workdir {run} --step 77", r"checkpoint .*77 cannot be used: .*Complete steps there: 50, 100"),
        ("eval --model {run}/nothing", r"there is no folder .*nothing"),
        ("eval --model {run} --suite nowhere.json", r"there is no suite nowhere\.json\. Suites of xmodal: emoji\.json"),
        ("eval --model {run} --format clip_benchmark", r"--format clip_benchmark writes a folder"),
        ("report --workdir {run}/checkpoints", r"is not a run folder: it has no config.json"),
    ],
)
def test_commands_name_what_is_not_there(finished, capsys, command, message):
    with pytest.raises(SystemExit) as end:
        main(command.format(run=finished[0]).split())
    assert end.value.code == (2 if "--format" in command else 1)
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)


def test_starting_is_quick_and_leaves_the_devices_alone():
    """A backend that is up before jax.distributed.initialize makes every run of several processes fail."""
    script = """
        import sys
        import train, xmodal.__main__
        from xmodal.config import load_config
        for recipe in ("demo", "clip", "siglip", "coca", "git", "vit_classify", "lit", "flip"):
            load_config(f"configs/{recipe}.py")
        late = {"orbax.checkpoint", "tensorstore", "optax", "tensorboardX"} & set(sys.modules)
        assert not late, f"{late} take seconds to import and --help needs none of them"
        import xmodal.training.loop, xmodal.stored.run
        from jax._src import xla_bridge
        assert not xla_bridge.backends_are_initialized()
    """
    code, _, error = tiny_runs.finish(tiny_runs.start(["-c", textwrap.dedent(script)]))
    assert code == 0, error


class Noting(Runtime):
    """A process whose watchdog notes what it gave more time to."""

    def __init__(self):
        super().__init__()
        self.slow = []

    def watchdog(self, *limits, **options):
        watchdog, notes = super().watchdog(*limits, **options), self.slow
        give = watchdog.slow
        watchdog.slow = lambda what: notes.append(what) or give(what)
        return watchdog


def test_a_mixture_in_batches_of_two_lengths(data, tmp_path, capsys):
    """Sources are listed with how often they are seen; each length gets the time to compile, and compiles once."""
    options = dict(data__batches="by_source", data__inputs__text__length=24, data__inputs__text__buckets="(8,)")
    arguments = tiny_runs.flags(data, schedule__total=8, checkpoint__every=0, **options)
    config = load_config(arguments[1], arguments[2:])
    config.evals = {}
    config.data.sources.made = dict(type="synthetic", samples=40, scale=0.1, weight=((0, 1.0), ("4steps", 3.0)))
    tiny_runs.run_config(tmp_path, config, runtime := Noting())
    assert runtime.slow.count("compiling the step") == 2
    out = capsys.readouterr().out
    rows = [re.findall(r"^ (m\S+) +(\d+) +(\d+) +(\S+) % +(\S+)", line) for line in out.splitlines()]
    assert [row for (row,) in filter(None, rows)] == [
        ("made/24", "40", "0", "50.0", "2"), ("main/8", "48", "0", "50.0", "1"),
    ]  # fmt: skip
    last = tiny_runs.rows(tmp_path)[-1]
    assert (last["data/epochs/main/8"], last["data/epochs/made/24"]) == (1, 2) and last["data/replaced/main/8"] == 0
