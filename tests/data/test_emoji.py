"""The emoji data that ship with the repository: complete, without leaks, and readable by anyone."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from data_pipelines.emoji import build, drawings
from data_pipelines.text.tokenizers import train_wordpiece

EMOJI = Path(build.__file__).parent
SHARDS = {
    "train": [f"train-{i:04d}" for i in range(4)],
    "unseen_vendor": ["unseen_vendor-0000"],
    "unseen_concepts": ["unseen_concepts-0000"],
}


def read(shard):
    """Returns key -> {extension: bytes} of a shard and checks the form of its members."""
    samples = {}
    with tarfile.open(EMOJI / "shards" / f"{shard}.tar.gz", "r:gz") as tar:
        for member in tar:
            key, extension = member.name.split(".", 1)
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert extension not in samples.setdefault(key, {}), f"{member.name} comes twice"
            samples[key][extension] = tar.extractfile(member).read()
    return samples


@pytest.fixture(scope="module")
def samples():
    """Split -> key -> members; the json member parsed."""
    splits = {}
    for split, shards in SHARDS.items():
        splits[split] = {key: sample for shard in shards for key, sample in read(shard).items()}
        for sample in splits[split].values():
            assert set(sample) == {"json", "txt", "webp"}
            sample["json"] = json.loads(sample["json"])
    return splits


def everything(samples):
    return [(key, sample) for split in samples.values() for key, sample in split.items()]


def hexcodes(split):
    return {sample["json"]["hexcode"] for sample in split.values()}


def test_counts(samples):
    train = {"noto": 1630, "openmoji": 1630, "fluent_3d": 1630, "fluent_flat": 1630}
    counts = {name: Counter(s["json"]["vendor"] for s in split.values()) for name, split in samples.items()}
    assert counts == {
        "train": train,
        "unseen_vendor": {"twemoji": 1811},
        "unseen_concepts": dict.fromkeys(train, 181),
    }
    assert len({key for key, _ in everything(samples)}) == 9055


def test_every_shard_of_the_repository_is_known():
    names = {path.name for path in (EMOJI / "shards").glob("*.tar.gz")}
    assert names == {f"{shard}.tar.gz" for shards in SHARDS.values() for shard in shards}


def test_unseen_concepts_are_never_trained_on(samples):
    train, unseen = hexcodes(samples["train"]), hexcodes(samples["unseen_concepts"])
    assert not train & unseen
    assert train | unseen == hexcodes(samples["unseen_vendor"])
    for _, sample in everything(samples):
        assert sample["json"]["split"] == ("unseen_concept" if sample["json"]["hexcode"] in unseen else "train")


def test_split_and_order_follow_from_the_names_alone(samples):
    names = sorted(hexcodes(samples["unseen_vendor"]), reverse=True)
    assert build.unseen_hexcodes(names) == hexcodes(samples["unseen_concepts"])
    plan = build.shard_plan(names)
    for split, shards in SHARDS.items():
        keys = [f"{hexcode}-{vendor}".lower() for shard in shards for hexcode, vendor in plan.pop(shard)]
        assert keys == list(samples[split]), f"{split} is in another order"
    assert not plan


def test_neighbours_in_a_training_shard_are_mixed(samples):
    first = [sample["json"] for sample in samples["train"].values()][:200]
    assert len({record["hexcode"] for record in first}) > 150
    assert len({record["group"] for record in first}) == 9


def test_keys_and_texts_agree_with_the_records(samples):
    for key, sample in everything(samples):
        record = sample["json"]
        assert key == f"{record['hexcode']}-{record['vendor']}".lower()
        assert "".join(chr(int(point, 16)) for point in record["hexcode"].split("-")).strip("\ufe0f") == record[
            "emoji"
        ].strip("\ufe0f")
        assert sample["txt"].decode() == record["label"] == record["labels"]["en"]
        assert record["tags"] == record["tags_by_language"]["en"]
        assert record["group"] and record["subgroup"]


def test_every_language_is_there(samples):
    for _, sample in everything(samples):
        record = sample["json"]
        assert set(record["labels"]) == set(record["tags_by_language"]) >= {"en", "zh", "de", "es", "ja"}
        assert all(label.strip() for label in record["labels"].values())
        assert all(tags and all(tags) for tags in record["tags_by_language"].values())
    otter = samples["unseen_vendor"]["1f9a6-twemoji"]["json"]["labels"]
    assert (otter["zh"], otter["de"], otter["ja"]) == ("水獭", "Otter", "カワウソ")


def test_drawings_are_small_rgb_images_with_a_white_ground(samples):
    grounds = Counter()
    for key, sample in everything(samples):
        image = Image.open(io.BytesIO(sample["webp"]))
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64)), key
        low = min(lowest for lowest, _ in image.getextrema())
        assert low < 235, f"{key} is blank"
        grounds[any(image.getpixel(corner) == (255, 255, 255) for corner in ((0, 0), (63, 0), (0, 63), (63, 63)))] += 1
    assert grounds[True] > 0.98 * grounds.total()  # a few drawings fill their square


def test_licences_and_size():
    attribution = (EMOJI / "LICENSES" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    texts = [path for path in (EMOJI / "LICENSES").glob("*.txt") if path.stat().st_size > 1000]
    assert len(texts) == 7
    assert all(f"({path.name})" in attribution for path in texts)
    assert all(f"`{vendor}`" in attribution for vendor in drawings.VENDORS)
    shipped = [*(EMOJI / "shards").glob("*.tar.gz"), EMOJI / "tokenizer.json", *(EMOJI / "LICENSES").iterdir()]
    assert sum(path.stat().st_size for path in shipped) <= 20_000_000


def test_tokenizer_marks_and_round_trip(samples):
    tokenizer = Tokenizer.from_file(str(EMOJI / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "<bos>", "<eos>")] == [0, 1, 2]
    assert tokenizer.get_vocab_size() <= 4096
    ids = tokenizer.encode("grinning face").ids
    assert (ids[0], ids[-1]) == (1, 2) and len(ids) == 4, "common words should be single tokens"
    for sample in samples["unseen_vendor"].values():
        for text in [*sample["json"]["labels"].values(), sample["json"]["emoji"]]:
            # One space is set before a text, so that its first word is the token that it is elsewhere.
            assert tokenizer.decode(tokenizer.encode(text.lower()).ids) == f" {text.lower()}"


def png(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def test_word_pieces_follow_from_the_training_concepts(samples):
    """The file is what training on these texts gives, and reads every language in short."""
    records = {s["json"]["hexcode"]: s["json"] for s in samples["train"].values()}
    pieces = train_wordpiece(build.all_texts(records.values()), build.WORDPIECE_SIZE)
    assert pieces.json == (EMOJI / "wordpiece.json").read_text(encoding="utf-8")
    for language in build.LANGUAGES:
        tokens = pieces.tokens([record["labels"][language].lower() for record in records.values()])
        assert not any(pieces.special_ids[1] in text for text in tokens), "no unknown word"
        assert np.mean([len(text) for text in tokens]) < 4.5, language


def test_render_pads_to_a_square_and_averages_areas():
    tall = drawings.render(png(Image.new("RGBA", (64, 128), (10, 20, 30, 255))))
    assert (tall.mode, tall.size) == ("RGB", (64, 64))
    assert [tall.getpixel((x, 0)) for x in (15, 16, 47, 48)] == [(255,) * 3, *[(10, 20, 30)] * 2, (255,) * 3]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_render_sets_transparency_on_white(mode):
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    half.paste((0, 0, 0, 255), (0, 0, 32, 64))
    image = drawings.render(png(half.convert(mode)))
    assert (image.getpixel((31, 5)), image.getpixel((32, 5))) == ((0,) * 3, (255,) * 3)


@pytest.mark.parametrize("noise, error", [(0, 0), (40, 2)])
def test_encode_is_exact_or_off_by_two(noise, error):
    pixels = np.random.default_rng(0).integers(0, noise + 1, (64, 64, 3)) + 255 - noise
    back = np.asarray(Image.open(io.BytesIO(drawings.encode(Image.fromarray(pixels.astype(np.uint8))))))
    assert abs(back.astype(int) - pixels).max() == error


def test_a_missing_package_and_a_wrong_version_are_named(tmp_path):
    with pytest.raises(drawings.BuildError, match=r"npm pack openmoji@17\.0\.0"):
        drawings.read_drawings(tmp_path, "openmoji")
    with tarfile.open(tmp_path / "openmoji-17.0.0.tgz", "w:gz") as tar:
        about = b'{"name": "openmoji", "version": "16.0.0"}'
        member = tarfile.TarInfo("package/package.json")
        member.size = len(about)
        tar.addfile(member, io.BytesIO(about))
    with pytest.raises(drawings.BuildError, match=r"holds openmoji@16\.0\.0, expected openmoji@17\.0\.0"):
        drawings.read_drawings(tmp_path, "openmoji")


def test_a_missing_drawing_is_counted(samples):
    concepts = [
        build.Concept(sample["json"]["hexcode"], sample["json"]["emoji"], "", "", {}, {})
        for sample in samples["unseen_vendor"].values()
    ]
    complete = {drawings.plain_hexcode(concept.hexcode): b"" for concept in concepts}
    assert len(build.in_all(concepts, {"noto": complete, "openmoji": complete})) == 1811
    short = dict(list(complete.items())[1:])
    with pytest.raises(build.BuildError, match=r"1810 concepts .* 'openmoji': 1810"):
        build.in_all(concepts, {"noto": complete, "openmoji": short})


def test_written_shards_are_equal_bytes(tmp_path):
    members = [("a.txt", b"one"), ("a.json", b"{}")]
    for name in ("first.tar.gz", "second.tar.gz"):
        build.write_shard(tmp_path / name, members)
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "second.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "first.tar.gz") as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar] == members
