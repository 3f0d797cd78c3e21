"""Opens sources and reads them whole."""

from typing import Any

from tiny_inputs import make_inputs

from data_pipelines.io.storage import Files
from data_pipelines.rules import Rules
from data_pipelines.samples import Sample
from data_pipelines.sources import SOURCES, Source, inputs_here
from data_pipelines.specs import read_spec


def open_it(files: Files, every_field: bool = False, images: bool = True, **entry: Any) -> Source:
    """Returns the source of an entry of `data.sources`."""
    cls = SOURCES[entry.get("type", "tar")]
    spec = read_spec(cls.Spec, entry, "data.sources.main")
    inputs = inputs_here(make_inputs(images=images), spec, "data.sources.main")
    return cls("main", spec, Rules(inputs, spec.group_key or "", keep=spec.filter, every_field=every_field), files)


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
