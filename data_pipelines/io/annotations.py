"""Lists of images in one JSON document: Karpathy's splits, COCO's captions, and plain lists or tables of objects.

    {"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "..."}]}]}
    {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "..."}]}
    [{"image_path": "a.jpg", "true_caption": "...", "false_caption": "..."}]      (ARO)
    {"0": {"filename": "a.jpg", "caption": "...", "negative_caption": "..."}}     (SugarCrepe)

Of the first two a row has `image`, the list `sentences`, and what else is known of the image, such as its `split`.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.io.listing import Listing, Row
from data_pipelines.io.storage import Files, parent, printable


class Annotations(Listing):
    """A JSON document, read whole on first use: of 123,287 images of COCO it takes some seconds and 200 MB."""

    def __init__(self, path: str, files: Files, columns: Sequence[str] = ()):
        if columns:
            raise DataError(f"`columns` is for CSV and TSV files without a header, not for {printable(path)}")
        self.path, self.folder, self._files = path, parent(path), files
        stat = files.stat(path)
        self.bytes, self.version = stat.size, stat.version
        self.columns = next((tuple(row) for row in self._rows if isinstance(row, dict)), ())
        if not self.columns:
            raise DataError(f"{printable(path)} holds no objects; expected one for each image")

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
            return _rows(json.loads(self._files.read(self.path, 0, self.bytes, self.version)))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{printable(self.path)} is not JSON of a known layout ({error})") from None


def _rows(document: Any) -> list[Any]:
    if isinstance(document, Mapping) and isinstance(document.get("images"), list):
        images = document["images"]
        return _coco(images, document["annotations"]) if "annotations" in document else list(map(_karpathy, images))
    return list(document.values()) if isinstance(document, Mapping) else list(document)


def _karpathy(image: Mapping[str, Any]) -> dict[str, Any]:
    folder, name = image.get("filepath", ""), image["filename"]
    about = {key: value for key, value in image.items() if isinstance(value, str | int)}
    sentences = [sentence["raw"] for sentence in image["sentences"]]
    return about | dict(image=f"{folder}/{name}" if folder else name, sentences=sentences)


def _coco(images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sentences: dict[Any, list[str]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        sentences[annotation["image_id"]].append(annotation["caption"])
    return [dict(image) | dict(image=image["file_name"], sentences=sentences[image["id"]]) for image in images]
