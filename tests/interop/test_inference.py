"""Three lines to embeddings: every kind of picture and text, any batch, any mesh, few compiles."""

import subprocess
import sys

import numpy as np
import pytest

import xmodal
from data_pipelines.errors import DataError
from tests import helpers
from tests.interop import folders
from xmodal.config import ConfigError
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored


@pytest.fixture(scope="module", params=["clip_vit", "siglip"])
def folder(request, tmp_path_factory):
    return folders.hugging_face(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(folder):
    return xmodal.load(f"hf:{folder}")


def pictures(count=5):
    shapes = [(50, 60), (40, 40), (90, 33), (1, 50), (64, 64)]
    return [folders.picture("RGB", shapes[i % 5], seed=i) for i in range(count)]


def test_pictures_of_every_kind_are_the_same_picture(model, tmp_path):
    image = pictures()[0]
    (tmp_path / "a.png").write_bytes(folders.encoded(image))
    kinds = [image, tmp_path / "a.png", str(tmp_path / "a.png"), folders.encoded(image), np.asarray(image)]
    embeddings = model.embed_image(kinds)
    assert embeddings.shape == (5, model.dim) and embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, np.repeat(embeddings[:1], 5, axis=0))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(model.embed_image(image), embeddings[:1], atol=1e-6)  # another batch size
    grey = image.convert("L")
    np.testing.assert_array_equal(
        model.embed_image([grey, np.asarray(grey)])[0], model.embed_image(grey.convert("RGB"))[0]
    )


def test_texts_are_read_as_the_reference_reads_them(model, folder):
    clip = folder.name.startswith("clip_vit")
    ids = model.prepare_texts(["w10 w20", "w8 " * 30])["text"]
    pad = folders.PAD if clip else folders.EOS  # SigLIP pads with its end mark and has no begin mark
    begin = [folders.BOS] if clip else []
    assert ids[0].tolist() == [*begin, 10, 20, folders.EOS, *[pad] * (9 - len(begin))]
    assert ids[1].tolist() == [*begin, *[8] * (11 - len(begin)), folders.EOS]
    both = model.embed_text(["w10 w20", "w10"])
    np.testing.assert_allclose(model.embed_text("w10"), both[1:], atol=1e-6)


@pytest.mark.parametrize("mesh", [dict(data=2), dict(data=2, fsdp=2, tensor=2)])
def test_any_mesh_any_batch(model, folder, mesh):
    other = xmodal.load(folder, mesh=helpers.mesh(**mesh), batch_size=5)
    shown = pictures(13)
    np.testing.assert_allclose(other.embed_image(shown), model.embed_image(shown), atol=2e-6)
    texts = [f"w{10 + i}" for i in range(13)]
    np.testing.assert_allclose(other.embed_text(iter(texts)), model.embed_text(texts), atol=2e-6)
    assert other.embed_text([]).shape == (0, model.dim)


def test_compiles_are_bounded(folder):
    model = xmodal.load(folder, batch_size=24, mesh=helpers.mesh())
    for count in (1, 2, 5, 8, 9, 20, 24, 25, 50):
        model.embed_text(["w10"] * count)
    assert model.live.embed["text"]._cache_size() == 3  # 1, 8, 24


def test_bfloat16_is_close(model, folder):
    half = xmodal.load(folder, dtype="bfloat16")
    cosine = np.sum(half.embed_image(pictures()) * model.embed_image(pictures()), axis=1)
    assert 0.999 < cosine.min() < 0.9999999


def test_zero_shot_is_the_objectives_probability(model, folder):
    shown, labels = pictures(), ["w10", "w20", "w30"]
    probabilities = model.zero_shot(shown, labels, templates=("{label}", "w8 {label}"))
    images = model.embed_image(shown)
    prompts = model.embed_text([t for label in labels for t in (label, f"w8 {label}")]).reshape(3, 2, -1).mean(1)
    logits = images @ (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).T
    own = folders.part(folders.load("clip_vit" if folder.name.startswith("clip") else "siglip"), "weights/logit_")
    logits = np.exp(own["scale"]) * logits + own.get("bias", 0)
    if "bias" in own:
        expected = 1 / (1 + np.exp(-logits))
    else:
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)


def test_what_cannot_be_embedded_is_named(model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for picture, name in (
        (tmp_path / "bad.png", r"bad\.png cannot be used: not an image"),
        (tmp_path / "none.png", r"none\.png cannot be used"),
        (np.zeros((4, 4, 3), np.float32), r"number 1 cannot be used: expected uint8 .*float32"),
        (np.zeros((4, 4, 7), np.uint8), "number 1 cannot be used"),
    ):
        with pytest.raises(DataError, match=name):
            model.embed_image([pictures()[0], picture])
    with pytest.raises(DataError, match="takes strings, got 3"):
        model.embed_text(["w10", 3])
    with pytest.raises(DataError, match=r"place \{label\}"):
        model.zero_shot(pictures(), ["w10"], templates=("a photo",))
    with pytest.raises(DataError, match="needs labels"):
        model.zero_shot(pictures(), [])
    with pytest.raises(ConfigError, match="batch_size=0"):
        xmodal.load(model.stored.origin, batch_size=0)


def test_a_folder_of_our_own_holds_the_same_model(model, folder, tmp_path):
    write_stored(open_stored(folder), tmp_path / "own")
    own = xmodal.load(tmp_path / "own")
    np.testing.assert_array_equal(own.embed_image(pictures()), model.embed_image(pictures()))
    np.testing.assert_array_equal(own.embed_text(folders.TEXTS), model.embed_text(folders.TEXTS))
    np.testing.assert_array_equal(own.zero_shot(pictures(), ["w9", "w8"]), model.zero_shot(pictures(), ["w9", "w8"]))


def test_importing_the_package_imports_no_jax():
    code = (
        "import sys, xmodal; assert xmodal.__version__ and 'jax' not in sys.modules; xmodal.load; 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        xmodal.lod  # noqa: B018
