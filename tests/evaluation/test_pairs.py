"""Right and wrong captions, and pairs of images with pairs of captions; and the shape of embeddings."""

import json

import jax
import numpy as np
import pytest
from tiny_world import KINDS, SAMPLES, held_out

from data_pipelines.errors import DataError
from tests.data.tiny_shards import encode, sample, write_tar
from xmodal.config import ConfigError, make_spec
from xmodal.evaluation import health
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.health import EmbeddingHealth
from xmodal.evaluation.pairs import Pairs, winoground


def embedded(world, texts):
    embedder, dataset = Embedder(world.context, 16, ("image", "text")), world.context.open(world.urls)
    with jax.set_mesh(world.mesh):
        return embedder.samples(world.params, dataset), embedder.texts(world.params, texts)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Samples with one right caption and one to three wrong ones, and a kind of mistake."""
    folder, samples = tmp_path_factory.mktemp("pairs"), {}
    for i in range(SAMPLES):
        fields = dict(caption=f"Thing {i}", swapped=f"{i} thing", lists=[f"thing {i + j}" for j in range(1, 1 + i % 3)])
        fields |= dict(mistake="swap" if i < 20 else "number")
        samples[f"{i:03d}"] = {"png": held_out(i)["png"], "json": json.dumps(fields).encode()}
    return str(write_tar(folder / "pairs.tar", samples))


def test_right_captions_above_all_wrong_ones(world, alone, examples):
    options = dict(captions=("{caption}",), wrong=("swapped", "lists"), by="mistake")
    result = world.evaluate(Pairs(examples, batch_size=16, **options))
    hits = []
    for i in range(SAMPLES):
        texts = [f"thing {i}", f"{i} thing", *(f"thing {i + j}" for j in range(1, 1 + i % 3))]
        images, written = embedded(world, texts) if i in (0, 1, 2, 30) else (None, None)
        if images is not None:
            scores = written @ images[i]
            hits.append((i, scores[0] > scores[1:].max()))
    values = result.scores["pairs/x"].values["text"]
    assert [bool(values[i]) for i, _ in hits] == [bool(hit) for _, hit in hits]
    got = {key.removeprefix("pairs/x/"): value for key, value in result.metrics.items()}
    assert got["text"] == np.mean(values) and got["examples"] == SAMPLES
    assert (got["of_swap/text"], got["of_number/text"]) == (np.mean(values[:20]), np.mean(values[20:]))
    assert got["chance/text"] == pytest.approx(np.mean([1 / (2 + i % 3) for i in range(SAMPLES)]))
    for other, batch_size in ((alone, SAMPLES), (world, 7)):
        assert other.evaluate(Pairs(examples, batch_size=batch_size, **options)).metrics == result.metrics


def test_a_wrong_caption_that_is_the_right_one_is_a_miss(world, examples):
    same = Pairs(examples, captions=("{caption}",), wrong=("caption",), batch_size=16)
    assert world.evaluate(same).metrics["pairs/x/text"] == 0


@pytest.fixture(scope="module")
def winoground_list(tmp_path_factory):
    """A list of examples with two images; an image of the third is missing."""
    folder, rows = tmp_path_factory.mktemp("winoground"), []
    for i in range(20):
        for j in range(2):
            if (i, j) != (2, 1):
                (folder / f"{i}_{j}.png").write_bytes(encode(10 * i + j))
        rows.append({f"image_{j}": f"{i}_{j}.png" for j in range(2)} | dict(tag=("a", "b")[i % 2]))
        rows[-1] |= dict(caption_0=f"star {i} moon", caption_1=f"moon {i} star")
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "list.jsonl"


def test_two_images_and_two_captions(world, alone, winoground_list):
    source = dict(type="files", urls=str(winoground_list))
    options = dict(images=("image_0", "image_1"), captions=("{caption_0}", "{caption_1}"), source=source, by="tag")
    result = world.evaluate(Pairs(batch_size=16, **options))
    kept = [i for i in range(20) if i != 2]
    sets = [world.context.open(source | dict(image=f"image_{j}"), ("{tag}",)) for j in range(2)]
    with jax.set_mesh(world.mesh):
        embedder = Embedder(world.context, 16, ("image", "text"))
        left, right = (embedder.samples(world.params, part) for part in sets)
        first, second = (
            embedder.texts(world.params, [t.format(i) for i in kept]) for t in ("star {} moon", "moon {} star")
        )
    images = np.stack([np.delete(left, 2, axis=0), right], axis=1)
    expected = winoground(images, np.stack([first, second], axis=1))
    for name, hits in expected.items():
        np.testing.assert_array_equal(result.scores["pairs/x"].values[name], hits)
        assert result.metrics[f"pairs/x/{name}"] == np.mean(hits)
    assert result.metrics["pairs/x/examples"] == 19 and result.metrics["pairs/x/chance/group"] == pytest.approx(1 / 6)
    rows = np.array([i % 2 == 0 for i in kept])
    assert result.metrics["pairs/x/of_a/text"] == np.mean(expected["text"][rows])
    assert alone.evaluate(Pairs(batch_size=SAMPLES, **options)).metrics == result.metrics


def test_examples_of_lists_with_one_name_are_told_apart(world, winoground_list, tmp_path):
    """Lists of several folders are often called alike, and number their rows alike."""
    whole = winoground_list.read_text().splitlines()
    for part, rows in dict(a=whole[:7], b=whole[7:]).items():
        (tmp_path / part).mkdir()
        for image in winoground_list.parent.glob("*.png"):
            (tmp_path / part / image.name).hardlink_to(image)
        (tmp_path / part / "list.jsonl").write_text("\n".join(rows))
    options = dict(images=("image_0", "image_1"), captions=("{caption_0}", "{caption_1}"), by="tag", batch_size=16)
    evaluate = lambda urls: world.evaluate(Pairs(source=dict(type="files", urls=urls), **options)).metrics
    assert evaluate([str(tmp_path / part / "list.jsonl") for part in "ab"]) == evaluate(str(winoground_list))


def test_the_scores_of_winoground():
    images = np.eye(4)[[[0, 1], [0, 1], [0, 1], [0, 0]]]
    texts = np.eye(4)[[[0, 1], [1, 0], [0, 0], [0, 1]]]  # right, swapped, captions alike, images alike
    found = winoground(images, texts)
    assert {name: hits.tolist() for name, hits in found.items()} == dict(
        text=[True, False, False, False], image=[True, False, False, False], group=[True, False, False, False]
    )
    images, texts = np.array([[[1.0, 0], [0.8, 0]]]), np.array([[[1.0, 0], [0.5, 0]]])  # one image is always closer
    assert not winoground(images, texts)["image"][0] and not winoground(images, texts)["text"][0]
    images, texts = np.array([[[1.0, 0.0], [0.6, 0.8]]]), np.array([[[0.9, 0.1], [0.7, 0.5]]])
    found = winoground(images, texts)
    assert (bool(found["text"][0]), bool(found["image"][0])) == (True, True)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (dict(), ConfigError, "give either `wrong`"),
        (dict(wrong=("a",), images=("a", "b")), ConfigError, "give either `wrong`"),
        (dict(images=("a", "b")), ConfigError, "two `images` need two `captions`"),
        (dict(wrong=("swaped",)), DataError, r"wrong: sample 000 of pairs\.tar has no text in 'swaped'; .*swapped"),
        (dict(wrong=("swapped",), by="kind"), DataError, "by: no example has the field 'kind'; .*mistake"),
    ],
)
def test_what_does_not_fit_is_named(world, examples, fields, error, message):
    with pytest.raises(error, match=message):
        make_spec(Pairs, dict(urls=examples, captions=("{caption}",)) | fields, "evals.x").prepare("x", world.context)


# ------------------------------------------------------------------------------------------ embeddings


def test_health_of_both_towers_or_of_one(world, alone):
    got = world.evaluate(EmbeddingHealth(world.urls, batch_size=16)).metrics
    images, texts = (x.astype(np.float64) for x in embedded(world, [f"thing {i}" for i in range(SAMPLES)]))
    expected = {
        "samples": SAMPLES, "pairs/alignment": health.alignment(images, texts),
        "pairs/modality_gap": health.modality_gap(images, texts),
    }  # fmt: skip
    for tower, x in dict(image=images, text=texts).items():
        expected |= {f"{tower}/uniformity": health.uniformity(x), f"{tower}/effective_rank": health.effective_rank(x)}
        expected[f"{tower}/mean_norm"] = np.linalg.norm(x.mean(axis=0))
    assert got == pytest.approx({f"embeddings/x/{key}": value for key, value in expected.items()})
    assert all(type(value) is float for value in got.values())
    for other, batch_size in ((alone, SAMPLES), (world, 7)):
        again = other.evaluate(EmbeddingHealth(other.urls, batch_size=batch_size)).metrics
        assert again == pytest.approx(got, rel=1e-5, abs=1e-6)
    one = world.evaluate(EmbeddingHealth(world.urls, towers=("image",), batch_size=16)).metrics
    assert one == {key: value for key, value in got.items() if "image" in key or "samples" in key}
    assert EmbeddingHealth(world.urls, towers=("image",)).needs == {"image.pooled"}
    with pytest.raises(ConfigError, match="expected one tower, or two"):
        make_spec(EmbeddingHealth, dict(urls=world.urls, towers=("image", "image")), "evals.x")


def test_the_samples_are_those_of_the_world():
    assert sample(3)["png"] == held_out(3)["png"] and len(KINDS) == 3
