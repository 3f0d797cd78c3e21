"""Transparent images are shown as each reference shows them: `tests/golden/make_backgrounds.py`."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import Options, full_image, image_header, to_rgb, training_image
from tests.data.tiny_inputs import image_section
from tests.interop import folders
from xmodal.configs import base
from xmodal.inference import Model
from xmodal.interop import preprocessing
from xmodal.interop.export import export
from xmodal.interop.recipe import continue_from
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

SIZE = 24
CLIP = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, size=SIZE, do_center_crop=True, crop_size=SIZE)


@pytest.fixture(scope="module")
def golden():
    arrays = folders.load("backgrounds")
    data, ends = arrays["files"].tobytes(), arrays["ends"]
    return arrays | dict(files=[data[start:end] for start, end in zip([0, *ends], ends)])


def options(reference: str, golden) -> Options:
    """The options of an imported model of the reference."""
    image = image_section()
    if reference == "open_clip":
        image.update(preprocessing.from_open_clip({}, SIZE, "here"))
    else:
        processor = CLIP | json.loads(str(golden["configs"]))[reference]
        image.update(preprocessing.from_processor(preprocessing.in_plain_words(processor), SIZE, "here"))
    return Options.of(image)


KINDS = ("CLIPImageProcessor", "SiglipImageProcessor", "BitImageProcessor", "ViTImageProcessor",
         "ViTImageProcessor, told", "ConvNextImageProcessor, told", "open_clip")  # fmt: skip


@pytest.mark.parametrize("reference", KINDS)
def test_transparency_is_shown_as_the_reference_does(golden, reference):
    how = options(reference, golden)
    whole = lambda height, width: Box(0, 0, height, width)
    for name, data, expected in zip(golden["names"], golden["files"], golden[f"shown/{reference}"]):
        if name.startswith("I;16") and how.background == "white":
            continue  # the reference clips nearly all of it to white; here 16 bits become 8
        with Image.open(io.BytesIO(data)) as image:
            in_memory = to_rgb(image, how.background)
        for found in (full_image(data, how), training_image(data, SIZE, whole, how), in_memory):
            error = np.abs(np.asarray(found).astype(int) - expected)
            assert error.max() <= (1 if "JPEG" in name else 0), (reference, name)


def test_what_each_reference_does():
    """The same image, three answers: on white, on black, and the colours that were under the transparency."""
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    shown = {how: np.asarray(to_rgb(image, how))[0, 0].tolist() for how in ("white", "black", "drop")}
    assert shown == dict(white=[255] * 3, black=[0] * 3, drop=[200, 100, 50])
    known = preprocessing.from_packing_processor({}, 16, "here"), preprocessing.from_open_clip({}, 16, "here")
    assert [found["background"] for found in known] == ["drop", "drop"]
    assert preprocessing.from_packing_processor(dict(do_convert_rgb=True), 16, "here")["background"] == "white"


def test_which_images_are_transparent(golden):
    headers = {name: image_header(data).transparent for name, data in zip(golden["names"], golden["files"])}
    assert {name for name, found in headers.items() if not found} == {"CMYK JPEG", "RGB PNG", "I;16 PNG"}


def test_the_background_is_checked():
    image = image_section()
    image.background = "whte"
    with pytest.raises(DataError, match=r"data\.inputs\.image\.background is 'whte'.*did you mean 'white'"):
        Options.of(image)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A CLIP of transformers, which shows white, the export to open_clip, which drops alpha, and that one opened."""
    folder = tmp_path_factory.mktemp("models")
    hf = open_stored(folders.hugging_face(folder / "hf", "clip_vit"))
    done = export(hf, folder / "open_clip", to="open_clip")
    return hf, done, open_stored(folder / "open_clip")


def test_imported_models_show_it_to_the_towers(imported):
    hf, _, open_clip = imported
    logo = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    logo.paste((200, 30, 30, 255), (10, 10, 20, 30))
    on_white = Image.new("RGB", logo.size, "white")
    on_white.paste(logo, mask=logo)
    for stored, same, other in ((hf, on_white, logo.convert("RGB")), (open_clip, logo.convert("RGB"), on_white)):
        given, equal, different = Model(stored, batch_size=8).embed_image([logo, same, other])
        np.testing.assert_array_equal(given, equal)
        assert np.abs(given - different).max() > 1e-3


def test_what_a_model_shows_is_part_of_what_it_is(imported, tmp_path):
    hf, done, open_clip = imported
    assert (hf.config.data.inputs.image.background, open_clip.config.data.inputs.image.background) == ("white", "drop")
    assert any("open_clip drops the alpha channel" in note for note in done.notes)
    assert any("image processor puts them on white" in n for n in export(open_clip, tmp_path / "hf", to="hf").notes)
    export(open_clip, tmp_path / "jax", to="jax")
    assert "without their alpha channel" in (tmp_path / "jax" / "README.md").read_text()
    as_white = dataclasses.replace(open_clip, config=open_clip.config.copy_and_resolve_references())
    as_white.config.data.inputs.image.background = "white"
    assert as_white.fingerprint() != open_clip.fingerprint()


def test_fine_tuning_goes_on_with_it_and_older_folders_show_white(imported, tmp_path):
    _, _, open_clip = imported
    write_stored(open_clip, tmp_path / "own")
    assert open_stored(tmp_path / "own").config.data.inputs.image.background == "drop"
    assert continue_from(base.get_config(), tmp_path / "own").data.inputs.image.background == "drop"
    saved = json.loads((tmp_path / "own" / "config.json").read_text())
    del saved["data"]["inputs"]["image"]["background"]  # as older versions wrote it
    (tmp_path / "own" / "config.json").write_text(json.dumps(saved))
    assert open_stored(tmp_path / "own").config.data.inputs.image.background == "white"
    assert continue_from(base.get_config(), tmp_path / "own").data.inputs.image.background == "white"
