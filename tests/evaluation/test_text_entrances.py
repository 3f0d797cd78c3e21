"""A text is the same tokens wherever it comes in: training, every evaluation, inference, search, a teacher."""

import json
import re

import jax
import numpy as np
import pytest

import xmodal
from data_pipelines.modalities import OtherText, inputs_of
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.preparation import CLEANING, Preparation
from data_pipelines.text.tokenizers import Tokenizer, train_bpe
from tests.data.tiny_shards import encode, write_tar
from xmodal.__main__ import main
from xmodal.config import make_spec, validate, with_inputs
from xmodal.configs import base
from xmodal.distributed.mesh import make_mesh
from xmodal.evaluation import EvalContext
from xmodal.evaluation.captioning import Captioning
from xmodal.evaluation.embedding import text_batches
from xmodal.evaluation.pairs import Pairs
from xmodal.evaluation.pointing import Pointing
from xmodal.evaluation.retrieval import Retrieval
from xmodal.evaluation.zero_shot import ZeroShot
from xmodal.live import Live
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.search.query import Query, Searcher
from xmodal.stored.base import Stored
from xmodal.stored.project import write_stored

# Tabs, line ends, spaces that do not break, entities of entities, decomposed letters, capitals, quotes, full width.
ODD = [
    "red heart one", " Red\tHeart two\n", "caf\u00e9 and cafe\u0301 three", "red\u00a0 heart &amp;amp; dog four",
    "\u201ca\u201d, \uff21\uff22 &quot;x&quot; five\r\n", "A_b! (c) six",
]  # fmt: skip
LENGTH, WAYS = 48, [(clean, lower) for clean in CLEANING for lower in (False, True)]


def made(folder, clean, lower) -> Stored:
    """A model without layers, and its tokenizer's file in `folder`."""
    tokenizer = train_bpe(["a red heart", "Red Heart", 'caf\u00e9 & "dog"'], 300)
    (folder / "tokenizer.json").write_text(tokenizer.json)
    config, bare = base.get_config(), dict(embed_dim=4, scan=False)
    config.model = presets.dual_tower(
        image=presets.image_tower(4, 0, 1, patch_size=8, embed=dict(image_size=16), **bare),
        text=presets.text_tower(4, 0, 1, embed=dict(vocab_size=tokenizer.vocab_size, length=LENGTH), **bare),
    )
    config.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    text = dict(type="text", length=LENGTH, lower=lower, clean=clean, tokenizer=str(folder / "tokenizer.json"))
    config.data.inputs = dict(image=dict(type="image", size=16, crop="squash"), text=text)
    config.data.lanes = 1
    config.data.sources = dict(main=dict(urls=str(folder / "odd.tar")))
    config = with_inputs(validate(config, base.get_config()))
    params = Functional.build(make_spec(ModelSpec, config.model, where="model")).init(jax.random.key(0))
    params = jax.tree.map(np.asarray, params) | dict(objectives=dict(contrastive=dict(logit_scale=np.float32(1.0))))
    return Stored(config, params, dict(text=tokenizer), "odd")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    samples = {}
    for i, text in enumerate(ODD):
        fields = dict(caption=text, lines=ODD, wrong=[other for other in ODD if other != text], label=text)
        fields |= dict(things=[dict(text=text, box=[0, 0, 0.5, 1])])
        samples[f"{i}"] = dict(png=encode(i), txt=text.encode(), json=json.dumps(fields).encode())
    write_tar(folder / "odd.tar", samples)
    return folder


@pytest.fixture
def rows(monkeypatch):
    """Runs something, and returns the ids of all texts that a tokenizer was given in it."""
    original = Tokenizer.encode

    def watch(run):
        found = set()

        def encode(self, texts, length):
            ids, valid = original(self, texts, length)
            found.update(map(tuple, ids.tolist()))
            return ids, valid

        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "encode", encode)
            run()
        return found

    return watch


def context_of(stored) -> EvalContext:
    """Evaluations whose towers give anything: what is looked at is what goes in."""
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:1])
    context = EvalContext(Live.of(stored, mesh))
    ones = lambda params, batch: np.ones((8, 4), np.float32)
    words = lambda params, batch: dict(x=np.ones((8, LENGTH, 4), np.float32))
    patches = lambda params, batch: dict(x=np.ones((8, 4, 4), np.float32))
    context.__dict__.update(embed=dict(image=ones, text=ones), embed_local=dict(image=patches, text=words))
    return context


def evaluations(urls):
    both = dict(urls=urls, batch_size=8)
    return dict(
        retrieval=Retrieval(**both, examples=0), captions=Retrieval(**both, captions=("{caption}",), examples=0),
        caption_list=Retrieval(**both, caption_list="lines", examples=0),
        classes=ZeroShot(**both, label_field="label"),
        given_classes=ZeroShot(**both, classes=tuple(ODD), labels=tuple(text.strip() for text in ODD)),
        prompts=ZeroShot(**both, label_field="label", prompts=("\t{label}\n ",)),
        pairs=Pairs(**both, captions=("{caption}",), wrong=("wrong",)), boxes=Pointing(**both, boxes="things"),
    )  # fmt: skip


@pytest.mark.parametrize("clean, lower", WAYS)
def test_a_text_is_the_same_tokens_everywhere(clean, lower, shards, rows):
    stored = made(shards, clean, lower)
    config, urls = stored.config.data, str(shards / "odd.tar")

    with open_stream(config, batch_size=6, seed=0) as stream:
        trained = {tuple(row) for _ in range(4) for row in next(stream)["text"].tolist()}
    preparation = Preparation(clean, lower)
    wanted = stored.tokenizer.encode([preparation(text) for text in ODD], LENGTH)[0]
    assert trained == set(map(tuple, wanted.tolist())) and len(trained) == len(ODD)

    context = context_of(stored)
    with jax.set_mesh(context.mesh):
        for name, evaluator in evaluations(urls).items():
            assert rows(lambda: evaluator.prepare("x", context)({})) == trained, name  # noqa: B023
        assert rows(lambda: Captioning(urls=urls).prepare("x", context)) == trained
        held_out = [record.captions[0] for record in context.open(urls).records]
        assert rows(lambda: list(text_batches(held_out, context, 8, "text"))) == trained, "masked texts"

    model = xmodal.Model(stored, mesh=context.mesh, batch_size=8)
    images = np.zeros((16, 16, 3), np.uint8)
    assert set(map(tuple, model.prepare_texts(ODD)["text"].tolist())) == trained
    assert rows(lambda: model.embed_text(ODD)) == trained
    assert rows(lambda: model.zero_shot(images, ODD, templates=("{label}\n",))) == trained
    assert rows(lambda: [model.word_map(images, text) for text in ODD]) == trained


def test_search_reads_texts_so_too(shards, rows, tmp_path):
    stored = made(shards, "canonicalize", False)
    write_stored(stored, tmp_path / "model")
    wanted = set(map(tuple, xmodal.load(tmp_path / "model").prepare_texts(ODD)["text"].tolist()))
    command = ["embed", str(shards / "odd.tar"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "index")]
    assert rows(lambda: main([*command, "--batch-size", "8", "--thumbnails", "16"])) == wanted
    searcher = Searcher.open(tmp_path / "index")
    assert rows(lambda: [searcher.search(Query(text=text, among="image")) for text in ODD]) == wanted
    assert rows(lambda: [searcher.word_map(0, text) for text in ODD]) == wanted


def test_a_teacher_reads_what_it_would_read_by_itself(shards):
    stored = made(shards, "none", False)
    config, theirs = stored.config.data, Preparation("canonicalize")
    left = theirs.after(inputs_of(config)["text"].prepare)
    other = {"teacher": OtherText(stored.tokenizer, LENGTH, left)}
    with open_stream(config, batch_size=6, seed=0, texts=other) as stream:
        found = {tuple(row) for _ in range(4) for row in next(stream)["teacher"].tolist()}
    assert found == set(map(tuple, stored.tokenizer.encode([theirs(text) for text in ODD], LENGTH)[0].tolist()))


def test_what_is_left_to_do_after_another_preparation():
    none, lower, canonical = Preparation(), Preparation(lower=True), Preparation("canonicalize")
    assert none.after(canonical) == none and lower.after(none) == lower and lower.after(lower) == none
    assert lower.after(canonical) == none and canonical.after(lower) == canonical and canonical.after(canonical) == none


def test_names_are_found_in_a_prepared_template(shards):
    stored = made(shards, "canonicalize", False)
    pairs = Pointing(
        urls=str(shards / "odd.tar"), label_field="label", template="The {left},  &amp; the {right}!", pairs=4
    )
    context = context_of(stored)
    with jax.set_mesh(context.mesh):
        cases = pairs._pairs(pairs.open("x", context), context)
    assert len(cases) == 4 and all(case.text == context.prepare(case.text) for case in cases)
    for case in cases:
        (a, b, _), (c, d, _) = case.names
        assert re.fullmatch(re.escape(f"the {case.text[a:b]} the {case.text[c:d]}"), case.text)
