"""Images and captions in one JSON document, in the layouts that are in use."""

import json
import pickle

import pytest
from tiny_shards import encode

from data_pipelines.errors import DataError
from data_pipelines.images.formats import IMAGE_EXTENSIONS
from data_pipelines.io.listing import CAPTION_COLUMNS, IMAGE_COLUMNS, Wanted
from data_pipelines.io.lists import open_list
from data_pipelines.io.storage import Files
from data_pipelines.stream.evalset import EvalSet

SENTENCES = {i: [f"Thing {i}, line {j}" for j in range(5 + i % 2)] for i in range(6)}
SPLITS = ["train", "restval", "test"]
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": f"{i}.png", "imgid": i, "split": SPLITS[i % 3], "sentids": [1, 2],
         "sentences": [{"raw": raw, "tokens": raw.split(), "imgid": i} for raw in SENTENCES[i]]}
        for i in range(6)
    ],
}  # fmt: skip
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 70 + i, "file_name": f"val2014/{i}.png", "width": 24} for i in range(6)],
    "annotations": [{"image_id": 70 + i, "id": 9, "caption": raw} for i in reversed(range(6)) for raw in SENTENCES[i]],
}
ARO = [{"image_path": f"val2014/{i}.png", "true_caption": "a on b", "false_caption": "b on a"} for i in range(6)]
SUGARCREPE = {
    str(2 * i): {"filename": f"{i}.png", "caption": "a b", "negative_caption": "b a"} for i in range(6)
}  # not all numbers

IMAGES = {"image": Wanted("image", "image", "", IMAGE_COLUMNS, True, IMAGE_EXTENSIONS)}
CAPTIONS = {"text": Wanted("caption", "caption", "", CAPTION_COLUMNS)}


@pytest.fixture
def files():
    with Files() as files:
        yield files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val2014").mkdir()
    for i in range(6):
        (tmp_path / "val2014" / f"{i}.png").write_bytes(encode(i))
    for name, document in dict(karpathy=KARPATHY, coco=COCO, aro=ARO, sugarcrepe=SUGARCREPE).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "image", "fields"),
    [
        ("karpathy", "val2014/4.png", dict(split="restval", imgid=4, sentences=SENTENCES[4])),
        ("coco", "val2014/4.png", dict(id=74, width=24, sentences=SENTENCES[4])),
        ("aro", "val2014/4.png", dict(true_caption="a on b", false_caption="b on a")),
        ("sugarcrepe", "4.png", dict(negative_caption="b a")),
    ],
)
def test_a_row_for_each_image(folder, files, name, image, fields):
    listing = open_list(str(folder / f"{name}.json"), files)
    listing.use(IMAGES, CAPTIONS, None)
    rows = list(listing.scan())
    assert [row.number for row in rows] == list(range(6)) and not any(row.problem for row in rows)
    assert rows[4].parts["image"] == image and fields.items() <= rows[4].fields.items()
    assert rows[4].texts.get("text") == ("a b" if name == "sugarcrepe" else None)
    again = pickle.loads(pickle.dumps(listing))
    assert len(pickle.dumps(listing)) < 1000, "a worker reads the document itself"
    assert again.read(3, 5) == rows[3:5]


def test_a_split_with_all_its_sentences(folder, config):
    config.inputs.text.templates, config.inputs.text.max_list = ((1.0, "{sentences}"),), 1
    entry = dict(type="files", urls=str(folder / "karpathy.json"), filter="split in ('train', 'restval')")
    found = EvalSet(entry, config)
    assert [record.fields["imgid"] for record in found.records] == [0, 1, 3, 4]
    assert found.records[3].captions == [text.lower() for text in SENTENCES[4]]
    assert found.skipped == {"filtered": 2}


def test_images_lie_below_root(folder, config):
    config.inputs.text.templates = ((1.0, "{negative_caption}"),)
    entry = dict(type="files", urls=str(folder / "sugarcrepe.json"))
    with pytest.raises(DataError, match=r"no usable image .*no image: 6.*root=DIR"):
        EvalSet(entry, config)
    assert len(EvalSet(entry | dict(root=str(folder / "val2014")), config)) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "holds no objects"),
        ("{", "is not JSON of a known layout"),
        ('{"images": [{"filename": "a.png"}]}', "known layout .*sentences"),
        ('[{"picture": "a.png"}]', "has no column image, .*which of its columns holds the images: picture"),
    ],
)
def test_what_is_something_else_is_named(tmp_path, files, content, message):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_list(str(tmp_path / "list.json"), files).use(IMAGES, CAPTIONS, None)


def test_a_row_that_is_no_object_is_left_out(folder, config):
    (folder / "aro.json").write_text(json.dumps([ARO[0], "x", ARO[2]]))
    config.inputs.text.templates = ((1.0, "{true_caption}"),)
    found = EvalSet(dict(type="files", urls=str(folder / "aro.json")), config)
    assert [record.key for record in found.records] == ["row 1", "row 3"] and found.skipped == {"bad json": 1}
