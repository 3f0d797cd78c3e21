"""`lines`: a text whose lines are a caption each, as in CLIP_benchmark's retrieval sets."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.modalities import inputs_of
from data_pipelines.samples import Record
from data_pipelines.sources import open_source
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.evaluation.retrieval import candidates, ranks, recalls


@pytest.fixture
def golden(tmp_path):
    with np.load(Path(__file__).parents[1] / "golden" / "lines.npz", allow_pickle=False) as file:
        arrays = dict(file)
    (tmp_path / "r.tar").write_bytes(arrays["tar"].tobytes())
    return arrays | dict(urls=str(tmp_path / "r.tar"))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_figures_are_those_of_clip_benchmark(golden, config):
    config.inputs.text.lower = False
    dataset = EvalSet(dict(urls=golden["urls"], lines=True), config)
    own = [record.captions for record in dataset.records]
    texts, pairs = candidates(own, merge=False)
    assert texts == golden["captions"].tolist() and len(dataset) == 12
    images, captions, figures = unit(golden["images"]), unit(golden["texts"]), json.loads(str(golden["figures"]))
    to_text, _ = recalls(ranks(images, captions, pairs), len(texts), np.bincount(pairs[:, 0]))
    to_image, _ = recalls(ranks(captions, images, pairs[:, ::-1]), len(images), np.bincount(pairs[:, 1]))
    for k in (1, 5, 10):
        assert to_text[f"R@{k}"] == pytest.approx(figures[f"text_retrieval_recall@{k}"])
        assert to_image[f"R@{k}"] == pytest.approx(figures[f"image_retrieval_recall@{k}"])


def test_without_it_lines_are_one_caption_and_the_option_is_named_once(golden, config, caplog):
    glued = EvalSet(dict(urls=golden["urls"]), config, where="evals.r")
    assert len(glued.records[3].captions) == 1 and "\n" not in glued.records[3].captions[0]
    hints = [record.message for record in caplog.records if "several lines" in record.message]
    assert len(hints) == 1 and hints[0].startswith("evals.r: ") and "data.inputs.text.lines" in hints[0]
    caplog.clear()
    EvalSet(dict(urls=golden["urls"], lines=True), config)
    assert "several lines" not in caplog.text


def test_no_hint_for_a_single_line(config, tmp_path, caplog):
    write_tar(tmp_path / "one.tar", {f"{i}": sample(i) | dict(txt=b"\n one line \r\n\n") for i in range(4)})
    assert EvalSet(dict(urls=str(tmp_path / "one.tar")), config).records[0].captions == ["one line"]
    assert "several lines" not in caplog.text


def test_training_draws_the_lines(config, tmp_path):
    text = b"first line\n\n  second   line \nTHIRD line\r\n"
    write_tar(tmp_path / "t.tar", {f"{i:03d}": sample(i) | dict(txt=text) for i in range(64)})
    config.sources, config.inputs.text.length = dict(main=dict(urls=str(tmp_path / "t.tar"), lines=True)), 24
    tokenizer, seen = Tokenizer.load(config.inputs.text.tokenizer), Counter()
    with open_stream(config, batch_size=32, seed=0) as stream:
        for _ in range(8):
            seen.update(tokenizer.decode(row) for row in next(stream)["text"])
    assert set(seen) == {"first line", "second line", "third line"} and min(seen.values()) > 50
    config.inputs.text.num_items = 3
    with open_stream(config, batch_size=32, seed=0) as stream:
        rows = next(stream)["text"]
    assert all(len({tokenizer.decode(row) for row in own}) > 1 for own in rows)


def test_templates_use_no_lines(config):
    config.inputs.text.lines, config.inputs.text.templates = True, ((1.0, "{label}"),)
    with pytest.raises(DataError, match=r"lines .*templates"):
        inputs_of(config).check()
    with Files() as files:  # but sources without templates of their own may follow the run
        source = open_source("main", config.sources.main, config, files, where="x")
        assert not source.rules.inputs.caption.lines


def test_the_rule_is_part_of_what_captions_are(config):
    plain = inputs_of(config)["text"]
    config.inputs.text.lines = True
    lines, record = inputs_of(config)["text"], Record(dict(text="a\nb"), {})
    assert plain.signature() == lines.signature() and plain.captions.rendering != lines.captions.rendering
    assert lines.captions.every(record) == ["a", "b"] == lines.captions.longest(record)
