"""Texts alone: samples without an image, in every kind of source, stream, evaluation set and command."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import data_section
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.__main__ import main

TEXTS = [f"thing {i}" for i in range(48)]


def text(i, kind="txt"):
    """The members of sample i: a .txt, a .json, or a .txt beside an image that is none."""
    fields = json.dumps(dict(caption=TEXTS[i], number=i)).encode()
    both = dict(txt=TEXTS[i].encode())
    return dict(txt=both, json=dict(json=fields), broken=both | dict(jpg=b"no image"))[kind]


@pytest.fixture
def texts(config, tmp_path):
    """The `data` section of a config that reads two tars of texts alone."""
    for shard in range(2):
        members = {f"{i:03d}": text(i, "broken" if i % 8 == 0 else "txt") for i in range(24 * shard, 24 * (shard + 1))}
        write_tar(tmp_path / f"t-{shard}.tar", members)
    config.sources = dict(main=dict(urls=str(tmp_path / "t-{0,1}.tar")))
    del config.inputs.image
    return config


def read(config, count=1, **options):
    with open_stream(config, batch_size=48, seed=3, **options) as stream:
        return [next(stream) for _ in range(count)], stream.summary()


def test_an_epoch_holds_every_text_once_and_no_images(texts, tokenizer_file):
    (first, second), summary = read(texts, 2)
    assert set(first) == {"text", "text_valid", "key_id", "caption_id"}
    assert summary["samples"] == summary["epoch_size"] == 48 and not summary["skipped"]
    tokenizer = Tokenizer.load(tokenizer_file)
    for batch in (first, second):
        assert sorted(tokenizer.decode(row) for row in batch["text"]) == sorted(TEXTS)
    assert np.any(first["text"] != second["text"])
    parts = [read(texts, shard=(i, 2))[0][0] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([part["text"] for part in parts]), first["text"])


def test_what_is_usable_depends_on_what_samples_must_have(tmp_path):
    config = data_section()
    members = {"a": sample(0), "b": text(1), "c": dict(png=encode(3)), "d": text(2, "broken"), "e": dict(txt=b" ")}
    entry = dict(urls=str(write_tar(tmp_path / "a.tar", members)))
    with Files() as files:
        both = open_source("main", entry, config, files)
        assert both.skipped == {"no image": 2, "no caption": 1}  # what is in the image shows when it is read
        del config.inputs.image
        alone = open_source("main", entry, config, files)
        assert alone.skipped == {"no caption": 1, "empty caption": 1} and alone.samples == 3
        assert [(s.key, s.parts) for s in alone.read(alone.blocks(2**20), 0)] == [("a", {}), ("b", {}), ("d", {})]
        with pytest.raises(DataError, match=r"data\.sources\.main: unique is 'image', and by data\.inputs"):
            open_source("main", entry | dict(unique="image"), config, files)


def test_without_images_the_message_says_what_to_set(texts):
    texts.inputs.image = dict(type="image")
    texts.sources.main.urls = texts.sources.main.urls.replace("{0,1}", "1")
    write_tar(Path(texts.sources.main.urls), {f"{i:03d}": text(i) for i in range(4)})
    with pytest.raises(DataError, match=r"no usable sample .*no image: 4\)\. .*leave images out of data\.inputs"):
        read(texts)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "synthetic"])
def test_lists_need_no_column_of_images(kind, config, tmp_path):
    path, rows = tmp_path / f"list.{kind}", [dict(text=caption, number=i) for i, caption in enumerate(TEXTS)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        path.write_text("text,number\n" + "".join(f"{row['text']},{row['number']}\n" for row in rows))
    elif kind == "parquet":
        import pyarrow as arrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path)
    entry = dict(type="synthetic", samples=48) if kind == "synthetic" else dict(type="files", urls=str(path))
    config.sources = dict(main=entry)
    del config.inputs.image
    (batch,), summary = read(config)
    assert "image" not in batch and summary["samples"] == 48 and summary["bytes"] < 48 * 100
    assert len(np.unique(batch["caption_id"], axis=0)) == 48


def test_evaluation_sets_hold_texts(texts):
    held_out = EvalSet(texts.sources.main.urls, texts)
    assert [record.captions for record in held_out.records] == [[caption] for caption in TEXTS]
    batches = list(held_out.batches(20))
    assert [set(batch) for batch in batches] == [{"index", "valid"}] * 3
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), [*range(48), *[-1] * 12])


def test_the_commands_take_texts_alone(tmp_path, capsys):
    """From a list to shards, and these verified, measured and shown."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(dict(text=t, number=i)) + "\n" for i, t in enumerate([*TEXTS, ""])))
    main(["data", "build", str(path), "--texts", "--out", str(tmp_path / "shards"), "--workers", "1"])
    assert "48 samples in 1 shard (" in capsys.readouterr().out
    shards = str(tmp_path / "shards" / "*.tar")
    main(["data", "verify", shards, "--texts", "--workers", "1"])
    assert "48 samples read: all can be used" in capsys.readouterr().out
    main(["data", "stats", shards, "--texts", "--workers", "1", "--out", str(tmp_path / "stats")])
    printed, page = capsys.readouterr().out, (tmp_path / "stats" / "stats.html").read_text()
    assert "caption characters" in printed and "image width" not in printed
    assert (
        "<h2><t-en>Captions" in page and "<h2><t-en>Images" not in page and "nan" not in page.partition("<script>")[0]
    )
    found = json.loads((tmp_path / "stats" / "stats.json").read_text())["together"]
    assert found["characters"]["count"] == 48 and found["bad"] == {} and found["fields"]["number"]["filled"] == 1.0
    main(["data", "preview", shards, "--texts", "--samples", "3", "--out", str(tmp_path / "preview.html")])
    page = (tmp_path / "preview.html").read_text()
    assert page.count("<figcaption") == 12 and "<img" not in page and "thing" in page
    with pytest.raises(SystemExit):
        main(["data", "stats", "--config", "configs/demo.py", "--texts"])
    assert "--texts describes data that have no recipe" in capsys.readouterr().err
