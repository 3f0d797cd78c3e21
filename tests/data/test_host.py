"""The memory of batches and blocks: given out again when nothing refers to it any more, and never before."""

import gc
import pickle
import threading

import jax
import numpy as np
import pytest

from data_pipelines.host import Memory

SHAPE = (4, 16, 16, 3)


class Images(Memory):
    def __call__(self) -> np.ndarray:
        return self.empty(int(np.prod(SHAPE))).reshape(SHAPE)


@pytest.fixture
def images():
    return Images()


def test_memory_is_given_out_again(images):
    first = images()
    place = first.ctypes.data
    assert place % 64 == 0 and first.shape == SHAPE and first.flags.writeable
    second = images()
    assert second.ctypes.data != place
    del first
    assert images().ctypes.data == place


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
    array = images()
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape)
    kept = keep(array)
    expected = np.array(kept)
    del array
    gc.collect(1)  # what is new; to look at all that the tests before it hold takes seconds
    others = [images() for _ in range(3)]
    for other in others:
        other[:] = 0
    np.testing.assert_array_equal(np.array(kept), expected)


def test_memory_returns_from_other_threads_and_outlives_its_owner(images):
    array = [images()]
    place = array[0].ctypes.data
    thread = threading.Thread(target=array.clear)
    thread.start()
    thread.join()
    again = images()
    assert again.ctypes.data == place
    del images
    again[:] = 7
    assert (again == 7).all()


def test_memory_of_about_the_size_serves_and_other_memory_does_not_pile_up():
    memory = Memory()
    kept = [memory.empty(size) for size in (1000, 1000, 5000)]
    places = [array.ctypes.data for array in kept]
    kept.clear()
    array = memory.empty(900)
    assert array.ctypes.data in places[:2] and len(array) == 900
    found = memory.empty(2500)
    assert found.ctypes.data == places[2] and found.base.obj.size == 5000
    huge = memory.empty(10**6)  # nothing fits: the last one is dropped
    assert huge.ctypes.data not in places
    assert len(memory._free) == 0


def test_a_pickled_memory_is_another_one(images):
    array = images()
    place = array.ctypes.data
    other = pickle.loads(pickle.dumps(images))
    del array
    assert other.empty(100).ctypes.data != place
