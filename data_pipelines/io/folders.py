"""Folders of images, with texts and fields in files beside them."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.errors import DataError
from data_pipelines.io.listing import Listing, Row
from data_pipelines.samples import IMAGE_EXTENSIONS

_LARGEST_TEXT = 4 * 2**20  # bytes of a text or json file beside an image


class Folder(Listing):
    """The images of a folder and of its folders.

    Fields: those of a .json file of the same name, and `label`, the folder that the image lies in, and `file`, its
    path below the list's folder. The caption is in a .txt file of the same name.
    """

    def __init__(self, path: str):
        self.path = self.folder = path
        self.columns = ("label", "file")
        names = sorted(_images(path))
        self._names = "\0".join(names).encode("utf-8", "surrogateescape")
        self._ends = array("q", _ends(names))
        self.bytes = len(self._names)
        if not names:
            tars = any(name.endswith(".tar") for name in os.listdir(path))
            hint = f"; the tar shards there are named by {os.path.join(path, '*.tar')!r}" if tars else ""
            raise DataError(f"no images ({', '.join(IMAGE_EXTENSIONS)}) in {path}{hint}")

    def use(self, image: str, caption: str, fields: Sequence[str] | None, images: bool = True) -> None:
        """See `Listing`."""
        if image or caption:
            raise DataError(f"`image` and `caption` name columns of lists, and {self.path} is a folder")

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        for number in range(len(self._ends)):
            yield self._of(number)
            self.share = (number + 1) / len(self._ends)

    def read(self, start: int, end: int) -> list[Row]:
        """See `Listing`."""
        return [self._of(number) for number in range(start, end)]

    def name(self, row: Row) -> str:
        """See `Listing`."""
        return row.fields["file"]

    def _of(self, number: int) -> Row:
        start = self._ends[number - 1] + 1 if number else 0
        name = self._names[start : self._ends[number]].decode("utf-8", "surrogateescape")
        place = dict(label=os.path.basename(os.path.dirname(name)), file=name)
        stem, problem, fields = os.path.splitext(os.path.join(self.path, name))[0], "", {}
        try:
            text, record = (_beside(stem + extension) for extension in (".txt", ".json"))
            fields = {} if record is None else json.loads(record)
        except UnicodeDecodeError:
            problem, text = "bad text", None
        except (ValueError, RecursionError):
            problem = "bad json"
        if not isinstance(fields, dict):
            problem, fields = "bad json", {}
        return Row(number, name, -1, text, {**fields, **place}, problem)


def _images(root: str) -> Iterator[str]:
    """Yields the images below a folder by their relative paths; hidden files and folders do not count."""
    seen = {os.path.realpath(root)}
    for folder, inner, names in os.walk(root, followlinks=True):
        # Links are followed, as data sets are often linked together, but never into a circle.
        new = {name: os.path.realpath(os.path.join(folder, name)) for name in inner if not name.startswith(".")}
        inner[:] = sorted(name for name, real in new.items() if real not in seen)
        seen.update(new.values())
        for name in names:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _ends(names: Iterable[str]) -> Iterator[int]:
    end = -1
    for name in names:
        end += len(name.encode("utf-8", "surrogateescape")) + 1
        yield end


def _beside(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_TEXT).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return None
