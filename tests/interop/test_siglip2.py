"""SigLIP 2 in Hugging Face folders: packed patches, fixed resolutions, Gemma's tokenizer without capitals."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xmodal
from data_pipelines.text.preparation import Preparation
from tests.data.tiny_inputs import image_section
from tests.interop import folders
from xmodal.configs import base
from xmodal.interop import preprocessing
from xmodal.interop.export import export
from xmodal.interop.recipe import continue_from
from xmodal.interop.siglip import SIGLIP, SIGLIP2
from xmodal.interop.tables import InteropError
from xmodal.interop.tokenizer_files import is_gemma, read_tokenizer, write_tokenizer
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

PROCESSOR = dict(
    image_processor_type="Siglip2ImageProcessor", do_resize=True, do_rescale=True, do_normalize=True, resample=2,
    rescale_factor=1 / 255, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], patch_size=4, max_num_patches=24,
)  # fmt: skip
WORDS = ["a photo of a cat", "a photo of two dogs", "red and green circles"]
SHAPES = ((50, 60), (90, 33), (5, 50), (24, 16))


def hugging_face(folder, tokenizer=None, marks=None):
    """The model of the golden file with packed patches."""
    golden = folders.load("siglip2")
    folder.mkdir()
    config, weights = json.loads(str(golden["config"])), folders.part(golden, "weights/")
    if tokenizer:  # larger than that of the file
        rows = "text_model.embeddings.token_embedding.weight"
        weights[rows] = np.resize(weights[rows], (420, weights[rows].shape[1]))
        config["text_config"]["vocab_size"] = 420
    folders.write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors")
    folders.write_json(folder / "preprocessor_config.json", PROCESSOR)
    folders.write_json(folder / "tokenizer.json", tokenizer or folders.tokenizer(bos=False))
    marks = marks or dict(pad_token="<eos>", eos_token="<eos>", model_max_length=folders.LENGTH)
    folders.write_json(folder / "tokenizer_config.json", marks)
    return folder


@pytest.fixture(scope="module")
def gemma():
    return folders.gemma_tokenizer([text for text in WORDS for _ in range(3)] + list("abcdefghijklmnopqrstuvwxyz"))


def pictures():
    return [folders.picture("RGB", shape, seed=i) for i, shape in enumerate(SHAPES)]


def test_in_and_out_again(tmp_path):
    given = hugging_face(tmp_path / "in")
    stored = open_stored(f"hf:{given}")
    image = stored.config.data.inputs.image
    assert (image.crop, image.filter, image.naflex.lengths, image.naflex.patch_size) == ("whole", "bilinear", (24,), 4)
    done = export(stored, tmp_path / "out", to="hf")
    assert done.differences == {"image": 0.0, "text": 0.0}
    assert [note.split()[0] for note in done.notes] == ["AutoTokenizer", "transformers'", "AutoProcessor"]
    assert all(note in (tmp_path / "out" / "README.md").read_text() for note in done.notes)
    before, after = load_file(given / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    read = lambda folder, name: json.loads((folder / name).read_text())
    assert read(tmp_path / "out", "preprocessor_config.json").items() >= PROCESSOR.items()
    config, wanted = read(tmp_path / "out", "config.json"), read(given, "config.json")
    assert config["model_type"] == "siglip2" and config["architectures"] == ["Siglip2Model"]
    for section in ("vision_config", "text_config"):
        ids = {key for key in config[section] if key.endswith("_token_id")}
        for key in config[section].keys() - ids:
            assert config[section][key] == wanted[section][key], key


def test_the_imported_folder_is_the_same_model_and_a_start_for_recipes(tmp_path):
    given = hugging_face(tmp_path / "in")
    write_stored(open_stored(f"hf:{given}"), tmp_path / "own")
    model, own = xmodal.load(f"hf:{given}"), xmodal.load(tmp_path / "own")
    np.testing.assert_array_equal(own.embed_image(pictures()), model.embed_image(pictures()))
    found = model.zero_shot(pictures(), ["w9", "w8"])
    assert found.shape == (4, 2) and ((found > 0) & (found < 1)).all()
    image = continue_from(base.get_config(), tmp_path / "own").data.inputs.image
    assert (image.crop, image.naflex.lengths, image.naflex.patch_size) == ("whole", (24,), 4)
    assert image.mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize("name", ["GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer"])
def test_texts_become_what_the_model_was_trained_with(gemma, tmp_path, name):
    """Lower-cased, no begin mark, an end mark also after a cut, padded on the right with <pad>: 64 ids."""
    folders.write_json(tmp_path / "tokenizer.json", gemma)
    folders.write_json(tmp_path / "tokenizer_config.json", folders.SIGLIP2_MARKS | dict(tokenizer_class=name))
    tokenizer, length = read_tokenizer(tmp_path, SIGLIP.cased)
    assert SIGLIP2.cased == SIGLIP.cased and length == 64
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 1, 0)
    ids, _ = tokenizer.encode(["A Photo of a CAT", "a photo of a cat", "Éa", "a b " * 99], 16)
    np.testing.assert_array_equal(ids[0], ids[1])
    words = [i for i in ids[0].tolist() if i]
    assert words[-1] == 1 and words.count(1) == 1 and not ids[0, len(words) :].any() and 2 not in ids
    accent = tokenizer.tokens(["é"])[0]  # two bytes of UTF-8, for there is no such piece
    assert len(accent) == 2 and ids[2, :4].tolist() == [*accent, *tokenizer.tokens(["a"])[0], 1]
    assert ids[3, -1] == 1 and (ids[3, :-1] > 4).all()
    assert is_gemma(tokenizer, lower=False)


def test_other_models_keep_their_capitals(gemma, tmp_path):
    folders.write_json(tmp_path / "tokenizer.json", gemma)
    folders.write_json(tmp_path / "tokenizer_config.json", folders.SIGLIP2_MARKS)
    tokenizer, _ = read_tokenizer(tmp_path)  # PaliGemma reads them
    assert tokenizer.tokens(["A"]) != tokenizer.tokens(["a"]) and not is_gemma(tokenizer, lower=False)
    assert is_gemma(tokenizer, lower=True)


def test_what_tokenizer_config_says_goes_before_the_file(gemma, tmp_path):
    stated = gemma | dict(post_processor=None)
    folders.write_json(tmp_path / "tokenizer.json", stated)
    folders.write_json(tmp_path / "tokenizer_config.json", folders.SIGLIP2_MARKS)
    tokenizer, _ = read_tokenizer(tmp_path, SIGLIP.cased)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 1)
    folders.write_json(tmp_path / "tokenizer_config.json", folders.SIGLIP2_MARKS | dict(padding_side="left"))
    with pytest.raises(InteropError, match="padding_side is 'left'"):
        read_tokenizer(tmp_path, SIGLIP.cased)


def test_gemmas_tokenizer_leaves_as_it_came(gemma, tmp_path):
    given = hugging_face(tmp_path / "in", gemma, folders.SIGLIP2_MARKS | dict(model_max_length=folders.LENGTH))
    stored = open_stored(f"hf:{given}")
    done = export(stored, tmp_path / "out", to="hf")
    assert [note.split()[0] for note in done.notes] == ["AutoTokenizer", "transformers'", "AutoProcessor"]
    texts = ["A Photo of a CAT", "Éa", ""]
    again = open_stored(f"hf:{tmp_path / 'out'}").tokenizer
    for a, b in zip(stored.tokenizer.encode(texts, 12), again.encode(texts, 12)):
        np.testing.assert_array_equal(a, b)
    write_tokenizer(
        tmp_path, stored.tokenizer, length=12, preparation=Preparation(lower=True)
    )  # lower-casing twice is lower-casing
    twice, _ = read_tokenizer(tmp_path)
    np.testing.assert_array_equal(twice.encode(texts, 12)[0], again.encode(texts, 12)[0])


def test_fourteen_pixel_patches_leave_a_rest(tmp_path):
    """So400m/14 at 384 pixels, here 4 x 4 patches of 11 pixels in 48."""
    given = folders.hugging_face(tmp_path / "in", "siglip")
    config, weights = json.loads((given / "config.json").read_text()), load_file(given / "model.safetensors")
    config["vision_config"]["patch_size"] = 11
    name = "vision_model.embeddings.{}_embedding.weight"
    weights[name.format("patch")] = np.resize(weights[name.format("patch")], (48, 3, 11, 11))
    weights[name.format("position")] = weights[name.format("position")][:16]
    folders.write_json(given / "config.json", config)
    save_file(weights, given / "model.safetensors")
    stored = open_stored(f"hf:{given}")
    assert stored.spec.towers["image"].embed.grid == (4, 4) and stored.config.data.inputs.image.size == 48
    done = export(stored, tmp_path / "out", to="hf")
    assert done.differences["image"] == 0.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]["image_size"] == 48


def test_processors_return_as_they_came():
    image = image_section()
    image.update(preprocessing.from_packing_processor(PROCESSOR, 4, "here"))
    back = preprocessing.to_processor(image, "Siglip2ImageProcessor", "Siglip2Processor")
    assert back.items() >= PROCESSOR.items() and "size" not in back
    image.naflex.update(lengths=(6, 12), length=9)
    assert preprocessing.to_processor(image, "", "")["max_num_patches"] == 9
    defaults = preprocessing.from_packing_processor({}, 16, "here")
    assert defaults["naflex"]["lengths"] == (256,) and defaults["filter"] == "bilinear"
    for change, message in ((dict(patch_size=8), "patch_size is 8, and the model takes 4"),
                            (dict(do_resize=False), "do_resize is false"),
                            (dict(resample=1), "resample is 1")):  # fmt: skip
        with pytest.raises(InteropError, match=message):
            preprocessing.from_packing_processor(PROCESSOR | change, 4, "here")
