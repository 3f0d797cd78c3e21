"""A user's transforms: called with the row's own numbers, tried out at the start, and named when they fail."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from data_pipelines.stream.hooks import pixel_hook, text_hook
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer

MODULE = """
import numpy as np
calls = 0

def invert(pixels, uniform): return 255 - pixels
def in_place(pixels, uniform):
    pixels[0] = 7
    return pixels
def noise(pixels, uniform):
    assert uniform.shape == (16,) and uniform.dtype == float and 0 <= uniform.min() and uniform.max() < 1
    return np.full_like(pixels, int(256 * uniform[0]))
def one_argument(pixels): return pixels
def smaller(pixels, uniform): return pixels[1:]
def wider(pixels, uniform): return pixels.astype(np.float32)
def nothing(pixels, uniform): pass
def chance(pixels, uniform): return np.random.default_rng().integers(0, 256, pixels.shape, dtype=np.uint8)
def breaks(pixels, uniform): raise KeyError("spam")
def leaves(pixels, uniform): raise SystemExit(3)
def late(pixels, uniform):
    if pixels.max() < 250: raise KeyError("spam")
    return pixels
class Callable:
    def __call__(self, pixels, uniform, strength=2): return pixels // strength
darker = Callable()

def shout(caption, uniform): return f"{caption} {int(uniform[0] * 1000)}!"
def empty(caption, uniform): return " "
def number(caption, uniform): return len(caption)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_hooks").mkdir()
    (tmp_path / "my_hooks" / "__init__.py").write_text("")
    (tmp_path / "my_hooks" / "made.py").write_text(MODULE)
    (tmp_path / "my_hooks" / "broken.py").write_text("1 / 0")
    (tmp_path / "my_hooks" / "leaving.py").write_text("raise SystemExit(4)")
    (tmp_path / "my_hooks" / "needy.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_hooks"]:
        del sys.modules[name]


def hooks(image: str = "", text: str = "") -> SimpleNamespace:
    named = lambda function: function and f"my_hooks.made:{function}"
    return SimpleNamespace(
        image=pixel_hook("data.inputs.image.transform", named(image), (8, 8), "image"),
        text=text_hook("data.inputs.text.transform", named(text), "text"),
    )


def test_images_are_transformed_in_place():
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for function, expected in (("invert", 255 - pixels), ("darker", pixels // 2), ("", pixels)):
        found = pixels.copy()
        hooks(function).image(found, 5, "a sample")
        np.testing.assert_array_equal(found, expected)
    found = pixels.copy()
    hooks("in_place").image(found, 5, "a sample")
    assert (found[0] == 7).all() and (found[1:] == pixels[1:]).all()


def test_numbers_belong_to_the_row():
    both, values = hooks("noise", "shout"), []
    for word in range(100):
        pixels = np.zeros((8, 8, 3), np.uint8)
        both.image(pixels, word, "")
        again = np.ones((8, 8, 3), np.uint8)
        both.image(again, word, "")
        np.testing.assert_array_equal(pixels, again)
        values.append(int(pixels[0, 0, 0]))
    assert len(set(values)) > 70 and 100 < np.mean(values) < 156
    texts = [both.text("cat", word, "") for word in range(100)]
    assert texts == [both.text("cat", word, "") for word in range(100)] and len(set(texts)) > 85
    numbers = [float(text.removeprefix("cat ").removesuffix("!")) for text in texts]
    assert abs(np.corrcoef(values, numbers)[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("made", "not of the form"),
        ("my_hooks.made.invert", "not of the form"),
        ("my_hooks.made:invert()", "not of the form"),
        ("../made:invert", "not of the form"),
        ("my_hooks.maid:invert", "no module 'my_hooks.maid'"),
        ("my_hooks.needy:invert", "no module 'no_such_package'"),
        ("my_hooks.broken:invert", "importing my_hooks.broken raised ZeroDivisionError: division by zero"),
        ("my_hooks.made:invrt", "my_hooks.made has no 'invrt'; did you mean 'invert'"),
        ("my_hooks.made:calls", "is of type int"),
        ("my_hooks.made:one_argument", r"cannot be called as function\(pixels, uniform\): too many positional"),
        ("my_hooks.made:smaller", r"returned uint8 \[7, 8, 3\]; expected uint8 \[8, 8, 3\]"),
        ("my_hooks.made:wider", r"returned float32 \[8, 8, 3\]"),
        ("my_hooks.made:nothing", "returned NoneType"),
        ("my_hooks.made:chance", "does not return the same"),
        ("my_hooks.made:breaks", r"raised KeyError: 'spam' \(tried out"),
        ("my_hooks.made:leaves", r"raised SystemExit: 3 \(tried out"),
        ("my_hooks.leaving:invert", "importing my_hooks.leaving raised SystemExit: 4"),
    ],
)
def test_an_unusable_transform_is_refused_at_the_start(name, message):
    with pytest.raises(DataError, match=message) as caught:
        pixel_hook("data.inputs.image.transform", name, (8, 8), "image")
    assert str(caught.value).startswith(f"data.inputs.image.transform={name!r}")


@pytest.mark.parametrize(("function", "message"), [("empty", "empty caption of 'a photo"), ("number", "returned int")])
def test_captions_are_checked(function, message):
    with pytest.raises(DataError, match=rf"data\.inputs\.text\.transform='my_hooks\.made:{function}' .*{message}"):
        hooks(text=function)


def test_in_the_stream(config):
    with open_stream(config, batch_size=16, seed=3) as stream:
        plain = [next(stream)["image"] for _ in range(2)]
    config.inputs.image.transform = "my_hooks.made:invert"
    with open_stream(config, batch_size=16, seed=3) as stream:
        np.testing.assert_array_equal([next(stream)["image"] for _ in range(2)], 255 - np.array(plain))
    config.inputs.image.transform = "my_hooks.made:noise"
    with open_stream(config, batch_size=16, seed=3) as stream:
        whole = np.concatenate([next(stream)["image"] for _ in range(2)])
    with open_stream(config, batch_size=16, seed=3, position=16) as stream:
        np.testing.assert_array_equal(next(stream)["image"], whole[16:])
    assert len({row.tobytes() for row in whole}) > 25


def test_captions_of_rows(config):
    tokenizer = Tokenizer.load(config.inputs.text.tokenizer)
    with open_stream(config, batch_size=16, seed=3) as stream:
        plain = next(stream)
    config.inputs.text.transform = "my_hooks.made:shout"
    with open_stream(config, batch_size=16, seed=3, inputs=inputs_of(config)) as stream:
        batch = next(stream)
    for row, text in zip(batch["text"], plain["text"]):
        caption, start = tokenizer.decode(row), tokenizer.decode(text)
        assert caption.startswith(start) and caption.rstrip().endswith("!")
    assert (batch["caption_id"] != plain["caption_id"]).any(1).all()
    np.testing.assert_array_equal(batch["key_id"], plain["key_id"])


def test_a_failing_transform_ends_the_run_and_is_named(config):
    config.inputs.image.transform = "my_hooks.made:late"
    with (
        pytest.raises(DataError, match=r"'my_hooks\.made:late' raised KeyError: 'spam' \(\d+ of .*tar\)"),
        open_stream(config, batch_size=16, seed=3) as stream,
    ):
        for _ in range(40):
            next(stream)
