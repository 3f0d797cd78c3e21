"""A small data set as tensorflow-datasets writes it, made without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from tiny_shards import encode


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Forty images with texts, lists and labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(
            image=tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            caption=tfds.features.Text(),
            captions=tfds.features.Sequence(dict(text=tfds.features.Text(), score=np.float32)),
            label=tfds.features.ClassLabel(names=["cat", "dog"]),
            number=np.int64,
            box=tfds.features.BBoxFeature(),
        )
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return dict(train=self._generate_examples(40))

    def _generate_examples(self, count):
        for i in range(count):
            captions = [dict(text=f"one {i}", score=0.5), dict(text="two", score=0.1)]
            box = tfds.features.BBox(0.0, 0.0, 0.5, 1.0)
            text = "" if i == 7 else f"thing {i}"
            image = io.BytesIO(encode(i))
            yield i, dict(image=image, caption=text, captions=captions, label=i % 2, number=i, box=box)


def make(folder) -> str:
    """Prepares the data set below `folder`; returns the folder that it is in."""
    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return str(builder.data_dir)
