"""Small files of the run folder: written whole or not at all, read back with clear errors."""

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = "It may not be written (any more): look at the owner and the permissions (ls -ld, lsattr)"
_DEVICE = "The disk or its server has failed: look at its messages (dmesg) and at the connection"
_MOVED = "A part of that path was deleted, moved or replaced by something else: bring it back"
ADVICE = {  # what to do when a place cannot be written, by error number
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: "That disk is mounted read-only, as happens after errors: look at dmesg, and mount it for writing",
    errno.EIO: _DEVICE,
    errno.ENXIO: _DEVICE,
    errno.ESTALE: _DEVICE,
    errno.ENAMETOOLONG: "The path is too long for that disk: choose a shorter --workdir",
    errno.EMFILE: "Too many files are open at once: raise the limit (ulimit -n)",
    errno.EFBIG: "A file may not become that large there (ulimit -f, or the file system)",
} | dict.fromkeys(FULL, "Make room on that disk (old runs, other checkpoints)")


@contextlib.contextmanager
def clear_disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns the bare "No space left on device" of writing `path` into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            advice = "Free space on that disk (old runs, checkpoints/) or choose another --workdir"
        elif error.errno in ADVICE:
            advice = ADVICE[error.errno]
        else:
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)} while writing {path}. {advice}, then run the same command again: it resumes "
            "from the last checkpoint",
        ) from error


def advice_for(error: BaseException) -> str:
    """Returns what to do about an error of writing somewhere, as a sentence after a space; "" where nobody knows.

    The number of a system's error is looked for in what caused it, too, and in messages of libraries.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else None
        if found := re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error)):  # TensorStore's form, Python's
            number = number or int(found[1] or found[2])
        if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return f" {_MOVED}."
        if number in ADVICE:
            return f" {ADVICE[number]}."
        error = error.__cause__ or error.__context__
    return ""


def plain(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinities become null, arrays lists, unknown objects text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and JAX scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Replaces `path` by `text`; see `write_bytes`."""
    return write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Replaces `path` by `content` atomically: a reader, or a kill in between, sees the old or the new file.

    Raises:
      OSError: the disk is full (the message names the path and the remedy) or `path` is not writable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with clear_disk_errors(path):
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Writes `value` as indented JSON, atomically; NaN and infinities become null.

    An object that holds no other stands on one line within a list, and so does a list of numbers.
    """
    return write_text(path, _indented(plain(value), "") + "\n")


def _indented(value: Any, indent: str, row: bool = False) -> str:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    flat = not any(isinstance(item, dict | list) and item for item in inside)
    if not inside or (flat and (row or isinstance(value, list))):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    more = indent + "  "
    if isinstance(value, list):
        return f"[\n{more}" + f",\n{more}".join(_indented(item, more, row=True) for item in value) + f"\n{indent}]"
    lines = (f"{json.dumps(key, ensure_ascii=False)}: {_indented(item, more)}" for key, item in value.items())
    return f"{{\n{more}" + f",\n{more}".join(lines) + f"\n{indent}}}"


def read_json(path: str | os.PathLike, default: Any = None) -> Any:
    """Reads a JSON file; `default` when there is none.

    Raises:
      ValueError: the file is not JSON, or holds something else than the `default` is; the message names it.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it or restore it from a copy") from error
    if default is not None and not isinstance(value, type(default)):
        raise ValueError(f"{path} holds a {type(value).__name__}; delete it or restore it from a copy")
    return value


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads one JSON object a line; a line that a crash or a full disk cut short is left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
