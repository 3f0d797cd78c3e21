"""Words point to patches: a model whose words are colours, made by hand, and what is asked of it."""

import argparse
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

import xmodal
from data_pipelines.errors import DataError
from data_pipelines.text.tokenizers import train_bpe
from tests.data.tiny_shards import write_tar
from xmodal.commands import word_map as command
from xmodal.config import validate, with_inputs
from xmodal.configs import base
from xmodal.distributed.mesh import make_mesh
from xmodal.evaluation import EvalContext
from xmodal.evaluation.pointing import Pointing, _hit
from xmodal.evaluation.word_maps import score_words, token_places, word_tokens
from xmodal.live import Live
from xmodal.models import presets
from xmodal.stored.base import Stored
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

COLOURS = dict(red=(255, 0, 0), green=(0, 255, 0), blue=(0, 0, 255))
SIZE, PATCH = 16, 4


def encoded(colour):
    image = Image.new("RGB", (SIZE, SIZE), COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tars of plain colours; a picture's box is its left half."""
    folder = tmp_path_factory.mktemp("colours")
    samples = {}
    for i in range(12):
        colour = list(COLOURS)[i % 3]
        fields = dict(label=colour, things=[dict(text=colour, box=[0, 0, 0.5, 1])])
        samples[f"{i:02d}"] = dict(png=encoded(colour), txt=colour.encode(), json=json.dumps(fields).encode())
    write_tar(folder / "colours.tar", samples)
    return folder


def stored(swap=False) -> Stored:
    """A model in which a patch is its mean colour and a word the colour it names, or the next one."""
    tokenizer = train_bpe(["red and green and blue", "a red one"], 300)
    config = base.get_config()
    empty = dict(embed_dim=0, final_norm=False, scan=False)
    config.model = presets.dual_tower(
        image=presets.image_tower(
            3, 0, 1, patch_size=PATCH, pool="mean", **empty,
            embed=dict(image_size=SIZE, position="none", pre_norm=False, bias=False),
        ),
        text=presets.text_tower(
            3, 0, 1, pool="mean", **empty,
            embed=dict(vocab_size=tokenizer.vocab_size, length=16, position="none", causal=False),
        ),
    )  # fmt: skip
    config.objectives = dict(contrastive=dict(type="softmax", between=("image", "text"), weight=1.0))
    config.data.inputs = dict(
        image=dict(type="image", size=SIZE, crop="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        text=dict(type="text", length=16),
    )
    table, names = np.full((tokenizer.vocab_size, 3), 0.1, np.float32), list(COLOURS)
    for i, name in enumerate(names):
        for tokens in tokenizer.tokens([name, f"{name} {name}"]):
            table[tokens] = np.eye(3, dtype=np.float32)[(i + swap) % 3]
    kernel = np.zeros((PATCH, PATCH, 3, 3), np.float32)
    kernel[:, :] = np.eye(3) / PATCH**2
    params = dict(
        image=dict(embed=dict(kernel=kernel)), text=dict(embed=dict(embedding=table)),
        objectives=dict(contrastive=dict(logit_scale=np.float32(1.0))),
    )  # fmt: skip
    return Stored(with_inputs(validate(config, base.get_config())), params, dict(text=tokenizer), "colours")


def evaluate(evaluator, model, devices=8):
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    context = EvalContext(Live.of(model, mesh))
    with jax.set_mesh(mesh):
        result = evaluator.prepare("x", context)(model.params)
    return {name.removeprefix("pointing/x/"): value for name, value in result.metrics.items()}, result.gallery


@pytest.mark.parametrize("swap,accuracy", [(False, 1.0), (True, 0.0)])
def test_names_point_to_their_half_of_a_pair(folder, swap, accuracy):
    evaluator = Pointing(urls=str(folder / "colours.tar"), pairs=10, batch_size=3)
    metrics, gallery = evaluate(evaluator, stored(swap))
    if swap:  # the word means a colour that is on the other side, or nowhere
        assert metrics.pop("accuracy") < 0.6
    else:
        assert metrics.pop("accuracy") == accuracy
    assert metrics == {"chance/accuracy": 0.5, "names": 20.0}
    shown = gallery["pointing/x"]["pointing"]
    assert len(shown) == 8 and all(len(item["maps"]) == 2 for item in shown)
    assert [item["correct"] for item in shown] == [all(m["correct"] for m in item["maps"]) for item in shown]
    assert shown[0]["image"].startswith("data:image/png;base64,")


def test_the_same_on_one_device_and_for_any_batch_size(folder):
    model = stored()
    results = [
        evaluate(Pointing(urls=str(folder / "colours.tar"), pairs=7, batch_size=size), model, devices)[0]
        for size, devices in ((8, 8), (5, 1))
    ]
    assert results[0] == results[1]


def test_boxes_are_read_from_the_data(folder):
    evaluator = Pointing(urls=str(folder / "colours.tar"), boxes="things")
    metrics, _ = evaluate(evaluator, stored())
    # One colour everywhere: no patch in the box is better than those outside.
    assert metrics == {"accuracy": 0.0, "chance/accuracy": 0.5, "names": 12.0}


@pytest.mark.parametrize(
    "box,hit,chance",
    [((0, 0, 0.5, 0.5), True, 0.25), ((0.5, 0, 1, 1), False, 0.5), ((0.1, 0.1, 0.12, 0.12), True, 0.25)],
)
def test_a_hit_is_better_than_all_that_is_outside(box, hit, chance):
    scores = np.array([[0.9, 0.2], [0.3, 0.1]])
    assert _hit(scores, box) == (hit, chance)
    assert not _hit(np.ones((2, 2)), box)[0]


def test_mistakes_are_named(folder):
    urls = str(folder / "colours.tar")
    with pytest.raises(DataError, match=r"has the field 'name'; fields there: .*label"):
        evaluate(Pointing(urls=urls, label_field="name"), stored())
    with pytest.raises(DataError, match=r"'a {left}' needs both"):
        evaluate(Pointing(urls=urls, template="a {left}"), stored())
    with pytest.raises(DataError, match=r"no sample of .* has boxes in its field 'boxes'"):
        evaluate(Pointing(urls=urls, boxes="boxes"), stored())


def test_tokens_of_words():
    tokenizer = stored().tokenizer
    ids = tokenizer.encode(["a red, 蓝 one"], 32)[0][0]
    found = word_tokens(tokenizer, "a red, 蓝 one", 32)
    assert ["a red, 蓝 one"[slice(*word.span)] for word in found] == [word.letters for word in found]
    words = {word.letters: word.tokens for word in found}
    assert list(words) == ["a", "red", "蓝", "one"]
    decoded = {word: tokenizer.decode([ids[i] for i in places]).strip(" ,") for word, places in words.items()}
    assert decoded == {word: word for word in words}
    assert word_tokens(tokenizer, "a red, 蓝 one", 4)[-1].letters != "one"  # cut off
    assert token_places(tokenizer, "red red", 16, 4, 7)[0] > token_places(tokenizer, "red red", 16, 0, 3)[-1]
    assert score_words([[0, 1]], np.eye(2, 3), np.eye(3)).tolist() == [[0.5, 0.5, 0.0]]


def test_a_loaded_model_maps_words_and_the_command_draws_them(tmp_path, capsys):
    write_stored(stored(), tmp_path / "model")
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    picture.paste((255, 0, 0), (12, 0, 16, 4))
    picture.paste((0, 0, 255), (0, 12, 4, 16))
    found = xmodal.load(open_stored(tmp_path / "model").origin).word_map(picture, "Red and BLUE")
    assert found.words == ("red", "and", "blue") and found.scores.shape == (3, 4, 4)
    assert found.pieces() == [("red", 0), (" ", None), ("and", 1), (" ", None), ("blue", 2)]
    assert found["red"].argmax() == 3 and found["blue"].argmax() == 12
    np.testing.assert_allclose(found["red"][0, 0], 3**-0.5, rtol=1e-5)
    with pytest.raises(DataError, match="no word 'green'; its words: red, and, blue"):
        found["green"]
    with pytest.raises(DataError, match="needs a text with words"):
        xmodal.load(tmp_path / "model").word_map(picture, " !")
    picture.save(tmp_path / "picture.png")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "new" / "map.png"
    command.run(parser.parse_args([str(tmp_path / "picture.png"), "red", "--model", str(tmp_path / "model"), "--out",
                                   str(out), "--size", "64"]))  # fmt: skip
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 72 + 8, 96)
        pixel = np.asarray(sheet)[24 + 8, 8 + 72 + 56]  # the red patch stays clear, what is elsewhere is faded
    assert pixel[0] > 230 and pixel[1] < 40
    assert "row 1, column 4" in capsys.readouterr().out


def test_a_model_says_whether_its_words_can_point():
    model = stored()
    assert xmodal.Model(model).no_word_maps == "" and not xmodal.Model(model).aligns_words
    model.config.objectives.filip = dict(type="filip", between=("image", "text"), weight=1.0)
    assert xmodal.Model(model).aligns_words
    model.config.model.towers.image.embed.image_size = model.config.data.inputs.image.size = PATCH
    with pytest.raises(DataError, match="no word maps: the image tower makes a single patch of a picture"):
        xmodal.Model(model).word_map(np.zeros((4, 4, 3), np.uint8), "red")
    del model.config.model.towers.text, model.params["text"]
    assert xmodal.Model(model).no_word_maps == "no tower of the model reads texts alone"
