"""Lists of images in one JSON document: Karpathy's splits, COCO's captions, and plain lists or tables of objects.

    {"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "..."}]}]}
    {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "..."}]}
    [{"image_path": "a.jpg", "true_caption": "...", "false_caption": "..."}]      (ARO)
    {"0": {"filename": "a.jpg", "caption": "...", "negative_caption": "..."}}     (SugarCrepe)

Of the first two a row has `image`, the list `sentences`, and what else is known of the image, such as its `split`.
"""

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.io import encodings
from data_pipelines.io.listing import CAPTION_COLUMNS, IMAGE_COLUMNS, Listing, Row, check_columns
from data_pipelines.io.storage import Files, parent, printable

_log = logging.getLogger(__name__)

_SNIFFED = 2**16  # bytes at the start that tell the encoding


class Annotations(Listing):
    """A JSON document, read whole on first use: of 123,287 images of COCO it takes some seconds and 200 MB."""

    def __init__(self, path: str, files: Files, columns: Sequence[str] = ()):
        if columns:
            raise DataError(f"`columns` is for CSV and TSV files without a header, not for {printable(path)}")
        self.path, self.folder, self._files = path, parent(path), files
        stat = files.stat(path)
        self.bytes, self.version = stat.size, stat.version
        rows = (row for row in self._rows if isinstance(row, dict))
        self.columns = tuple(dict.fromkeys(name for row in rows for name in row))
        if not self.columns:
            raise DataError(f"{printable(path)} holds no objects; expected one for each image")
        check_columns(path, self.columns)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        for number in range(len(self._rows)):
            yield self._of(number)
            self.share = (number + 1) / len(self._rows)

    def read(self, start: int, end: int) -> list[Row]:
        """See `Listing`."""
        return [self._of(number) for number in range(start, end)]

    def _of(self, number: int) -> Row:
        fields = self._rows[number]
        return self._row(number, fields) if isinstance(fields, dict) else Row(number, problem="bad json")

    @functools.cached_property
    def _rows(self) -> list[Any]:
        try:
            content = bytes(self._files.read(self.path, 0, self.bytes, self.version))
            encodings.check_utf8(self.path, content[:_SNIFFED])
            return _rows(_document(content), self.path)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{printable(self.path)} is not JSON of a known layout ({error})") from None


def _document(content: bytes) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        first, _, more = content.strip().partition(b"\n")
        try:  # a json object a line, under the name of one document
            return [json.loads(first), *map(json.loads, filter(bytes.strip, more.split(b"\n")))]
        except ValueError:
            raise error from None


def _rows(document: Any, path: str) -> list[Any]:
    if isinstance(document, Mapping) and isinstance(document.get("images"), list):
        images = document["images"]
        if "annotations" in document:
            return _coco(images, document["annotations"], path)
        return list(map(_karpathy, images))
    if not isinstance(document, Mapping | list):
        raise DataError(f"{printable(path)} is a JSON document without rows; expected an object for each image")
    if isinstance(document, Mapping) and _by_columns(document):
        return [{name: column[row] for name, column in document.items()} for row in next(iter(document.values()))]
    return list(document.values()) if isinstance(document, Mapping) else list(document)


def _by_columns(document: Mapping[str, Any]) -> bool:
    """Whether a table is written column by column, as pandas does: {"image": {"0": "a.jpg"}, "caption": {"0": ...}}."""
    columns = list(document.values())
    known = {*IMAGE_COLUMNS, *CAPTION_COLUMNS}.intersection(map(str.lower, document))
    return bool(known) and all(isinstance(c, Mapping) and c.keys() == columns[0].keys() for c in columns)


def _karpathy(image: Mapping[str, Any]) -> dict[str, Any]:
    folder, name = image.get("filepath", ""), image["filename"]
    about = {key: value for key, value in image.items() if isinstance(value, str | int)}
    sentences = [sentence["raw"] for sentence in image["sentences"]]
    return about | dict(image=f"{folder}/{name}" if folder else name, sentences=sentences)


def _coco(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], path: str
) -> list[dict[str, Any]]:
    sentences: dict[Any, list[str]] = {image["id"]: [] for image in images}
    if annotations and not any("caption" in annotation for annotation in annotations):
        raise DataError(
            f"the annotations of {printable(path)} have no `caption` ({', '.join(annotations[0])}): these are boxes or "
            "the like; COCO's captions are in captions_*.json"
        )
    strangers = 0
    for annotation in annotations:
        of_image = sentences.get(annotation["image_id"])
        if of_image is None:  # the images are a subset of those that were annotated
            strangers += 1
        else:
            of_image.append(annotation["caption"])
    if strangers:
        _log.info("%s: %d annotations are of images that it does not list", printable(path), strangers)
    return [dict(image) | dict(image=image["file_name"], sentences=sentences[image["id"]]) for image in images]
