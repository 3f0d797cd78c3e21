"""NaFlex: grids and pixels as the reference's processor; the stream's lengths come from seed and position alone."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_inputs import LooseImage, make_image
from tiny_shards import FORMATS, encode, write_tar

from data_pipelines.errors import DataError
from data_pipelines.images import naflex
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import Options, training_image
from data_pipelines.images.device import preprocess_images, preprocess_patches
from data_pipelines.images.naflex import grid_for, pack, unpack
from data_pipelines.io.paths import REPOSITORY
from data_pipelines.modalities import inputs_of
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import Tokenizer

GOLDEN = REPOSITORY / "tests" / "golden"
SIZES = ((24, 20), (60, 15), (9, 40), (32, 32), (7, 5))  # width, height
PATCH, LENGTHS = 4, (6, 12, 20)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "siglip2_preprocessing.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def odd_shards(tmp_path_factory):
    """96 images of five shapes and three formats."""
    folder = tmp_path_factory.mktemp("odd")
    for shard, extension in enumerate(FORMATS):
        numbers = range(32 * shard, 32 * shard + 32)
        members = lambda i: {extension: image(i, extension), "txt": f"thing {i}".encode()}  # noqa: B023 (used at once)
        write_tar(folder / f"o-{shard}.tar", {f"{i:04d}": members(i) for i in numbers})
    return folder


def image(i: int, extension: str) -> bytes:
    return encode(i, extension, SIZES[i % len(SIZES)])


@pytest.fixture
def packed(config, odd_shards):
    """The `data` section for packed patches."""
    config.sources.main.urls = str(odd_shards / "o-{0..2}.tar")
    config.inputs.image.crop = "whole"
    config.inputs.image.naflex = dict(lengths=LENGTHS, patch_size=PATCH, length=12)
    return config


def take(config, batches: int, **kwargs) -> list[dict[str, np.ndarray]]:
    with open_stream(config, **(dict(batch_size=8, seed=3) | kwargs)) as stream:
        return [next(stream) for _ in range(batches)]


def assert_equal(a: list[dict], b: list[dict]) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# ---------------------------------------------------------------------------------------------- against the reference


def test_grids_are_those_of_the_reference(golden):
    for (height, width), (patch, room), fit in zip(golden["sizes"], golden["rooms"], golden["fits"]):
        found = grid_for(int(height), int(width), int(patch), int(room))
        assert [n * patch for n in found] == fit.tolist(), (height, width, patch, room)


def test_pixels_are_those_of_the_reference(golden):
    with np.load(GOLDEN / "preprocessing.npz") as file:
        data, ends = file["files"].tobytes(), file["ends"]
    count = len(golden["grids"])
    room = golden["patches"].shape[1]
    image = make_image(crop="whole", filter="bilinear", naflex=dict(lengths=(room,), patch_size=PATCH))
    batch = image.empty(count)
    for place, (start, end) in enumerate(list(zip([0, *ends], ends))[:count]):
        image.evaluate(data[start:end], batch, place)
    np.testing.assert_array_equal(batch["image_grid"], golden["grids"])
    assert len(np.unique(golden["grids"], axis=0)) >= 15
    error = np.abs(batch["image"].astype(float) - golden["patches"])
    assert error.max() <= 1 and error.mean() < 0.03


# ---------------------------------------------------------------------------------------------- packing


def test_packing_and_back():
    pixels = np.random.default_rng(0).integers(1, 256, (8, 12, 3), dtype=np.uint8)
    out = np.full((9, 3 * PATCH**2), 7, np.uint8)
    grid = pack(pixels, PATCH, out)
    assert grid == (2, 3) and not out[6:].any() and out[:6].all()
    np.testing.assert_array_equal(out[4].reshape(PATCH, PATCH, 3), pixels[4:8, 4:8])  # second row, second column
    np.testing.assert_array_equal(unpack(out, grid, PATCH), pixels)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_turned_photographs_are_fitted_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer, asked = io.BytesIO(), []
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 90, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    shape = lambda *sides: asked.append(sides) or (sides[0] // 2, sides[1] // 2)
    found = training_image(buffer.getvalue(), shape, lambda height, width: Box(0, 0, height, width), Options(exif=True))
    upright = (40, 90) if orientation == 1 else (90, 40)
    assert asked == [upright] and found.shape == (upright[0] // 2, upright[1] // 2, 3)


# ---------------------------------------------------------------------------------------------- the stream


def test_batches_hold_whole_images_at_their_own_shape(packed):
    tokenizer = Tokenizer.load(packed.inputs.text.tokenizer)
    extensions, grids = tuple(FORMATS), set()
    for batch in take(packed, 6):
        rows, room, width = batch["image"].shape
        assert rows == 8 and room in LENGTHS and width == 3 * PATCH**2 and batch["image_grid"].dtype == np.int32
        for ids, patches, grid in zip(batch["text"], batch["image"], batch["image_grid"]):
            number = int(tokenizer.decode(ids).removeprefix("thing "))
            width, height = SIZES[number % len(SIZES)]
            assert tuple(grid) == grid_for(height, width, PATCH, room) and np.prod(grid) <= room
            shape, data = tuple(PATCH * grid), image(number, extensions[number // 32])
            whole = training_image(data, lambda *_, shape=shape: shape, lambda h, w: Box(0, 0, h, w))
            np.testing.assert_array_equal(unpack(patches, grid, PATCH), whole)
            assert not patches[np.prod(grid) :].any()
            grids.add((room, *grid))
    assert len(grids) >= 8


def test_the_room_of_a_batch_comes_from_seed_and_position_alone(packed):
    packing = inputs_of(packed)["image"].packing
    rooms = [batch["image"].shape[1] for batch in take(packed, 12)]
    assert rooms == [packing.draw(8 * step, 3, "naflex") for step in range(12)] and len(set(rooms)) == 3
    assert rooms != [packing.draw(8 * step, 4, "naflex") for step in range(12)]
    packed.inputs.image.naflex.weights = (1.0, 2.0, 5.0)
    packing = inputs_of(packed)["image"].packing
    drawn = np.array([packing.draw(first, 0, "naflex") for first in range(4000)])
    shares = [(drawn == length).mean() for length in LENGTHS]
    np.testing.assert_allclose(shares, (0.125, 0.25, 0.625), atol=0.03)


def test_the_order_does_not_depend_on_it(packed):
    with_patches = take(packed, 4)
    packed.inputs.image.update(crop="squash", naflex=dict(lengths=()))
    for a, b in zip(with_patches, take(packed, 4)):
        for name in ("text", "key_id", "caption_id"):
            np.testing.assert_array_equal(a[name], b[name])


def test_a_resumed_stream_gives_the_same_batches(packed):
    straight = take(packed, 8)
    packed.threads, packed.prefetch = 3, 0
    assert_equal(straight[3:], take(packed, 5, position=24))


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_gives_the_same_global_batches(packed, hosts):
    parts = [take(packed, 4, shard=(host, hosts)) for host in range(hosts)]
    whole = [{name: np.concatenate([part[name] for part in rows]) for name in rows[0]} for rows in zip(*parts)]
    assert_equal(take(packed, 4), whole)


def test_random_crops_keep_their_own_shape(packed):
    packed.inputs.image.update(crop="random_resized", scale=(0.3, 1.0), ratio=(0.25, 4.0))
    grids = np.concatenate([batch["image_grid"] for batch in take(packed, 4)])
    assert len(np.unique(grids, axis=0)) > 8
    packed.inputs.text.buckets = (4,)  # together with batches of one length of text
    assert {batch["text"].shape[1] for batch in take(packed, 2)} <= {4, packed.inputs.text.length}


def test_transforms_see_the_image_before_it_is_cut(packed, tmp_path, monkeypatch):
    (tmp_path / "my_shapes.py").write_text(
        "def mark(pixels, uniform):\n    assert pixels.ndim == 3\n    pixels[0] = 255\n    return pixels\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    packed.inputs.image.transform = "my_shapes:mark"
    (batch,) = take(packed, 1)
    for patches, grid in zip(batch["image"], batch["image_grid"]):
        pixels = unpack(patches, grid, PATCH)
        assert (pixels[0] == 255).all() and not (pixels[1:] == 255).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(crop="center"), "crop is 'center', which makes squares"),
        (dict(crop="squash"), "choose one of .*'whole'"),
        (dict(policy="randaugment"), "policy='randaugment' needs square images of one size"),
        (dict(mixup=0.2), "mixup=0.2 needs square images"),
        (dict(cutmix=1.0), "cutmix=1.0 needs square images"),
        (dict(blur=0.5), "blur=0.5 needs square images"),
        (dict(erase=0.5), "erase=0.5 needs square images"),
        (dict(naflex=dict(lengths=(12, 6))), r"naflex.lengths is \(12, 6\); expected rising"),
        (dict(naflex=dict(lengths=(0, 6))), "expected rising numbers of patches from 1"),
        (dict(naflex=dict(weights=(1.0,))), r"weights is \(1.0,\); expected a number above 0 for each of the 3"),
        (dict(naflex=dict(patch_size=0)), "patch_size=0"),
        (dict(naflex=dict(lengths=())), "crop='whole' keeps the shape of images, which needs data.inputs.image.naflex"),
    ],
)
def test_what_needs_squares_or_cannot_be_drawn_is_refused(packed, changes, message):
    packed.inputs.image.update(changes)
    with pytest.raises(DataError, match=message):
        take(packed, 1)


def test_held_out_images_have_one_room(packed):
    held_out = EvalSet(packed.sources.main.urls, packed)
    assert len(held_out) == 96
    batches = list(held_out.batches(40))
    assert {batch["image"].shape for batch in batches} == {(40, 12, 3 * PATCH**2)}
    last = batches[-1]
    assert (last["image_grid"][~last["valid"]] == 1).all() and not last["image"][~last["valid"]].any()
    numbers = [int(record.captions[0].removeprefix("thing ")) for record in held_out.records]
    expected = [grid_for(*SIZES[n % len(SIZES)][::-1], PATCH, 12) for n in numbers]
    found = np.concatenate([batch["image_grid"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(found, expected)
    parts = [list(held_out.batches(40, shard=(i, 2))) for i in range(2)]
    assert_equal(batches, [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*parts)])


# ---------------------------------------------------------------------------------------------- on the device


@pytest.mark.parametrize("changes", [{}, dict(flip=True), dict(jitter=0.5, grey=0.5, solarize=0.5)])
def test_patches_are_changed_as_squares_are(changes):
    spec = LooseImage()
    spec.update(**changes)
    pixels = np.random.default_rng(2).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(5), 6)
    expected = np.asarray(preprocess_images(pixels, keys, spec))

    spec.update(crop="whole", naflex=dict(lengths=(9,), patch_size=PATCH))
    patches = np.empty((6, 9, 3 * PATCH**2), np.uint8)
    grid = np.array([pack(image, PATCH, out) for image, out in zip(pixels, patches)], np.int32)
    run = jax.jit(lambda p, g: preprocess_patches(p, g, keys, spec))
    found = np.asarray(run(patches, grid))
    for row, wanted in zip(found, expected):
        np.testing.assert_allclose(unpack(row, (2, 3), PATCH), wanted, atol=2e-6)
    assert changes == {} or not np.allclose(expected, preprocess_images(pixels, None, spec), atol=0.1)
    assert not found[:, 6:].any()
    patches[:, 6:] = 200  # what padding holds changes nothing
    np.testing.assert_array_equal(run(patches, grid), found)


def test_every_shape_is_mirrored_within_its_own_grid():
    spec = LooseImage()
    spec.update(crop="whole", flip=True, mean=(0.0,) * 3, std=(1.0,) * 3, naflex=dict(lengths=(12,), patch_size=2))
    rng = np.random.default_rng(3)
    shapes = [(down, across) for down in range(1, 5) for across in range(1, 12 // down + 1)]
    images = [rng.integers(0, 256, (2 * down, 2 * across, 3), dtype=np.uint8) for down, across in shapes]
    patches = np.empty((len(images), 12, 12), np.uint8)
    grid = np.array([pack(image, 2, out) for image, out in zip(images, patches)], np.int32)
    keys = jax.random.split(jax.random.key(0), len(images))
    found = np.asarray(preprocess_patches(patches, grid, keys, spec))
    mirrored = 0
    for row, shape, pixels in zip(found, grid, images):
        shown = np.round(255 * unpack(row, shape, 2)).astype(np.uint8)
        mirrored += np.array_equal(shown, pixels[:, ::-1])
        assert np.array_equal(shown, pixels) or np.array_equal(shown, pixels[:, ::-1])
    assert 5 < mirrored < len(images) - 5


def test_the_options_are_complete_in_the_base():
    """Every option that only squares can have is named there by its neutral value."""
    image = make_image().entry()
    assert {name: image[name] for name in naflex._SQUARE} == naflex._SQUARE
    assert json.loads(json.dumps(image["naflex"]))["lengths"] == []
