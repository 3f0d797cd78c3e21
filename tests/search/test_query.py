"""Questions by text, picture, both, or a sample of the index; and the `search` command."""

import json
import re
import shutil

import numpy as np
import pytest

import xmodal
from data_pipelines.errors import DataError
from data_pipelines.text.tokenizers import Tokenizer, train_bpe
from tests.interop import test_vision as vision
from tests.search.conftest import GOOD, caption, embed, picture
from xmodal.__main__ import main
from xmodal.search import query as querying
from xmodal.search.index import Index
from xmodal.search.page import document
from xmodal.search.query import Query, Searcher
from xmodal.search.scripts import unread, warning_of


@pytest.fixture(scope="module")
def searcher(made_index):
    return Searcher.open(made_index)


@pytest.fixture(scope="module")
def model(model_folder):
    return xmodal.load(f"hf:{model_folder}", batch_size=8)


def best(matrix, vector, k):
    scores = matrix.astype(np.float64) @ (vector / np.linalg.norm(vector)).astype(np.float64)
    return np.argsort(-scores, kind="stable")[:k].tolist()


def test_a_picture_finds_itself_and_a_caption_its_own(searcher):
    hits = searcher.search(Query(image=picture(GOOD[11]), top=3))
    assert (hits[0].row, hits[0].record["key"]) == (11, f"{GOOD[11]:03d}") and hits[0].score > 0.9999
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    hits = searcher.search(Query(caption(GOOD[20]), among="text", top=1))
    assert hits[0].row == 20 and 0.9999 < hits[0].score <= 1.0
    assert searcher.search(Query(sample=11, top=3)) == pytest.approx(searcher.search(Query(sample=11, top=3)))
    assert searcher.search(Query(sample=11, top=1))[0].row == 11


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_a_text_and_a_picture_are_added(searcher, model, weight):
    text, image = model.embed_text("w12 w60")[0], model.embed_image([picture(77)])[0]
    query = Query("w12 w60", picture(77), weight=weight, top=9)
    expected = (1 - weight) * text + weight * image
    np.testing.assert_allclose(searcher.vector(query), expected / np.linalg.norm(expected), atol=1e-6)
    matrix = searcher.index.vectors("image").matrix()
    assert [hit.row for hit in searcher.search(query)] == best(matrix, expected, 9)
    like = searcher.vector(Query("w12 w60", sample=4, weight=weight))
    expected = (1 - weight) * text + weight * matrix[4] / np.linalg.norm(matrix[4])
    np.testing.assert_allclose(like, expected / np.linalg.norm(expected), atol=1e-6)


def test_what_cannot_be_asked_is_said(searcher):
    for arguments, message in (
        (dict(text="  "), "nothing is looked for"),
        (dict(image=b"x", sample=3), "look for one of them"),
        (dict(text="w9", weight=1.5), "expected 0"),
        (dict(text="w9", weight=float("nan")), "expected 0"),
        (dict(text="w9", top=0), "expected 1 to 1,000"),
        (dict(text="w " * 1001), "at most 2,000"),
        (dict(text="w9", among="sound"), "no embeddings of the kind 'sound'"),
        (dict(sample=99), "no sample 99"),
        (dict(image=b"no picture"), "not an image"),
    ):
        with pytest.raises(DataError, match=message):
            searcher.search(Query(**arguments))
    opposite = np.array([1.0, 0.0], np.float32)
    searcher_ = Searcher.__new__(Searcher)
    searcher_._embed = lambda kind, what: opposite if kind == "text" else -opposite
    with pytest.raises(DataError, match="cancel out"):
        searcher_.vector(Query("w9", b"x"), picture=-opposite)


def test_a_model_of_pictures_alone(tmp_path):
    folder = vision.hugging_face(tmp_path / "dinov2", "dinov2")
    for i in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    embed(tmp_path / "photos", "--model", f"hf:{folder}", "--out", tmp_path / "index")  # needs no captions
    searcher = Searcher.open(tmp_path / "index")
    searcher.warm()
    assert searcher.among == ("image",) and searcher.model.inputs == ("image",)
    assert searcher.search(Query(image=picture(2)))[0].record["key"] == "2.png"
    with pytest.raises(DataError, match="does not read texts"):
        searcher.search(Query("w9"))
    assert searcher.no_maps == "no tower of the model reads texts alone"
    with pytest.raises(DataError, match="no word maps: no tower of the model reads texts alone"):
        searcher.word_map(0, "w9")
    page, _ = document("photos", "", searcher.among, searcher.model.inputs, searcher.no_maps)
    assert "This model reads images alone" in page and "disabled" in page


def test_search_prints_tables_and_json(made_index, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(picture(GOOD[5]))
    question = ["search", "w10", "--image", str(tmp_path / "a.png"), "--weight", "0.9", "--index", str(made_index)]
    found = []
    for engine in ("numpy", "jax"):
        main([*question, "--top", "4", "--engine", engine, "--json"])
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["query"] == dict(text="w10", image=str(tmp_path / "a.png"), weight=0.9, among="image")
    assert len(found[0]["results"]) == 4 and set(found[0]["results"][0]) == {"row", "score", "shard", "key", "caption"}
    assert found[0]["results"][0]["row"] == 5
    main(["search", caption(GOOD[3]), "--index", str(made_index), "--among", "captions"])
    out = capsys.readouterr().out
    assert re.search(rf" 1 +(1\.0000|0\.999\d) +{caption(GOOD[3])} +{GOOD[3]:03d} +\S+/a\.tar", out) and re.search(
        r"\n 10 ", out
    )


def test_an_index_is_asked_with_its_own_model(made_index, index_copy, model_folder, tmp_path, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["search", "w9", *map(str, arguments)])
        assert end.value.code == 1
        return capsys.readouterr().err

    other = shutil.copytree(model_folder, tmp_path / "other")
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(config | dict(image_mean=[0.4, 0.4, 0.4])))
    assert "is not the model that this index was made with" in refused("--index", made_index, "--model", f"hf:{other}")
    manifest = json.loads((index_copy / "manifest.json").read_text())
    manifest["model"]["origin"] = f"hf:{tmp_path / 'gone'}"
    (index_copy / "manifest.json").write_text(json.dumps(manifest))
    assert "say where it is with --model" in refused("--index", index_copy)
    assert len(Searcher.open(index_copy, model=f"hf:{model_folder}").search(Query("w9"))) == 10
    assert "holds no index: `python -m xmodal embed" in refused("--index", tmp_path)
    assert "No such file" in refused("--index", made_index, "--image", tmp_path / "none.png")
    (index_copy / "manifest.json").write_text("{")
    assert "is not valid JSON" in refused("--index", index_copy)
    (index_copy / "manifest.json").write_text(json.dumps(manifest | dict(format=9)))
    with pytest.raises(DataError, match="format 1, which this version reads"):
        Index(index_copy)


def test_a_script_that_the_model_never_saw_is_said(searcher, made_index, monkeypatch):
    bpe = Tokenizer(train_bpe([f"thing number {i}" for i in range(200)], 400).json)
    assert unread(bpe, "thing 7") == (0, 6) and unread(bpe, "\u7b11\u8138 a") == (2, 3)
    assert unread(bpe, "") == unread(bpe, "  ") == (0, 0)
    warning = warning_of(bpe, "\u7b11\u8138", ["thing 7"])
    assert "does not know 100.0 % of the characters" in warning and "100.0 %" in warning.zh
    assert warning_of(bpe, "thing 7 \u7b11", ["thing 7"]) is None, "a word among many"
    assert warning_of(bpe, "\u7b11\u8138", ["\u7ea2\u5fc3"]) is None, (
        "data of the same script: the model was made for it"
    )
    assert searcher.warning("w9 w20") is None and searcher.warning("") is None
    monkeypatch.setattr(searcher.model, "tokenizer", bpe)
    assert searcher.warning("\u7b11\u8138")


def test_words_that_are_spelled_letter_by_letter_are_said(searcher, monkeypatch, made_index, capsys):
    captions = [f"\u7ea2\u5fc3\u548c\u7b11\u8138 {i}" for i in range(99)]
    chinese = Tokenizer(train_bpe([*captions, *"abcdefghijklmnopqrstuvwxyz"], 420).json)
    english = Tokenizer(train_bpe([f"a red heart number {i}" for i in range(200)], 400).json)
    warning = warning_of(chinese, "a red heart", captions)
    assert "letter by letter" in warning and "\u9010\u4e2a\u5b57\u6bcd" in warning.zh
    assert warning_of(chinese, "\u7b11\u8138 xy", captions) is None, "no word"
    assert warning_of(chinese, "a red heart", ["a red heart"]) is None, "the data are of this script"
    assert warning_of(english, "a red heart", captions) is None, "the tokenizer knows the words"
    monkeypatch.setattr(querying.Searcher, "warning", lambda self, text: warning)
    main(["search", "w9", "--index", str(made_index)])
    assert "warning: The model can hardly read this" in capsys.readouterr().err
    main(["search", "w9", "--index", str(made_index), "--json"])
    assert json.loads(capsys.readouterr().out)["warning"] == warning
