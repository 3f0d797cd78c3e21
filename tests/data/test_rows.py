"""The memory of batches: given out again when nothing refers to it any more, and never before."""

import gc
import threading

import jax
import numpy as np
import pytest
from tiny_shards import encode

from data_pipelines.images.augment import Box
from data_pipelines.images.decode import Options, training_image
from data_pipelines.rows import Images

ROWS, SIZE = 4, 16


@pytest.fixture
def images():
    return Images(ROWS, SIZE)


def test_memory_is_given_out_again(images):
    first = images.empty()
    place = first.ctypes.data
    assert place % 64 == 0 and first.shape == (ROWS, SIZE, SIZE, 3) and first.flags.writeable
    second = images.empty()
    assert second.ctypes.data != place
    del first
    assert images.empty().ctypes.data == place


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array[1:3, ::2],
        lambda array: array[0].reshape(-1)[5:],
        lambda array: array.view(np.int8).T,
        lambda array: memoryview(array),
        lambda array: np.asarray(memoryview(array[2])),
        lambda array: jax.dlpack.from_dlpack(array),
        lambda array: jax.device_put(array),
        lambda array: jax.device_put(array, may_alias=True)[1],
        lambda array: jax.make_array_from_process_local_data(
            jax.sharding.SingleDeviceSharding(jax.devices()[0]), array
        ),
        lambda array: jax.make_array_from_process_local_data(
            jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data")), array
        ),
    ],
)
def test_whatever_shows_a_batch_keeps_its_memory(images, keep):
    array = images.empty()
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape)
    kept = keep(array)
    expected = np.array(kept)
    del array
    gc.collect()
    others = [images.empty() for _ in range(3)]
    for other in others:
        other[:] = 0
    np.testing.assert_array_equal(np.array(kept), expected)


def test_memory_returns_from_other_threads_and_outlives_its_owner(images):
    array = [images.empty()]
    place = array[0].ctypes.data
    thread = threading.Thread(target=array.clear)
    thread.start()
    thread.join()
    again = images.empty()
    assert again.ctypes.data == place
    del images
    again[:] = 7
    assert (again == 7).all()


def test_images_are_decoded_into_the_batch(images):
    whole = lambda height, width: Box(0, 0, height, width)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: a quarter turn
    batch = images.empty()
    cases = [
        (encode(1, "jpg", size=(40, 30)), Options()),
        (encode(2, "png", size=(SIZE, SIZE)), Options()),  # not resized
        (encode(3, "jpg", size=(40, 30), exif=exif), Options(exif=True)),
        (encode(4, "jpg", size=(SIZE, SIZE), exif=exif), Options(exif=True)),
    ]
    for row, (data, options) in zip(batch, cases, strict=True):
        row[:] = 255
        assert training_image(data, SIZE, whole, options, row) is row
        np.testing.assert_array_equal(row, training_image(data, SIZE, whole, options))
    upright, turned = (training_image(cases[2][0], SIZE, whole, Options(exif=exif)) for exif in (False, True))
    assert not np.array_equal(upright, turned)
