"""When a failed request is worth another attempt, and after which pause."""

import hashlib

from data_pipelines.errors import DataError
from data_pipelines.io.urls import printable, without_secrets

_LONGEST = 60.0  # seconds between two attempts
_PASSING = (408, 425, 429)  # refusals that are about the moment and not about the request


class MissingFile(DataError):
    """There is no such file."""


class Forbidden(DataError):
    """The file may exist, but not for these credentials."""


class Refused(Exception):
    """A server answered a request with an error."""

    def __init__(self, status: int, reason: str | None):
        super().__init__(reason or "")
        self.status = status


def final(error: Exception, path: str) -> DataError | None:
    """Returns the error that ends the access to `path`, or None where another attempt may help.

    Only what is known to be final ends it: an unknown error costs a few attempts at worst.
    """
    if isinstance(error, DataError):
        return error
    name, status = printable(path), status_of(error)
    if isinstance(error, TimeoutError):  # before its status: S3 reports its own time-outs as a bad request
        return None
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingFile(f"{name} does not exist")
    if "Credentials" in type(error).__name__:
        return Forbidden(
            f"{name} needs credentials and none were found ({cause(error)}). Set those of the store, or for a public "
            f'bucket FSSPEC_S3=\'{{"anon": true}}\' (FSSPEC_GS=\'{{"token": "anon"}}\')'
        )
    if isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden"):
        return Forbidden(
            f"{name} is forbidden ({cause(error)}): check the credentials; some stores also answer so when a file does "
            f"not exist, or when a signed url has expired"
        )
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return DataError(f"{name} cannot be accessed ({cause(error)})")
    if isinstance(error, ValueError | TypeError | NotImplementedError):
        return DataError(f"{name} cannot be accessed ({cause(error)})")
    return None


def pause(base: float, attempt: int, identity: str) -> float:
    """Returns the seconds to wait after failure number `attempt` (from 1) of the request that `identity` names.

    They double each time. A hash takes the place of chance, so that many readers do not come back at once and a run
    can still be repeated.
    """
    digest = hashlib.blake2b(f"{attempt} {identity}".encode(), digest_size=4).digest()
    share = int.from_bytes(digest, "big") / 2**32
    return min(base * 2 ** (attempt - 1), _LONGEST) * (0.5 + 0.5 * share)


def status_of(error: BaseException | None) -> int | None:
    """Returns the HTTP status with which a server refused a request, from an error or what caused it.

    Only where a server said so: aiohttp also gives its own errors, such as a body that ends early, a status.
    """
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(error, Refused):
            return error.status
        if isinstance(response, dict):  # botocore
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if type(error).__name__ == "HttpError" and str(error.code).isdigit():  # gcsfs
            return int(error.code)
        error = error.__cause__
    return None


def cause(error: Exception) -> str:
    """Returns one line on an error, without the secrets of signed urls."""
    text = " ".join(without_secrets(str(error)).split())[:200]
    status = status_of(error)
    if isinstance(error, TimeoutError):
        return f"timed out{': ' * bool(text)}{text}"
    if status is not None:
        return f"{status} {text}".strip()
    return f"{type(error).__name__}{': ' * bool(text)}{text}"
