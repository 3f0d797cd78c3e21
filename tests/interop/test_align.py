"""ConvNeXt, EfficientNet and ALIGN in Hugging Face folders: in, out, and as programs."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xmodal
from data_pipelines.text.tokenizers import wordpiece
from tests.interop import folders
from xmodal.interop.export import export
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

PIXELS = 33
TEXTS = ["w20 w30", "w8", "w50 w51 w52 w53"]


def hugging_face(folder, name):
    """A Hugging Face folder whose processor has the rules of its family, for pictures of 33 pixels."""
    golden = folders.load(name)
    folder.mkdir()
    folders.write_json(folder / "config.json", json.loads(str(golden["config"])))
    save_file(folders.part(golden, "weights/"), folder / "model.safetensors")
    processor = json.loads(str(folders.load("processors")[f"config/{name.split('_')[0]}"]))
    square = dict(height=PIXELS, width=PIXELS)
    if name == "align":
        processor |= dict(size=dict(height=40, width=40), crop_size=square)
    else:
        processor |= dict(size=dict(shortest_edge=PIXELS) if name.startswith("convnext") else square)
    folders.write_json(folder / "preprocessor_config.json", processor)
    if name == "align":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, folders.VOCAB))]
        wordpiece(words, lower=True).save(str(folder / "tokenizer.json"))
        folders.write_json(folder / "tokenizer_config.json", dict(model_max_length=12, pad_token="[PAD]"))
    return folder


@pytest.mark.parametrize("name", ["convnext", "efficientnet_classifier", "align"])
def test_in_and_out_again(name, tmp_path):
    given = hugging_face(tmp_path / "in", name)
    stored = open_stored(f"hf:{given}")
    image = stored.config.data.inputs.image
    assert stored.spec.towers["image"].embed.image_size == image.size == PIXELS
    assert (image.crop, image.resize) == {
        "convnext": ("center", int(PIXELS / 0.8)), "efficientnet": ("squash", 0), "align": ("squash", 40)
    }[name.split("_")[0]]  # fmt: skip
    done = export(stored, tmp_path / "out", to="hf")
    assert max(done.differences.values()) < (1e-6 if name == "align" else 1e-30)
    before, after = load_file(given / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    counters = {key for key in after if key.endswith("num_batches_tracked")}
    assert before.keys() == after.keys() - counters and all(after[key].dtype == np.int64 for key in counters)
    for key in before:
        if "text_model.pooler" not in key:  # the reference does not read it
            np.testing.assert_allclose(before[key], after[key], rtol=1e-6 if key == "temperature" else 0, err_msg=key)
    again = open_stored(f"hf:{tmp_path / 'out'}")
    assert again.spec == stored.spec and again.config.data.inputs.image == stored.config.data.inputs.image
    wanted = json.loads((given / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == wanted["model_type"] and written["architectures"] == wanted["architectures"]
    if name.endswith("classifier"):
        assert written["id2label"] == wanted["id2label"]


def test_an_align_says_how_well_texts_fit(tmp_path):
    stored = open_stored(f"hf:{hugging_face(tmp_path / 'in', 'align')}")
    objective = stored.config.objectives.contrastive
    assert (objective.type, objective.label_smoothing, objective.logit_scale) == ("softmax", 0.1, 0.0)
    assert stored.config.data.inputs.text.length == 12 and stored.spec.towers["text"].embed.length == 14
    write_stored(stored, tmp_path / "own")
    model = xmodal.load(tmp_path / "own")
    pictures = [folders.picture(seed=i) for i in range(2)]
    image, text = model.embed_image(pictures), model.embed_text(TEXTS)
    logits = image @ text.T / float(folders.load("align")["weights/temperature"])
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.zero_shot(pictures, TEXTS), wanted, rtol=1e-4)
    assert np.ptp(wanted) > 1e-3, "the model tells texts apart"


def test_programs_run_without_xmodal(tmp_path):
    """Statistics travel with the weights, and one program serves every kind of device."""
    stored = open_stored(f"hf:{hugging_face(tmp_path / 'in', 'efficientnet_classifier')}")
    done = export(stored, tmp_path / "out", to="jax")
    assert done.differences["image"] < 1e-5
