"""Retrieval agrees with a reference in NumPy, on any number of devices and for any batch size."""

import base64
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_world import SAMPLES, changed, held_out

from data_pipelines.errors import DataError
from tests.data.tiny_shards import write_tar
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.gallery import choose
from xmodal.evaluation.retrieval import Retrieval, chance_recall, ranks, recalls
from xmodal.evaluation.zero_shot import ZeroShot
from xmodal.reporting.scores import flat_figures


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_ranks(queries, items, pairs):
    """How many wrong items score higher than the best right one, or as high and are listed before it."""
    found = []
    for i, query in enumerate(queries):
        scores = [float(np.dot(query.astype(np.float64), item.astype(np.float64))) for item in items]
        right = {j for q, j in pairs.tolist() if q == i}
        order = sorted(range(len(items)), key=[-s for s in scores].__getitem__)  # stable
        found.append(min(order.index(j) for j in right))
        found[-1] -= sum(j in right for j in order[: found[-1]])
    return np.array(found)


def test_ranks_with_several_right_items():
    rng = np.random.default_rng(0)
    queries, items = unit(rng, 60, 8), unit(rng, 41, 8)
    pairs = np.array([(q, j) for q in range(60) for j in rng.choice(41, rng.integers(1, 6), replace=False)])
    np.testing.assert_array_equal(ranks(queries, items, pairs), reference_ranks(queries, items, pairs))


def test_ranks_of_more_queries_than_are_ranked_at_once():
    rng = np.random.default_rng(1)
    items = unit(rng, 40, 8)
    queries = np.concatenate([items] * 30)  # each finds itself
    pairs = np.stack([np.arange(1200), np.arange(1200) % 40], axis=1)
    assert not ranks(queries, items, pairs).any()
    pairs[:, 1] = (pairs[:, 1] + 1) % 40
    assert ranks(queries, items, pairs).all()


def test_of_items_with_equal_scores_the_first_comes_first():
    same = np.ones((30, 4), np.float32) / 2
    pairs = np.stack([np.arange(30), np.arange(30)], axis=1)
    np.testing.assert_array_equal(ranks(same, same, pairs), np.arange(30))
    assert recalls(ranks(same, same, pairs), 30, np.ones(30, int))[0]["R@10"] == 10 / 30


@pytest.mark.parametrize(("items", "right"), [(12, 1), (12, 3), (12, 11), (4, 2), (3, 3)])
def test_chance_recall_is_that_of_random_orders(items, right):
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((20_000, items)), axis=1)  # items [0, right) are the right ones
    for k in (1, 5, 10):
        share = np.mean(np.any(order[:, :k] < right, axis=1))
        np.testing.assert_allclose(chance_recall(k, items, np.array([right])), share, atol=0.015)


def expected_metrics(world, caption_list, by):
    """All metrics, from the embeddings and the definition."""
    captions = [
        list(dict.fromkeys(" ".join(t.lower().split()) for t in record.fields[caption_list]))
        if caption_list
        else record.captions
        for record in world.context.open(world.urls, (), 0).records
    ]
    texts = sorted({text for own in captions for text in own})
    embedder = Embedder(world.context, 16, ("image", "text"))
    with jax.set_mesh(world.mesh):
        images = embedder.samples(world.params, world.context.open(world.urls, (), 0))
        written = embedder.texts(world.params, texts)
    pairs = np.array([(i, texts.index(text)) for i, own in enumerate(captions) for text in own])
    sides = np.array(["left" if i < 20 else "right" for i in range(SAMPLES)])
    metrics = {"images": SAMPLES, "captions": len(texts)}

    def add(name, rank):
        for k in (1, 5, 10):
            metrics[f"{name}/R@{k}"] = np.mean(rank < k)
        metrics[f"{name}/median_rank"] = np.median(rank) + 1

    rank = reference_ranks(images, written, pairs)
    add("image_to_text", rank)
    add("text_to_image", reference_ranks(written, images, pairs[:, ::-1]))
    for side in ("left", "right") if by else ():
        add(f"image_to_text_of_{side}", rank[sides == side])
    return metrics


@pytest.mark.parametrize("caption_list", ["", "lines"])
def test_metrics_are_those_of_the_definition(world, caption_list):
    result = world.evaluate(Retrieval(world.urls, caption_list=caption_list, by="side", batch_size=16)).metrics
    got = {key.removeprefix("retrieval/x/"): value for key, value in result.items() if "chance" not in key}
    assert got == pytest.approx(expected_metrics(world, caption_list, by=True))
    assert all(type(value) is float for value in result.values())
    chance = result["retrieval/x/image_to_text/chance/R@5"]
    own = [1 + i % 3 for i in range(SAMPLES)] if caption_list else [1] * SAMPLES
    assert chance == pytest.approx(np.mean(chance_recall(5, int(got["captions"]), np.array(own))))


def test_same_on_one_and_eight_devices_and_for_any_batch_size(world, alone):
    one = alone.evaluate(Retrieval(alone.urls, caption_list="lines", batch_size=SAMPLES)).metrics
    for batch_size in (7, 16):
        assert world.evaluate(Retrieval(world.urls, caption_list="lines", batch_size=batch_size)).metrics == one
    embedder = lambda w, size: Embedder(w.context, size, ("image", "text"))
    embed = lambda w, size: embedder(w, size).samples(w.params, w.context.open(w.urls, (), 0))
    with jax.set_mesh(alone.mesh):
        want = embed(alone, SAMPLES)
    with jax.set_mesh(world.mesh):
        np.testing.assert_allclose(embed(world, 16), want, atol=1e-5)
    assert want.shape == (SAMPLES, 32)


def test_a_model_that_tells_nothing_apart_finds_what_chance_finds(world):
    blind = jax.tree.map(np.zeros_like, world.params)
    metrics = world.evaluate(Retrieval(world.urls, batch_size=16), blind).metrics
    items = dict(image_to_text=metrics["retrieval/x/captions"], text_to_image=metrics["retrieval/x/images"])
    for way, count in items.items():
        assert metrics[f"retrieval/x/{way}/R@1"] == pytest.approx(1 / count)


def test_gallery_shows_pictures_truth_and_candidates(world):
    gallery = world.evaluate(Retrieval(world.urls, caption_list="lines", examples=6)).gallery["retrieval/x"]
    assert len(gallery["image_to_text"]) == len(gallery["text_to_image"]) == 6
    numbers = {tuple(" ".join(t.lower().split()) for t in _lines(i)): i for i in range(SAMPLES)}
    for entry in gallery["image_to_text"]:
        i = numbers[tuple(entry["truth"])]
        data = base64.b64decode(entry["image"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(Image.open(io.BytesIO(data)), Image.open(io.BytesIO(held_out(i)["png"])))
        scores = [candidate["score"] for candidate in entry["candidates"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 5
        assert [c["correct"] for c in entry["candidates"]] == [c["text"] in entry["truth"] for c in entry["candidates"]]
        assert entry["candidates"][0]["correct"] == (entry["rank"] == 1)
    for entry in gallery["text_to_image"]:
        assert len(entry["candidates"]) == 8
        assert entry["candidates"][0]["correct"] == (entry["rank"] == 1)


def _lines(i):
    return json.loads(held_out(i)["json"])["lines"]


def test_examples_are_half_right_and_half_wrong_where_there_are_enough():
    for rights, expected in ((60, 5), (3, 3), (98, 8)):
        right = np.arange(100) < rights
        shown = choose(right, 10)
        assert sum(right[shown]) == expected and len(set(shown)) == 10 and shown == choose(right, 10)
    assert len(choose(np.ones(4, bool), 10)) == 4


def test_a_karpathy_split_has_five_captions_an_image(world, alone, tmp_path):
    """COCO's form: several captions an image, of which at most five count; one split of a document."""
    images = []
    for i in range(SAMPLES):
        (tmp_path / f"{i}.png").write_bytes(held_out(i)["png"])
        sentences = [{"raw": text} for text in (*(f"Thing {i} is {j}" for j in range(5)), *["thing"] * (i % 2))]
        images.append(dict(filename=f"{i}.png", split=("test", "val")[i >= 30], sentences=sentences))
    (tmp_path / "dataset_tiny.json").write_text(json.dumps(dict(images=images)))
    source = dict(type="files", urls=str(tmp_path / "dataset_tiny.json"), filter="split == 'test'")
    options = dict(source=source, caption_list="sentences", examples=0)
    found = world.evaluate(Retrieval(captions_per_image=5, merge=False, batch_size=16, **options))
    assert (found.metrics["retrieval/x/images"], found.metrics["retrieval/x/captions"]) == (30, 150)
    assert found.metrics["retrieval/x/image_to_text/chance/R@5"] == pytest.approx(
        chance_recall(5, 150, np.array([5]))[0]
    )
    np.testing.assert_array_equal(found.scores["retrieval/x/text_to_image"].unit, np.repeat(np.arange(30), 5))
    counts = [world.evaluate(Retrieval(merge=merge, batch_size=16, **options)).metrics["retrieval/x/captions"]
              for merge in (False, True)]  # fmt: skip
    assert counts == [165, 151], "equal captions are one, or are not"
    again = alone.evaluate(Retrieval(captions_per_image=5, merge=False, batch_size=SAMPLES, **options))
    assert again.metrics == found.metrics


def test_the_scores_are_those_behind_the_figures(world):
    found = world.evaluate(Retrieval(world.urls, caption_list="lines", by="side", batch_size=16, examples=0))
    assert flat_figures(found.scores).items() <= found.metrics.items()
    assert {name.rpartition("/")[2] for name in found.scores} == {
        "image_to_text", "text_to_image", "image_to_text_of_left", "image_to_text_of_right"
    }  # fmt: skip
    data = world.context.data.copy_and_resolve_references()
    data.inputs.text.lower = False
    other = Retrieval(world.urls, caption_list="lines", batch_size=16, examples=0)
    with jax.set_mesh(world.mesh):
        cased = other.prepare("x", changed(world.context, data=data))(world.params)
    for way in ("image_to_text", "text_to_image"):
        assert cased.scores[f"retrieval/x/{way}"].digest == found.scores[f"retrieval/x/{way}"].digest
    units = found.scores["retrieval/x/text_to_image"].unit
    assert len(units) == found.metrics["retrieval/x/captions"] and units.max() < SAMPLES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(caption_list="line"),
            "evals.x.source: the template '{line}' uses the field 'line', .*did you mean 'lines'",
        ),
        (dict(caption_list="kind"), "no list of texts in its field 'kind'.*fields there: .*lines"),
        (dict(by="sides"), "by: no sample of .* has the field 'sides'.*fields there: .*side"),
        (dict(captions=("{lable}",)), "uses the field 'lable'"),
        (dict(urls="none.tar"), "no shard matches 'none.tar'"),
    ],
)
def test_what_is_not_there_is_named(world, fields, message):
    with pytest.raises(DataError, match=message):
        Retrieval(**(dict(urls=world.urls) | fields)).prepare("x", world.context)


def test_fields_that_have_the_names_of_a_samples_parts(world, tmp_path):
    """`captions` as COCO's exports call the list, a class in `key`, a group in `shard`."""
    samples = {}
    for i in range(SAMPLES):
        own = json.loads(held_out(i)["json"])
        fields = dict(captions=own["lines"], key=own["kind"], shard=own["side"], identity="same")
        samples[f"{i:03d}"] = held_out(i) | dict(json=json.dumps(fields).encode())
    urls = str(write_tar(tmp_path / "held_out.tar", samples))
    evaluate = lambda *args, **options: world.evaluate(Retrieval(*args, batch_size=16, examples=0, **options)).metrics
    assert evaluate(urls, caption_list="captions", by="shard") == evaluate(world.urls, caption_list="lines", by="side")
    accuracy = lambda where, field: world.evaluate(ZeroShot(where, label_field=field, batch_size=16))
    assert accuracy(urls, "key").metrics == accuracy(world.urls, "kind").metrics
    with pytest.raises(DataError, match=r"'lines'.*(fields there: captions, identity, key, shard|did you mean)"):
        Retrieval(urls, caption_list="lines").prepare("x", world.context)
