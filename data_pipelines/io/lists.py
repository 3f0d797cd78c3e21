"""Opens lists of images: CSV, TSV, JSONL, JSON and parquet files, and folders."""

import os
from collections.abc import Sequence

from data_pipelines.errors import DataError
from data_pipelines.io.annotations import Annotations
from data_pipelines.io.folders import Folder
from data_pipelines.io.listing import Listing
from data_pipelines.io.parquet import Parquet
from data_pipelines.io.storage import Files, printable
from data_pipelines.io.text_lists import Csv, JsonLines

_LINES: dict[str, type[Listing]] = {".csv": Csv, ".tsv": Csv, ".txt": Csv, ".jsonl": JsonLines, ".ndjson": JsonLines}
_PARQUET = (".parquet", ".pq")
_JSON = ".json"
EXTENSIONS = (*_LINES, *_PARQUET, _JSON)


def open_list(path: str, files: Files, columns: Sequence[str] = (), extensions: Sequence[str] = ()) -> Listing:
    """Opens a list by its extension, or a folder.

    Args:
        path: path or url of a .csv, .tsv, .txt, .jsonl, .json or .parquet file, or path of a folder.
        files: reads it.
        columns: names of the columns of a CSV or TSV file that has no header.
        extensions: of the files of a folder that are samples.

    Raises:
        DataError: the kind of the file is not known, or its head cannot be read.
    """
    if os.path.isdir(path):
        return Folder(path, extensions)
    extension = os.path.splitext(printable(path))[1].lower()
    if extension in _PARQUET:
        return Parquet(path, files)
    if extension == _JSON:
        return Annotations(path, files, columns)
    if extension not in _LINES:
        raise DataError(
            f"{printable(path)} is neither a folder nor a list: .csv, .tsv, .txt, .jsonl, .json or .parquet"
        )
    return _LINES[extension](path, files, columns)
