"""What a batch holds: a table for the terminal, and its rows as a page."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from data_pipelines.modalities import Inputs
from data_pipelines.stream.contents import Content
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import say
from xmodal.reporting.page import document, table
from xmodal.reporting.summary import print_table


def print_batch(found: Sequence[Content]) -> None:
    """Prints the arrays of a batch: name, shape, type and the section of the config that makes it."""
    shape = lambda content: " x ".join(map(str, content.spec.shape))
    rows = [[content.name, shape(content), np.dtype(content.spec.dtype).name, content.maker] for content in found]
    print_table("batch", ["array", "shape", "type", "from"], rows)


def batch_page(title: str, inputs: Inputs, batch: Mapping[str, np.ndarray], rows: Iterable[int]) -> str:
    """Returns a page that shows rows of a host batch, a column for each input."""
    # A modality escapes what it shows: see `Modality.show`.
    shown = [[row, *(Markup(modality.show(batch, row)) for modality in inputs.values())] for row in rows]
    header = el("header", el("p", say("xmodal data"), class_="eyebrow"), el("h1", title))
    content = table([say("row"), *inputs], shown)
    return document(title, header, [(say("Batch"), content)], say("The first rows of the first batch."))
