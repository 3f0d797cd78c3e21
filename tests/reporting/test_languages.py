"""Every page in English and Chinese: nothing is missing in either, and a page says everything in both."""

import ast
import json
import re
import shutil
import string
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from xmodal.reporting import messages
from xmodal.reporting.comparison import lines, open_compared
from xmodal.reporting.comparison_page import render
from xmodal.reporting.files import write_json
from xmodal.reporting.markup import el
from xmodal.reporting.messages import Message, dotted, say, term
from xmodal.reporting.metrics import MetricsWriter
from xmodal.reporting.page import asset, card, document
from xmodal.reporting.report import build_report
from xmodal.reporting.results import results_of, write_results
from xmodal.search.page import document as search_page

ROOT = Path(messages.__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def said() -> set[str]:
    """The messages that modules and scripts ask for."""
    found = set()
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "xmodal.reporting.messages import" not in text:
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id == "say":
                assert isinstance(call.args[0], ast.Constant), f"{path}:{call.lineno}: a message is a literal"
                found.add(call.args[0].value)
    for path in ROOT.rglob("assets/*.js"):
        found |= set(messages.used_by(path.read_text(encoding="utf-8")))
    return found


def places(text: str) -> set[tuple]:
    return {part[1:3] for part in string.Formatter().parse(text) if part[1] is not None}


def test_every_message_has_both_languages_and_none_is_left_over():
    known = messages.table()["messages"]
    assert said() - set(known) == set(), "without Chinese"
    assert set(known) - said() == set(), "asked for by nobody"


def test_both_languages_say_the_same_values():
    for kind, known in messages.table().items():
        for english, chinese in known.items():
            assert places(english) == places(chinese), english
            assert CHINESE.search(chinese) or not re.search("[a-z]{4}", re.sub(r"\{.*?\}", "", english)), (
                kind,
                english,
            )
            assert not CHINESE.search(english)
            assert not re.search(r"[\u4e00-\u9fff][,;:?!()]", chinese), f"half-width punctuation: {chinese}"


def test_messages_carry_their_values():
    found = say("step {step:,} of {total:,} ({share})", step=30, total=6000, share="0.5 %")
    assert found == "step 30 of 6,000 (0.5 %)"
    assert found.zh == "第 30 步，共 6,000 步（0.5 %）"  # noqa: RUF001
    title = say("{objective} loss", objective=term("contrastive"))
    assert title == "contrastive loss" and title.zh == "对比损失"
    assert term("my_own_set") == "my own set" and not isinstance(term("my_own_set"), Message)
    assert dotted(["unseen_vendor", "image_to_text"]).zh == "unseen vendor · 图搜文"
    assert term("image_to_text_of_train").zh == "图搜文 · train"


def test_both_texts_are_in_the_page_and_escaped():
    evil = say("{count} more", count="<b>")
    assert el("p", evil) == '<p><t-en>&lt;b&gt; more</t-en><t-zh lang="zh-Hans">另外 &lt;b&gt; 项</t-zh></p>'
    assert el("i", title=say("median")) == '<i title="median" data-zh-title="中位数"></i>'
    page = document(say("{count} runs", count=3), el("header"), [(say("Settings"), el("p"))], say("none"))
    assert page.startswith('<!doctype html>\n<html lang="en">'), "English where no script runs"
    assert '<title data-zh="3 次运行 · xmodal">3 runs · xmodal</title>' in page
    assert '<section id="settings">' in page and 'class="languages" hidden' in page


class Stray(HTMLParser):
    """Collects text that is in no language of its own, and attributes that have no Chinese."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        for name in ("title", "placeholder", "aria-label", "alt"):
            if own.get(name) and f"data-zh-{name}" not in own:
                self.attributes.append(own[name])
        if tag not in ("meta", "img", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"t-en", "t-zh", "script", "style"} & set(self.open) and data.strip():
            self.text.append(data.strip())


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    flat = {
        "retrieval/val/image_to_text/R@1": 0.2,
        "retrieval/val/image_to_text/R@5": 0.4,
        "retrieval/val/image_to_text/chance/R@1": 0.01,
        "retrieval/val/image_to_text/chance/R@5": 0.05,
    }
    with MetricsWriter(folder, False, 0) as writer:
        for step in (10, 20):
            row = {"train/loss": 4.0, "train/contrastive/loss": 4.0, "lr": 1e-3, "health/image_norm": 3.0}
            writer.write(step, 10 * step, row | {"throughput/samples_per_s": 7.0, "data/bad/corrupt jpeg": 2.0})
            writer.write(step, 10 * step, {f"eval/{name}": value for name, value in flat.items()})
    write_results(folder, results_of(dict(step=20, samples=200), flat))
    write_json(folder / "config.json", {"optimizer": {"lr": 1e-3}})
    (folder / "skipped.jsonl").write_text(json.dumps(dict(reason="corrupt jpeg", key="1")) + "\n")
    return folder


def pages(run, tmp_path):
    report = build_report(run).read_text(encoding="utf-8")
    other = shutil.copytree(run, tmp_path / "other")
    runs = open_compared([run, other])
    searching, _ = search_page("pictures", say("images"), ("image", "text"), ("image", "text"), "")
    return [report, render(runs, lines(runs)), searching]


def test_pages_say_everything_in_both_languages(run, tmp_path):
    known = {**messages.table()["messages"], **messages.table()["terms"]}
    for page in pages(run, tmp_path):
        found = Stray(page)
        assert not [text for text in found.text if text in known]
        assert set(found.attributes) <= {"Language / 语言"} | {text for text in found.attributes if text not in known}
        assert page.count("<t-en>") == page.count("<t-zh ") > 10
    assert str(el("b", card("x", "1")))  # plain text stays plain


def test_scripts_get_the_messages_that_they_say():
    script = asset("language.js") + asset("report.js")
    page = document("x", el("header"), [], "")
    data = json.loads(re.search(r'data-messages="(.*?)"', page)[1].replace("&quot;", '"'))
    assert data == messages.used_by(script) and data["step {step}"] == "第 {step} 步"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
@pytest.mark.parametrize("language", ["zh-CN", "en-US"])
def test_a_browser_shows_its_own_language(run, tmp_path, language):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=3000"]
    own = [f"--user-data-dir={tmp_path / 'profile'}", f"--lang={language}", f"--accept-lang={language}"]
    command = [CHROMIUM, *flags, *own, "--dump-dom", build_report(run).as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    chinese = language == "zh-CN"
    assert f'<html lang="{"zh-Hans" if chinese else "en"}"' in page
    assert re.search(rf'data-language="{"zh-Hans" if chinese else "en"}" aria-pressed="true"', page)
    assert (' placeholder="搜索键和值"' in page) == chinese
    assert 'class="languages">' in page, "the switch is there"
