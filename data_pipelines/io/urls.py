"""Names of files: plain paths and urls, without opening anything."""

import os
import re

from data_pipelines.errors import DataError, did_you_mean

PROTOCOLS = ("gs", "s3", "http", "https", "memory")

_WEB = ("http://", "https://")
_SECRETS = re.compile(r"(https?://)(?:[^/\s'\"?@]*@)?([^\s'\"?]*)(?:\?[^\s'\"]*)?")


def is_remote(path: str) -> bool:
    """Whether `path` is a url, supported or not, and not a file on disk."""
    return "://" in path or path.startswith("pipe:")


def protocol(path: str) -> str:
    """Returns the protocol of a url, "" for a file on disk.

    Raises:
        DataError: the protocol is not supported. Nothing that is read is ever run, so `pipe:` commands never are, and
            chains such as `simplecache::s3://...` could reach files that the config does not name.
    """
    if not is_remote(path):
        return ""
    scheme, _, _ = path.partition("://")
    if scheme in PROTOCOLS:
        return scheme
    if path.startswith("pipe:"):
        scheme, name = "pipe", "the output of a command"  # which may hold secrets
    else:
        name = printable(path)
    supported = ", ".join(f"{known}://" for known in PROTOCOLS)
    raise DataError(
        f"cannot read {name}: {scheme!r} is not supported{did_you_mean(scheme, PROTOCOLS)}. Data are read from plain "
        f"paths and from {supported}, never through commands (pipe:) or chained urls (a::b)"
    )


def printable(path: str) -> str:
    """Returns a path as it may be shown: a web address without its query and user, which may hold secrets."""
    return without_secrets(path) if path.startswith(_WEB) else path


def without_secrets(text: str) -> str:
    """Returns a text in which all web addresses have lost their queries and users."""
    return _SECRETS.sub(r"\1\2", text)


def has_wildcard(url: str) -> bool:
    """Whether a url is a pattern of files.

    Of a web address only the path counts: brackets before it hold an IPv6 address, and `?` starts its query.
    """
    if url.startswith(_WEB):
        path = _without_query(url).partition("://")[2].partition("/")[2]
        return any(mark in path for mark in "*[")
    return any(mark in url for mark in "*?[")


def basename(path: str) -> str:
    """Returns the last part of a path or url; the query of a web address does not belong to it."""
    return printable(path).rpartition("/")[2]


def parent(path: str) -> str:
    """Returns the folder of a path or url, without the query of a web address."""
    if not is_remote(path):
        return os.path.dirname(path)
    return _without_query(path).rpartition("/")[0]


def join(folder: str, *names: str) -> str:
    """Returns the path or url of a file in a folder."""
    return "/".join([folder.rstrip("/"), *names]) if is_remote(folder) else os.path.join(folder, *names)


def _without_query(path: str) -> str:
    return path.partition("?")[0] if path.startswith(_WEB) else path  # in a bucket, `?` is a part of the name
