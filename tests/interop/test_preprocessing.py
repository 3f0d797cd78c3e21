"""Pictures are prepared as the reference processors do: 200 of mixed sizes, modes and formats, see tests/golden."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decode import Options, evaluation_image, evaluation_pixels
from data_pipelines.images.device import preprocess_images
from tests import helpers
from tests.data.tiny_inputs import image_section
from tests.interop import folders
from xmodal.interop import preprocessing
from xmodal.interop.tables import InteropError
from xmodal.objectives.contrastive import normalize

PIXELS = 16
CLIP = dict(
    image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
)
SIGLIP = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def golden():
    with np.load(folders.GOLDEN / "preprocessing.npz", allow_pickle=False) as file:
        arrays = dict(file)
    data, ends = arrays["files"].tobytes(), arrays["ends"]
    arrays["files"] = [data[start:end] for start, end in zip([0, *ends], ends)]
    return arrays


def prepared(golden, name):
    """The pictures as the evaluation shows them to a model whose processor that is, before normalisation."""
    config = preprocessing.in_plain_words(json.loads(str(golden[f"config/{name}"])))
    size, image = golden[name].shape[1], image_section()
    assert preprocessing.shown_size(config, 99) == size
    image.update(preprocessing.from_processor(config, size, "here"))
    squash, options = image.crop == "squash", Options.of(image)
    return np.stack([evaluation_image(data, size, squash, options) for data in golden["files"]])


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "bit", "convnext", "efficientnet"])
def test_pixels_agree_with_the_reference(golden, name):
    error = np.abs(prepared(golden, name).astype(float) - golden[name]).mean(axis=(1, 2, 3))
    assert len(error) == 200 and error.mean() < 0.1
    # Black and white drawings: Pillow clips between its two passes, torchvision only after them.
    line_art = np.array([str(n).startswith("1 ") for n in golden["names"]])
    assert error[~line_art].max() < 0.5 and error[line_art].max() < 2
    if name == "efficientnet":  # the nearest pixel leaves nothing to round
        assert error.max() == 0


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_embeddings_agree_with_those_of_the_references_pixels(golden, name):
    got = prepared(golden, name)
    model = helpers.build(dict(image=helpers.image("clip" if name == "clip" else "siglip")))
    embed, params = helpers.forward(model, "image.pooled"), helpers.random_params(model)
    units = [
        np.asarray(normalize(embed(params, {"image": (p.astype(np.float32) / 255 - 0.5) / 0.5})["image.pooled"]))
        for p in (got, golden[name])
    ]
    assert np.sum(units[0] * units[1], axis=1).min() >= 0.999


@pytest.mark.parametrize("name", ["align", "efficientnet", "convnext"])
def test_processors_with_rules_of_their_own(name, tmp_path):
    """What reaches the model, normalised: offsets, deviations taken twice, squashed pictures that are then cut."""
    golden = folders.load("processors")
    (tmp_path / "preprocessor_config.json").write_text(str(golden[f"config/{name}"]))
    config = preprocessing.read_processor(tmp_path)
    assert preprocessing.shown_size(config, 99) == 17
    image = image_section()
    image.update(preprocessing.from_processor(config, 17, "here"))
    pictures = [Image.fromarray(golden[f"pictures/{i}"]) for i in range(6)]
    prepare = lambda p: evaluation_pixels(p, 17, image.crop == "squash", Options.of(image))
    got = np.asarray(preprocess_images(np.stack([prepare(p) for p in pictures]), None, image))
    levels = 255 * np.abs(got - golden[f"pixels/{name}"]) * np.array(image.std)
    assert levels.max() < 1.01 and levels.mean() < 0.05  # two libraries round what they resized
    # And back, in words of the class that the exports name.
    kind = "EfficientNetImageProcessor" if name == "align" else "BitImageProcessor"
    written = preprocessing.to_processor(image, kind, "")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    again = preprocessing.from_processor(preprocessing.read_processor(tmp_path), 17, "there")
    assert {key: image[key] for key in again} | dict(background=again["background"]) == again  # see test_backgrounds


def test_large_convnexts_squash_their_pictures(tmp_path):
    older = dict(feature_extractor_type="ConvNextFeatureExtractor", size=384, crop_pct=1.0, resample=3,
                 image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    image = preprocessing.from_processor(preprocessing.read_processor(tmp_path), 384, "here")
    assert (image["crop"], image["resize"]) == ("squash", 0)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older | dict(size=224, crop_pct=0.875)))
    image = preprocessing.from_processor(preprocessing.read_processor(tmp_path), 224, "here")
    assert (image["crop"], image["resize"]) == ("center", 256)


def test_the_rounding_of_margins_is_what_tells_the_libraries_apart(golden):
    even = [evaluation_image(data, PIXELS, options=Options(rounding="even")) for data in golden["files"]]
    differ = [np.abs(e.astype(float) - g).mean() > 2 for e, g in zip(even, golden["clip"])]
    assert 5 < sum(differ) < 60


@pytest.mark.parametrize("config", [CLIP, SIGLIP, CLIP | dict(size={"shortest_edge": 20}, resample=2)])
def test_processors_return_as_they_came(config):
    image = image_section()
    image.update(preprocessing.from_processor(config, PIXELS, "here"))
    back = preprocessing.to_processor(image, "CLIPImageProcessor", "CLIPProcessor")
    for key, value in {"resample": 3, **config}.items():
        assert back[key] == value, key
    assert back["do_center_crop"] == ("crop_size" in config) and back["do_convert_rgb"]
    again = preprocessing.from_processor(back, PIXELS, "there")
    assert all(image[key] == value for key, value in again.items())


def test_older_processors_with_plain_numbers():
    older = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    clip = preprocessing.from_processor(older | dict(size=20, crop_size=16, do_center_crop=True), PIXELS, "here")
    assert (clip["crop"], clip["resize"]) == ("center", 20)
    assert preprocessing.from_processor(older | dict(size=16), PIXELS, "here")["crop"] == "squash"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(do_normalize=False), "do_normalize is false"),
        (dict(rescale_factor=1 / 127.5), r"rescale_factor is 0\.0078.*, needs 1/255"),
        (dict(resample=1), r"resample is 1, needs 0 \(nearest\), 2 \(bilinear\) or 3 \(bicubic\)"),
        (dict(crop_size={"height": 18, "width": 16}), "18 x 16 pixels, and the model takes 16 x 16"),
        (dict(do_center_crop=False), "the picture is not square"),
        (dict(size={"height": 20, "width": 24}, do_center_crop=True), "to 20 x 24 pixels, and 16 x 16 cut out"),
        (dict(size={"height": 12, "width": 12}, do_center_crop=True), "to 12 x 12 pixels, and 16 x 16 cut out"),
    ],
)
def test_what_cannot_be_prepared_is_refused(change, message):
    with pytest.raises(InteropError, match=message):
        preprocessing.from_processor(CLIP | change, PIXELS, "here")


def test_open_clip_says_the_same_in_other_words():
    image = image_section()
    config = dict(size=16, interpolation="bilinear", resize_mode="squash", mean=[0.1, 0.2, 0.3], std=[0.4] * 3)
    image.update(preprocessing.from_open_clip(config, 16, "here"))
    assert preprocessing.to_open_clip(image) == config | dict(mode="RGB", fill_color=0)
    image.update(crop="center", resize=20)
    with pytest.raises(InteropError, match="resize=20"):
        preprocessing.to_open_clip(image)
    for change, message in ((dict(size=18), "size is 18"), (dict(resize_mode="longest"), "longest")):
        with pytest.raises(InteropError, match=message):
            preprocessing.from_open_clip(config | change, 16, "here")
