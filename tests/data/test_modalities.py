"""Inputs: several of one modality, those that samples may lack, texts after texts, chance by name, their identity."""

import hashlib
import json

import numpy as np
import pytest
from tiny_inputs import make_image, make_inputs, make_text
from tiny_shards import encode, write_tar

from data_pipelines.errors import BadSample, DataError
from data_pipelines.modalities import MODALITIES, Inputs, Part, Random, inputs_of
from data_pipelines.modalities.inputs import open_inputs
from data_pipelines.samples import Record
from data_pipelines.stream.contents import contents
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer

COUNT = 40


def take(config, count=1, **options):
    with open_stream(config, **(dict(batch_size=8, seed=3) | options)) as stream:
        return [next(stream) for _ in range(count)], stream.summary()


def joined(batches) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture
def pairs(config, tmp_path):
    """Samples with two images, of which every fourth lacks the second, and a question with an answer."""
    fields = lambda i: json.dumps(dict(question=f"thing {i} is what", answer=f"thing {i + 1}")).encode()
    second = lambda i: {} if i % 4 == 3 else {"depth.png": encode(1000 + i)}
    made = lambda i: {"png": encode(i), "json": fields(i), "txt": f"thing {i}".encode()} | second(i)
    write_tar(tmp_path / "p.tar", {f"{i:03d}": made(i) for i in range(COUNT)})
    config.sources = dict(main=dict(urls=str(tmp_path / "p.tar")))
    return config


def test_two_images_of_a_sample(pairs):
    image = pairs.inputs.image.to_dict()
    (plain,), _ = take(pairs)
    pairs.inputs.depth = image | dict(member="depth.png", required=False)
    pairs.inputs.image.member = "png"
    batches, summary = take(pairs, 5)
    whole = joined(batches)
    assert summary["samples"] == COUNT and whole["depth"].shape == (COUNT, 16, 16, 3)
    assert (~whole["depth_there"]).sum() == COUNT // 4 and not whole["depth"][~whole["depth_there"]].any()
    assert whole["depth"][whole["depth_there"]].any((1, 2, 3)).all()
    np.testing.assert_array_equal(batches[0]["image"], plain["image"], "another input changes nothing for it")
    pairs.inputs.depth.required = True
    _, summary = take(pairs)
    assert summary["skipped"] == {"no image": COUNT // 4}


def test_two_images_need_their_members(pairs):
    pairs.inputs.depth = pairs.inputs.image.to_dict()
    with pytest.raises(DataError, match=r"data\.inputs\.image and data\.inputs\.depth would both take .* `member`"):
        take(pairs)


def test_lists_have_a_column_for_each_input(config, tmp_path):
    rows = []
    for i in range(16):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
        rows.append(dict(left=f"{i}.png", right=f"{(i + 1) % 16}.png" if i % 2 else None, caption=f"thing {i}"))
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.sources = dict(main=dict(type="files", urls=str(tmp_path / "l.jsonl"), image="left"))
    config.inputs.other = config.inputs.image.to_dict() | dict(member="right", required=False)
    config.lanes = 1
    (batch,), summary = take(config, batch_size=16)
    assert summary["samples"] == 16 and batch["other_there"].sum() == 8
    config.sources.main.inputs = dict(other=dict(member="wrong"))
    with pytest.raises(DataError, match=r"no column 'wrong', which `inputs\.other\.member` names"):
        take(config)


def test_two_texts_have_their_own_tokens(pairs, tokenizer_file):
    pairs.inputs.text.templates = ((1.0, "{answer}"),)
    (alone,), _ = take(pairs)
    question = dict(type="text", tokenizer=str(tokenizer_file), length=12, templates=((1.0, "{question}"),))
    pairs.inputs.question = question
    (both,), _ = take(pairs)
    for name in alone:
        np.testing.assert_array_equal(both[name], alone[name], name)
    assert both["question"].shape == (8, 12)
    tokenizer = Tokenizer.load(tokenizer_file)
    assert all(tokenizer.decode(row).startswith("thing") for row in both["question"])
    del pairs.inputs.question.templates
    pairs.inputs.text.templates = ()
    with pytest.raises(DataError, match=r"would read the same text \(txt\): give `member` or `templates`"):
        take(pairs)


def test_a_text_after_another_is_one_sequence(pairs, tokenizer_file):
    question = dict(type="text", tokenizer=str(tokenizer_file), length=12, templates=((1.0, "{question}"),))
    pairs.inputs.question = question
    pairs.inputs.text.update(templates=((1.0, "{answer}"),), after="question", length=24)
    (batch,), _ = take(pairs)
    tokenizer = Tokenizer.load(tokenizer_file)
    for ids, valid, loss, group, asked in zip(
        *(batch[n] for n in ("text", "text_valid", "text_loss", "text_group", "question"))
    ):
        before = int(np.argmax(loss))
        assert (group == (np.arange(24) >= before)).all() and not loss[:before].any()
        assert (loss == valid & (np.arange(24) >= before)).all() and ids[valid][-1] == tokenizer.eos_id
        number = int(tokenizer.decode(asked).split()[1])
        assert tokenizer.decode(ids[:before]) == f"thing {number} is what"
        assert tokenizer.decode(ids[before:]) == f"thing {number + 1}"
    pairs.inputs.text.after = "qestion"
    with pytest.raises(DataError, match=r"data\.inputs\.text\.after is 'qestion', and there is no such text"):
        take(pairs)


def test_long_texts_keep_their_end(tokenizer_file):
    texts = make_inputs(
        images=False, text=dict(tokenizer=str(tokenizer_file), after="first", length=8),
        first=dict(type="text", tokenizer=str(tokenizer_file), templates=((1.0, "{a}"),)),
    )  # fmt: skip
    text, batch = texts["text"], texts.empty(1)
    random = Random({name: np.zeros(4, np.uint64) for name in texts})
    record = Record(dict(text="one two three four five six"), dict(a="thing 1 thing 2 thing 3"))
    text.train(Part(record), random, batch, 0)
    assert batch["text_valid"][0].all() and batch["text"][0, -1] == text.vocabulary.eos_id
    assert batch["text"][0, 0] == text.vocabulary.bos_id and batch["text_loss"][0].sum() == 7


def test_chance_is_by_name_and_row():
    image, other = make_image(), make_image().changed(name="photo")
    words = image.stream(0, 64, 7)
    assert words.shape == (64, 24)
    np.testing.assert_array_equal(words[32:], image.stream(32, 32, 7))
    assert not np.array_equal(words, other.stream(0, 64, 7)) and not np.array_equal(words, image.stream(0, 64, 8))


def test_what_is_there_and_damaged_is_no_missing_part(pairs, tmp_path):
    made = {
        f"{i:03d}": dict(png=encode(i), txt=b"thing") | ({"b.png": b"\x89PNG\r\n\x1a\nno"} if i % 2 else {})
        for i in range(16)
    }
    write_tar(tmp_path / "d.tar", made)
    pairs.sources = dict(main=dict(urls=str(tmp_path / "d.tar")))
    pairs.inputs.image.member = "png"
    pairs.inputs.second = pairs.inputs.image.to_dict() | dict(member="b.png", required=False)
    pairs.max_bad_share, pairs.lanes = 1.0, 1
    with open_stream(pairs, batch_size=16, seed=0) as stream:
        next(stream)
        assert stream.counters()["data/replaced"] == 8


def test_the_list_of_arrays_is_what_batches_hold(pairs):
    pairs.inputs.label = dict(type="label", field="answer", classes=tuple(f"thing {i}" for i in range(COUNT + 1)))
    pairs.inputs.image.naflex, pairs.inputs.image.crop = dict(lengths=(4,), patch_size=4), "whole"
    (batch,), summary = take(pairs)
    found = contents(pairs, inputs_of(pairs), 8)
    assert {c.name: (c.spec.shape, np.dtype(c.spec.dtype)) for c in found} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    assert {c.name: c.maker for c in found}["image_grid"] == "data.inputs.image"
    assert summary["memory_bytes"] > 0


def test_rows_are_described_and_shown(pairs):
    pairs.inputs.label = dict(type="label", field="answer", classes=tuple(f"thing {i}" for i in range(COUNT + 1)))
    (batch,), _ = take(pairs)
    for name, modality in inputs_of(pairs).items():
        assert modality.describe(batch, 0) and modality.show(batch, 0).startswith(("<img", "<p")), name


def test_the_identity_is_what_a_model_sees(tokenizer_file):
    text = make_text(tokenizer=str(tokenizer_file))
    assert text.changed(max_list=1, templates=((1.0, "{a}"),), num_items=2).identity() == text.identity()
    for changes in (dict(length=9), dict(lower=False), dict(clean="basic")):
        assert text.changed(**changes).identity() != text.identity(), changes
    image = make_image()
    assert image.changed(flip=True, scale=(0.1, 1.0), crop="center").identity() == image.identity()
    for changes in (dict(size=9), dict(crop="squash"), dict(exif=True), dict(mean=(0.0, 0.0, 0.0)), dict(resize=300)):
        assert image.changed(**changes).identity() != image.identity(), changes


def test_every_option_of_images_is_known_to_decide_what_is_shown_or_not():
    """A new option is `shown`, or it is for training alone: then name it here."""
    training = {"scale", "ratio", "flip", "policy", "jitter", "grey", "blur", "solarize", "erase", "mixup", "cutmix"}
    training |= {"transform", "max_pixels", "required", "member", "type"}
    assert set(make_image().entry()) == {*make_image().identity_options(), "naflex", "crop"} | training


def test_raw_parts_of_a_user(tmp_path):
    image, batch = make_image(size=16), make_image(size=16).empty(3)
    (tmp_path / "a.png").write_bytes(encode(1))
    image.evaluate(encode(1), batch, 0)
    image.evaluate(tmp_path / "a.png", batch, 1)
    image.evaluate(np.asarray(image.opened(encode(1))), batch, 2)
    np.testing.assert_array_equal(batch["image"][0], batch["image"][1])
    np.testing.assert_array_equal(batch["image"][0], batch["image"][2])
    with pytest.raises(BadSample, match="not an image"):
        image.evaluate(b"no image at all", batch, 0)


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(image=dict(type="picture")), r"data\.inputs\.image\.type is 'picture', not one of image, text, label"),
        (dict(image=dict(size=3)), r"data\.inputs\.image\.type is None, not one of"),
        (dict(image=3), r"data\.inputs\.image is 3; expected the options of an input"),
        (dict(a=dict(type="image", sise=3)), r"data\.inputs\.a has no key 'sise'; did you mean 'size'"),
        (dict(a=dict(type="image", size="x")), r"data\.inputs\.a\.size is 'x'; expected int"),
        (dict(a=dict(type="image", mean=(1.0, 2.0))), r"data\.inputs\.a\.mean is \(1\.0, 2\.0\); expected 3 numbers"),
        (dict(a=dict(type="image", naflex=dict(length="x"))), r"data\.inputs\.a\.naflex\.length is 'x'"),
        (dict(a=dict(type="image", required="no")), r"data\.inputs\.a\.required is 'no'; expected bool"),
    ],
)
def test_wrong_entries_are_named(section, message):
    with pytest.raises(DataError, match=message):
        open_inputs(section, MODALITIES)


def test_two_inputs_must_not_give_one_array(tokenizer_file):
    text = make_text(tokenizer=str(tokenizer_file))
    with pytest.raises(DataError, match=r"both give batches 'text_valid': rename one"):
        Inputs([text, make_image().changed(name="text_valid")]).check()


def test_the_order_and_the_texts_last(config, tokenizer_file):
    """Fixed: batches of a run that goes on must be those that it began with. (Pixels depend on libraries.)"""
    config.sources = dict(
        a=dict(type="synthetic", samples=300, scale=0.05), b=dict(type="synthetic", samples=200, seed=1, scale=0.05)
    )
    digest = hashlib.sha256()
    for batch in take(config, 3, batch_size=16, seed=5)[0]:
        for name in ("caption_id", "key_id", "source"):
            digest.update(batch[name].astype("<u4").tobytes())
    image, text = make_image().stream(5, 3, 9), make_text().stream(5, 3, 9)
    digest.update(image.astype("<u8").tobytes() + text.astype("<u8").tobytes())
    assert digest.hexdigest()[:16] == "2027c6c5f4547f27"
