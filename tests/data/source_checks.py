"""Opens sources and reads them whole."""

from typing import Any

from data_pipelines.io.storage import Files
from data_pipelines.samples import Sample
from data_pipelines.sources import SOURCES, Source
from data_pipelines.sources.base import read_spec
from data_pipelines.text.captions import Captions
from xmodal.configs.base import get_config


def open_it(files: Files, every_field: bool = False, images: bool = True, **entry: Any) -> Source:
    """Returns the source of an entry of `data.sources`."""
    cls = SOURCES[entry.get("type", "tar")]
    spec = read_spec(cls.Spec, entry, "data.sources.main")
    text = get_config().data.text
    text.templates = spec.templates or ()
    captions = Captions(text, spec.group_key or "", keep=spec.filter, always_json=every_field, images=images)
    return cls("main", spec, captions, files)


def read_whole(source: Source, target: int) -> list[Sample]:
    """Returns all samples in order; each block holds as many as it says, and no more bytes than it may."""
    blocks = source.blocks(target)
    samples = []
    for i in range(len(blocks)):
        part = source.read(blocks, i)
        assert len(part) == blocks.count[i] > 0
        samples.extend(part)
    assert len(samples) == source.samples
    return samples
