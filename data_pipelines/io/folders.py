"""Folders of images, with texts and fields in files beside them."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_pipelines.errors import DataError
from data_pipelines.io.listing import Listing, Row, Wanted

_LARGEST_TEXT = 4 * 2**20  # bytes of a text or json file beside an image


class Folder(Listing):
    """The files of one kind of a folder and of its folders.

    Fields: those of a .json file of the same name, and `label`, the folder that the file lies in, and `file`, its
    path below the list's folder. The caption is in a .txt file of the same name.

    Args:
        path: of the folder.
        extensions: of the files.
    """

    def __init__(self, path: str, extensions: Sequence[str]):
        self.path = self.folder = path
        self.columns = ("label", "file")
        names = sorted(_files(path, extensions))
        self._names = "\0".join(names).encode("utf-8", "surrogateescape")
        self._ends = array("q", _ends(names))
        self.bytes = len(self._names)
        if not names:
            tars = any(name.endswith(".tar") for name in os.listdir(path))
            hint = f"; the tar shards there are named by {os.path.join(path, '*.tar')!r}" if tars else ""
            raise DataError(f"no files ({', '.join(extensions)}) in {path}{hint}")

    def use(self, parts: Mapping[str, Wanted], texts: Mapping[str, Wanted], fields: Sequence[str] | None) -> None:
        """See `Listing`: the files are those of the first input, the texts those beside them."""
        named = [wanted for wanted in (*parts.values(), *texts.values()) if wanted.column]
        if named:
            raise DataError(f"`{named[0].option}` names a column of lists, and {self.path} is a folder")
        if len(parts) > 1 or len(texts) > 1:
            raise DataError(f"{self.path} is a folder, which holds one file and one text a sample: use a list instead")
        self._parts, self._texts = dict.fromkeys(parts, "file"), dict.fromkeys(texts, "")

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
        parts, texts = dict.fromkeys(self._parts, name), dict.fromkeys(self._texts, text)
        return Row(number, parts, {}, texts, {**fields, **place}, problem)


def _files(root: str, extensions: Sequence[str]) -> Iterator[str]:
    """Yields the files below a folder by their relative paths; hidden files and folders do not count."""
    seen = {os.path.realpath(root)}
    for folder, inner, names in os.walk(root, followlinks=True):
        # Links are followed, as data sets are often linked together, but never into a circle.
        new = {name: os.path.realpath(os.path.join(folder, name)) for name in inner if not name.startswith(".")}
        inner[:] = sorted(name for name, real in new.items() if real not in seen)
        seen.update(new.values())
        for name in names:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in extensions:
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
