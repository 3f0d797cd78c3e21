"""The HTML report: complete, self-contained, safe against its own data, and useful when parts are missing."""

import base64
import html
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from xmodal.reporting import svg
from xmodal.reporting.environment import write_environment
from xmodal.reporting.files import write_json
from xmodal.reporting.gallery import render_gallery
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.metrics import MetricsWriter
from xmodal.reporting.report import build_report
from xmodal.reporting.results import results_of, write_results
from xmodal.reporting.scores import Scores
from xmodal.reporting.svg import Series, chart

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)"
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG picture").decode()
FLAT = {
    "retrieval/unseen_vendor/image_to_text/R@1": 0.17,
    "retrieval/unseen_vendor/image_to_text/R@10": 0.53,
    "retrieval/unseen_vendor/image_to_text/chance/R@1": 0.00055,
    "retrieval/unseen_vendor/image_to_text/chance/R@10": 0.0055,
    "retrieval/unseen_vendor/images": 1811.0,
}


class Page(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag, class_=None):
        return [a for t, a in self.elements if t == tag and (class_ is None or class_ in a.get("class", "").split())]


def page(folder):
    return Page(build_report(folder).read_text(encoding="utf-8"))


def gallery(caption=EVIL, image=PIXEL):
    candidates = [{"text": caption, "score": 0.7, "correct": True}, {"text": "other", "score": 0.1, "correct": False}]
    found = [{"image": image, "title": caption, "score": 0.5, "correct": i == 2} for i in range(8)]
    return {
        "retrieval/unseen_vendor": {
            "image_to_text": [{"image": image, "truth": [caption], "rank": 1, "candidates": candidates}],
            "text_to_image": [{"text": caption, "rank": 3, "candidates": found}],
        },
        "captioning/unseen_vendor": {
            "captions": [{"image": image, "truth": caption, "generated": "red heart", "correct": False}]
        },
    }


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "demo"
    with MetricsWriter(run, False, 0) as writer:
        for step in range(10, 201, 10):
            row = {
                "train/loss": 5.5 - step / 100,
                "train/contrastive/loss": math.nan if step == 50 else 5.5 - step / 100,
                "train/contrastive/logit_scale": 14.3,
                "train/contrastive/image_to_text": step / 400,
                "lr": 1e-3,
                "health/image_norm": 3.0,
                "health/nonfinite_total": 0.0,
                "throughput/samples_per_s": 1000.0,
                "throughput/data_wait": 0.02,
                "my/new/metric": 7.0,
            }
            alarms = [EVIL] if step == 100 else []
            writer.write(step, 256 * step, row, alarms)
            if step % 100 == 0:
                writer.write(step, 256 * step, {f"eval/{name}": value for name, value in FLAT.items()})
    write_environment(
        run, {"total_steps": 200, "chance_loss": {"contrastive": 5.545}, "parameters": {"image": 3_000_000}}
    )
    write_results(run, results_of(dict(step=200, samples=51200), FLAT))
    write_json(run / "config.json", {"optimizer": {"name": "adamw", "lr": 1e-3}, "note": EVIL})
    write_json(run / "gallery.json", gallery())
    lines = [{"reason": "corrupt image", "shard": EVIL, "key": str(i)} for i in range(30)]
    (run / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"reas')
    return run


def test_every_part_is_there(folder):
    found = page(folder)
    titles = [a["id"] for a in found.of("section")]
    assert titles == [
        *("alarms", "evaluation", "retrievals", "captions", "training", "health", "speed", "other-metrics"),
        *("skipped-samples", "details"),
    ]
    assert {a["href"] for a in found.of("a")} == {f"#{title}" for title in titles}
    for text in ("finished after 200 steps", "53.0 %", "chance 0.55 %", "chance 5.545", "3M", "corrupt image"):
        assert text in found.text, text
    assert "adamw" in found.text and "optimizer.lr" in found.text and "metric" in found.text
    assert len(found.of("img")) == 1 + 8 + 1
    assert "skipped steps" not in found.text  # a counter of trouble that stayed zero


def test_right_and_wrong_are_marked(folder):
    found = page(folder)
    assert len(found.of("div", "item")) == 2 and len(found.of("div", "query")) == 1
    assert len(found.of("li", "hit")) == 1 and len(found.of("figure", "hit")) == 1
    verdicts = [a["class"].split()[-1] for a in found.of("div", "item") + found.of("div", "query")]
    assert verdicts == ["right", "wrong", "wrong"]


def test_classes_and_confusions(folder):
    rows = [{"class": f"c{i}", "images": 10, "recall": 1 - i / 20} for i in range(9)]
    rows += [{"class": EVIL, "images": 10, "recall": 0.05, "taken_for": "c1", "share": 0.95}]
    confusions = [{"class": EVIL, "taken_for": f"c{i}", "images": 20 - i, "share": 0.1} for i in range(14)]
    details = {"zero_shot/groups/per_class": rows, "zero_shot/groups/confusions": confusions}
    write_results(folder, results_of(dict(step=200, samples=51200), FLAT | {"zero_shot/groups/top1": 0.5}, {}, details))
    found = page(folder)
    assert "classes" in [a["id"] for a in found.of("section")]
    assert "4 more" in found.text and "All 10 classes, those found least first" in found.text
    assert found.text.count(EVIL) >= 15 and len(found.of("script")) == 1
    assert found.text.index("c1 (95.0 %)") < found.text.index("60.0 %") < found.text.index("100.0 %")


def test_intervals_stand_under_the_figures(folder):
    hits = {
        "retrieval/unseen_vendor/image_to_text": Scores({"R@1": np.arange(1000) < 170, "R@10": np.arange(1000) < 530})
    }
    results = results_of(dict(step=200, samples=51200), FLAT, hits)
    write_results(folder, results, hits)
    low, high = results["retrieval"]["unseen_vendor"]["image_to_text"]["ci95"]["R@10"]
    assert low < 0.53 < high and f"[{100 * low:.1f}, {100 * high:.1f}]" in page(folder).text


def test_data_never_becomes_code(folder):
    found = page(folder)
    assert len(found.of("script")) == 1  # our own
    assert not [a for _, a in found.elements if any(key.startswith("on") for key in a)]
    assert EVIL in found.text
    (policy,) = (a["content"] for a in found.of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


@pytest.mark.parametrize(
    "image", ["javascript:alert(1)", "https://example.org/a.png", "data:text/html;base64,AAAA", None]
)
def test_only_embedded_pictures_are_shown(image):
    rendered = render_gallery(gallery("a", image), "captions")
    assert "<img" not in rendered and "no image" in rendered


def test_the_report_needs_nothing_from_outside(folder):
    for _, attributes in page(folder).elements:
        for key in ("src", "href", "action", "data"):
            value = attributes.get(key, "#")
            assert value.startswith(("#", "data:image/")), (key, value)


def test_the_report_stays_small(folder):
    picture = "data:image/png;base64," + "A" * 40_000
    items = [{"image": picture, "truth": "a", "generated": "a", "correct": True}] * 500
    write_json(folder / "gallery.json", {"captioning/a": {"captions": items}, "captioning/b": {"captions": items}})
    path = build_report(folder)
    assert 3e6 < path.stat().st_size < 5e6
    assert "more in gallery.json" in path.read_text()


@pytest.mark.parametrize(
    "missing", ["metrics.jsonl", "environment.json", "results.json", "gallery.json", "config.json"]
)
def test_each_part_may_be_missing(folder, missing):
    (folder / missing).unlink()
    assert "demo" in page(folder).text


def test_an_empty_run_and_no_run(tmp_path):
    assert "no metrics yet" in page(tmp_path).text
    with pytest.raises(FileNotFoundError, match="--workdir"):
        build_report(tmp_path / "nowhere")


def test_the_newest_evaluation_is_shown(folder):
    with MetricsWriter(folder, False, 200) as writer:  # a finished run that was prolonged
        writer.write(300, 76800, {"eval/retrieval/unseen_vendor/image_to_text/R@10": 0.61})
    found = page(folder)
    assert "61.0 %" in found.text and "at step 300" in found.text


def test_elements_escape_everything_but_markup():
    built = el("p", "<b>", el("i", "&"), Markup("<hr>"), None, [1, "'"], title='"<', hidden=True, class_=None)
    assert built == '<p title="&quot;&lt;" hidden>&lt;b&gt;<i>&amp;</i><hr>1\'</p>'


@pytest.mark.parametrize("low, high", [(0, 1), (0.3, 0.31), (1e-7, 3e-7), (-5, 17), (0, 123456)])
def test_ticks_are_round_and_cover_the_range(low, high):
    marks = svg.ticks(low, high)
    assert 4 <= len(marks) <= 12 and marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12
    assert all(len(f"{mark:.9g}".replace("-", "").replace(".", "").strip("0").split("e")[0]) <= 4 for mark in marks)


def test_thinning_keeps_spikes():
    y = [1.0] * 10_000
    y[4321], y[777] = 99.0, -99.0
    x, kept = svg.thin(range(10_000), y)
    assert len(x) <= svg.POINTS and max(kept) == 99.0 and min(kept) == -99.0
    assert x == sorted(x) and x[kept.index(99.0)] == 4321


def test_smoothing_neither_lags_nor_spreads_gaps():
    line = [float(i) for i in range(200)]
    line[100] = math.nan
    smooth = svg.smoothed(line)
    assert smooth[50] == pytest.approx(50.0) and smooth[150] == pytest.approx(150.0)
    assert all(map(math.isfinite, smooth))


def test_a_chart_breaks_at_gaps_and_carries_its_values():
    drawn = chart("loss", [Series("loss", [0, 10, 20, 30], [4.0, math.nan, 2.0, 1.0])], references=[("chance 4", 4.0)])
    line = re.search(r'<path d="([^"]+)" class="c0"', drawn)[1]
    assert line == "M0 0h0M667 500h0L1000 750"
    assert 'class="reference"' in drawn and "chance 4" in drawn
    data = json.loads(html.unescape(re.search(r'data-chart="([^"]+)"', drawn)[1]))
    assert data["lines"] == [[[0, 10, 20, 30], [4.0, None, 2.0, 1.0]]]
    assert chart("empty", [Series("x", [1.0], [math.nan])]) == ""


def test_a_logarithmic_axis_only_for_positive_values():
    positive = chart("loss", [Series("loss", [0, 1], [100.0, 0.1])], log_switch=True)
    assert positive.count("<svg") == 2 and 'type="checkbox"' in positive
    assert chart("loss", [Series("loss", [0, 1], [1.0, 0.0])], log_switch=True).count("<svg") == 1


def test_charts_name_their_axes_and_know_samples_and_time(folder):
    found = page(folder)
    for text in ("training steps", "samples seen", "training time", "share of the queries", "factor on the cosine"):
        assert text in found.text, text
    (axes,) = found.of("span", "axes")
    clock = json.loads(axes["data-clock"])
    assert clock["step"] == list(range(10, 201, 10)) and clock["sample"] == [256 * step for step in clock["step"]]
    assert len(clock["time"]) == 20 and clock["time"] == sorted(clock["time"])
    buttons = [a for a in found.of("button") if "data-axis" in a]
    assert [(a["data-axis"], a["aria-pressed"]) for a in buttons] == [
        ("step", "true"),
        ("sample", "false"),
        ("time", "false"),
    ]


def test_the_best_step_is_marked(folder):
    best = "retrieval/unseen_vendor/image_to_text/R@10"
    with MetricsWriter(folder, False, 200) as writer:
        for step, value in ((210, 0.7), (220, 0.7), (230, 0.6)):
            writer.write(step, 256 * step, {f"eval/{best}": value})
    assert "best: step" not in page(folder).text
    for mode, step in (("max", 220), ("min", 200)):
        write_json(folder / "config.json", {"checkpoint": {"best": best, "best_mode": mode}})
        found = page(folder)
        assert f"best: step {step}" in found.text and f"第 {step} 步" in found.text
        assert len(found.of("path", "event")) == len(found.of("i", "event")) >= 1


def test_the_start_stands_beside_the_end(folder):
    name = "retrieval/unseen_vendor/image_to_text/R@10"
    assert "start 5" not in page(folder).text
    rows = (folder / "metrics.jsonl").read_text()
    first = (
        dict(step=0, samples=0, time=1.0)
        | {f"eval/{key}": value for key, value in FLAT.items()}
        | {f"eval/{name}": 0.5}
    )
    (folder / "metrics.jsonl").write_text(json.dumps(first) + "\n" + rows)
    found = page(folder)
    assert found.text.count("start 50.0 % (+3.0)") >= 2, "in the header and in the table"
    assert "start 17.0 % (+0.0)" in found.text and "起点 50.0 % (+3.0)" in found.text
    assert "start 1,811" not in found.text, "numbers of images are no figures"


def test_changed_options_come_first(folder):
    write_json(
        folder / "config.json", {"seed": 0, "batch_size": 77, "optimizer": {"lr": 0.5, "rules": [["a/b", {"lr": 1}]]}}
    )
    text = page(folder).text
    first, _, rest = text.partition("All options")
    assert "Changed options (3)" in first and "batch_size" in first and "a/b → lr=1" in first
    assert "seed" in rest and "seed" not in first.rpartition("Changed options")[2]
