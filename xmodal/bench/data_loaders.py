"""The loaders that `bench data` compares. Each is a generator of batches of training samples, without end.

Closing a generator ends its threads and processes.
"""

import dataclasses
import importlib.util
import io
import itertools
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from PIL import Image

from data_pipelines import rng
from data_pipelines.images import augment

_SIZE = 224  # pixels
_SCALE, _RATIO = (0.9, 1.0), (0.75, 4 / 3)  # of all random crops: open_clip's defaults, and ours
_ROWS = 16  # that a thread decodes at a time
_SHUFFLE = 256  # samples in the buffers of webdataset and open_clip: few, so that they are full when timing starts


@dataclass(frozen=True)
class Job:
    """What to read, and with what.

    Attributes:
        shards: paths of the shards.
        tokenizer: path of a `tokenizer.json`.
        workers: threads, or processes where a loader works with those.
        batch: samples of a batch.
    """

    shards: tuple[str, ...]
    tokenizer: str
    workers: int
    batch: int


def raw_decoder(job: Job) -> Iterator[None]:
    """Our decoder alone, on images in memory, in as many threads: what the stream cannot do without."""
    from data_pipelines.images.decode import training_image

    images = []
    for shard in job.shards:
        with tarfile.open(shard) as tar:
            images += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    uniform = rng.uniform(rng.row_words(0, len(images), augment.WORDS, "bench"))

    def decode(rows: range) -> None:
        for row in rows:
            crop = lambda h, w, u=uniform[row]: augment.random_resized(h, w, u, _SCALE, _RATIO)
            training_image(images[row], _SIZE, crop)

    rows = range(len(images) // job.batch * job.batch)
    cut = lambda rows, size: [rows[i : i + size] for i in range(0, len(rows), size)]
    batches, running = itertools.cycle(cut(batch, _ROWS) for batch in cut(rows, job.batch)), deque()
    with ThreadPoolExecutor(job.workers) as pool:
        while True:
            while len(running) < 2:  # no thread waits for the end of a batch
                running.append([pool.submit(decode, part) for part in next(batches)])
            for done in running.popleft():
                done.result()
            yield


def our_stream(job: Job) -> Iterator[None]:
    """Our stream as a training run opens it, in threads."""
    from data_pipelines.stream.stream import open_stream
    from xmodal.configs.base import get_config

    config = get_config().data
    config.sources.bench = dict(urls=job.shards)
    image = dict(type="image", size=_SIZE, crop="random_resized", scale=_SCALE, ratio=_RATIO)
    config.inputs = dict(image=image, text=dict(type="text", tokenizer=job.tokenizer))
    config.threads = job.workers
    with open_stream(config, batch_size=job.batch, seed=0) as stream:
        for _ in stream:
            yield


def webdataset(job: Job) -> Iterator[None]:
    """The webdataset library with Pillow, to uint8, without tokens; in processes where torch is there to run them."""
    import webdataset as wds

    dataset = wds.DataPipeline(
        wds.SimpleShardList(list(job.shards)),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(_SHUFFLE, initial=_SHUFFLE),
        wds.to_tuple("jpg", "txt"),
        wds.map_tuple(_pillow_crop, bytes.decode),
        wds.batched(job.batch, partial=False),
    ).repeat()
    if importlib.util.find_spec("torch"):
        dataset = wds.WebLoader(dataset, batch_size=None, num_workers=job.workers)
    for _ in dataset:
        yield


def open_clip(job: Job) -> Iterator[None]:
    """open_clip's own data set, transform, tokenizer and loader, put together as its trainer does, in processes."""
    import open_clip as clip
    from open_clip_train import data

    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = _SHUFFLE
    args = SimpleNamespace(
        train_data="::".join(job.shards),
        train_num_samples=10**9,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=job.batch,
        workers=job.workers,
        world_size=1,
    )
    transform, tokenizer = clip.image_transform(_SIZE, is_train=True), clip.get_tokenizer("ViT-B-32")
    for _ in data.get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer).dataloader:
        yield


# Name in the table -> loader, and the modules it needs that we do not require.
LOADERS: dict[str, tuple[Callable[[Job], Iterator[None]], tuple[str, ...]]] = {
    "raw decoder": (raw_decoder, ()),
    "raw decoder, 1 thread": (lambda job: raw_decoder(dataclasses.replace(job, workers=1)), ()),
    "our stream": (our_stream, ()),
    "webdataset + Pillow": (webdataset, ("webdataset",)),
    "open_clip": (open_clip, ("open_clip", "open_clip_train", "torch", "webdataset", "pandas")),
}


def missing(name: str) -> list[str]:
    """Returns the modules that a loader lacks here."""
    return [module for module in LOADERS[name][1] if importlib.util.find_spec(module) is None]


def _pillow_crop(data: bytes) -> np.ndarray:
    """A random crop of an encoded image by Pillow's bicubic filter; uint8 [_SIZE, _SIZE, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
    top, left, height, width = augment.random_resized(
        image.height, image.width, np.random.random(augment.WORDS), _SCALE, _RATIO
    )
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, box))
