"""A local search page and its JSON API, from the standard library; bound to this machine unless told otherwise.

    GET  /                        the page
    GET  /api/index               what the index holds
    GET  /api/samples             some samples from all over it
    GET  /api/search?text=...     results, a warning; also sample=N, weight=W, among=image|text, top=N
    POST /api/search?text=...     the same with an image: its bytes are the body, Content-Type image/...
    GET  /api/thumbnail/N         small JPEG of sample N
    GET  /api/map/N?text=...      where a word of a text points to in that image; also word=K, its number from 0

A further question about a result is one more entry of `ROUTES`; results carry the number of their sample, `row`.

Nothing is read but the index, by number. A request must name a host that the server goes by, so that no other site can
reach it through a name of its own (DNS rebinding), and the API answers no page of another origin. Images are bounded
in bytes, type and pixels, connections as `connections` says. Errors name files, not the folders that they lie in.
"""

import base64
import http
import io
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np

from data_pipelines.errors import DataError
from xmodal.evaluation.word_maps import WordMap
from xmodal.reporting.messages import in_chinese, say
from xmodal.search.connections import BoundedHandler, BoundedServer, TooMuch
from xmodal.search.page import TYPES, document
from xmodal.search.query import Query, Searcher

LARGEST = 16 * 2**20  # bytes of an image that is looked for
_SHOWN = 24  # samples where nothing is looked for
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SEARCHED = dict(text=str, sample=int, weight=float, among=str, top=int)  # parameters and their types
_MAPPED = dict(text=str, word=int)
_MAP_PIXELS = 448  # longer side of a map
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_BUSY = say("others are sending images; ask again in a while")
_NOTHING = "default-src 'none'; frame-ancestors 'none'"  # policy of all answers but the page

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
    """

    def __init__(self, status: http.HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Answer(NamedTuple):
    """Content of an answer, its type, and headers of its own."""

    content: bytes
    kind: str = "application/json"
    headers: Mapping[str, str] = {}


class Request(NamedTuple):
    """What a route is given: the part of the path after its own, the parameters, and the body."""

    rest: str
    parameters: dict[str, str]
    body: bytes


class SearchServer(BoundedServer):
    """Serves one index.

    Attributes:
      searcher: answers.
      names: of hosts that requests may name.
      url: of the page.
    """

    def __init__(self, searcher: Searcher, host: str = "127.0.0.1", port: int = 0, names: Iterable[str] = ()):
        """Binds the address; `names` are further ones that browsers reach it by. Raises DataError where it is taken."""
        self.searcher, self.names = searcher, {name.lower() for name in (*_LOCAL, host, *names)}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise DataError(
                f"{host} port {port} cannot be bound: {error.strerror}; choose another with --port"
            ) from None
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"

    def handle_error(self, request: Any, address: Any) -> None:
        """Notes a connection that broke; there is nobody to tell."""
        _log.debug("connection from %s ended", address, exc_info=True)


def _page(searcher: Searcher, request: Request) -> Answer:
    about = _about(searcher)
    kinds = {"image": say("images"), "text": say("captions"), "both": say("images and captions")}
    kind = kinds["both" if len(about["among"]) > 1 else about["among"][0]]
    line = say("{samples:,} {kinds} · model {model}", samples=about["samples"], kinds=kind, model=about["model"])
    page, policy = document(about["name"], line, tuple(about["among"]), tuple(about["reads"]), searcher.no_maps)
    return Answer(page.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})


def _index(searcher: Searcher, request: Request) -> Answer:
    return Answer(json.dumps(_about(searcher)).encode())


def _about(searcher: Searcher) -> dict[str, Any]:
    index, model = searcher.index, searcher.index.manifest["model"]
    return dict(
        name=index.folder.resolve().name,
        model=os.path.basename(model["origin"]),
        samples=len(index),
        dim=index.dim,
        among=searcher.among,
        reads=searcher.model.inputs,
        thumbnails=index.has_thumbnails,
        version=index.version,
        no_maps=searcher.no_maps,
        no_maps_zh=in_chinese(searcher.no_maps),
        aligns_words=searcher.model.aligns_words,
    )


def _given(request: Request, known: Mapping[str, type]) -> dict[str, Any]:
    """Returns the parameters of a request in their types."""
    unknown, given = sorted(set(request.parameters) - set(known)), {}
    if unknown:
        raise DataError(f"unknown parameter {unknown[0][:40]!r}; known are {', '.join(known)}")
    for name, text in request.parameters.items():
        try:
            given[name] = known[name](text)
        except ValueError:
            raise DataError(f"{name} is {text[:40]!r}; expected a number") from None
    return given


def _search(searcher: Searcher, request: Request) -> Answer:
    given = _given(request, _SEARCHED)
    query = Query(**dict(among=searcher.among[0]) | given, image=request.body)
    began = time.perf_counter()
    hits = [_shown(hit.as_json()) for hit in searcher.search(query)]
    asked = dict(text=query.text, picture=bool(query.image), sample=query.sample, weight=query.weight)
    milliseconds = round(1e3 * (time.perf_counter() - began), 1)
    found = dict(query=asked | dict(among=query.among), milliseconds=milliseconds, results=hits)
    if warning := searcher.warning(query.text):
        found |= dict(warning=warning, warning_zh=in_chinese(warning))
    return Answer(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))


def _samples(searcher: Searcher, request: Request) -> Answer:
    total = len(searcher.index)
    rows = np.unique(np.linspace(0, total - 1, min(_SHOWN, total)).astype(int)).tolist()
    found = [dict(row=row, **_shown(searcher.index.record(row))) for row in rows]
    return Answer(json.dumps(dict(results=found), ensure_ascii=False).encode("utf-8", "replace"))


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return record | dict(shard=os.path.basename(record["shard"]))  # where data lie is nobody's business


def _thumbnail(searcher: Searcher, request: Request) -> Answer:
    content = searcher.index.thumbnail(_row(searcher, request))
    if content is None:
        raise Refused(http.HTTPStatus.NOT_FOUND, say("there is no such image"))
    return Answer(content, "image/jpeg", {"Cache-Control": "private, max-age=86400, immutable"})


def _row(searcher: Searcher, request: Request) -> int:
    if re.fullmatch(r"[0-9]{1,12}", request.rest) and int(request.rest) < len(searcher.index):
        return int(request.rest)
    raise Refused(http.HTTPStatus.NOT_FOUND, say("there is no such image"))


def _map(searcher: Searcher, request: Request) -> Answer:
    row, given = _row(searcher, request), _given(request, _MAPPED)
    found = searcher.word_map(row, given.get("text", ""))
    word, last = given.get("word", found.clearest), len(found.words) - 1
    if not 0 <= word <= last:
        raise DataError(say("there is no word with this number: the text has those from 0 to {last}", last=last))
    answer = dict(row=row, caption=searcher.index.record(row)["caption"], word=word, words=found.words)
    return Answer(json.dumps(answer | _drawn(found, word), ensure_ascii=False).encode("utf-8", "replace"))


def _drawn(found: WordMap, word: int) -> dict[str, Any]:
    """The map of one word, and what the page says of it."""
    scores, buffer = found.scores[word], io.BytesIO()
    found.overlay(word, _MAP_PIXELS).save(buffer, "JPEG", quality=88)
    return dict(
        pieces=found.pieces(),
        grid=scores.shape,
        best=[int(i) for i in np.unravel_index(scores.argmax(), scores.shape)],
        highest=float(scores.max()),
        lowest=float(scores.min()),
        picture="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
    )


# (method, path) -> answer; a path that ends in "/" takes what follows it as an argument, but for "/" itself.
ROUTES: dict[tuple[str, str], Callable[[Searcher, Request], Answer]] = {
    ("GET", "/"): _page,
    ("GET", "/api/index"): _index,
    ("GET", "/api/samples"): _samples,
    ("GET", "/api/search"): _search,
    ("POST", "/api/search"): _search,
    ("GET", "/api/thumbnail/"): _thumbnail,
    ("GET", "/api/map/"): _map,
}


class _Handler(BoundedHandler):
    """One connection."""

    server: SearchServer
    server_version, sys_version = "xmodal", ""

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_GET

    def _answer(self) -> None:
        try:
            answer = self._routed()
        except Refused as refused:
            self.send_error(refused.status, refused.args[0])
        except DataError as error:
            self.send_error(http.HTTPStatus.BAD_REQUEST, error.args[0])
        except OSError:  # the other side went away or was too slow
            raise
        except Exception:
            _log.exception("request failed")
            self.send_error(http.HTTPStatus.INTERNAL_SERVER_ERROR, say("the server failed; its terminal says why"))
        else:
            self._send(http.HTTPStatus.OK, answer)

    def _routed(self) -> Answer:
        body_left = self._check_head()
        path, _, query = self.path.partition("?")  # one that names a host, as proxies get it, is none of ours
        own, slash, rest = path.rpartition("/")
        exact = (self.command, path), ""
        below = (self.command, own + slash), rest
        key, rest = exact if exact[0] in ROUTES else below
        if key not in ROUTES or (key[1] == "/" and rest):
            raise Refused(http.HTTPStatus.NOT_FOUND, "there is no such page")
        if key[1] != "/":
            self._check_origin()
        try:
            found = parse_qs(query, keep_blank_values=True, max_num_fields=20, errors="strict")
        except UnicodeDecodeError:
            raise Refused(
                http.HTTPStatus.BAD_REQUEST, say("the address is not UTF-8: write the text in UTF-8, percent-encoded")
            ) from None
        except ValueError:
            raise Refused(http.HTTPStatus.BAD_REQUEST, "too many parameters") from None
        body = self._read(body_left) if body_left else b""
        parameters = {name: values[-1] for name, values in found.items()}
        return ROUTES[key](self.server.searcher, Request(rest, parameters, body))

    def _check_head(self) -> int:
        """Checks what comes before the body, and returns the bytes of that."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or _host(hosts[0]) not in self.server.names:
            named = ", ".join(sorted(self.server.names))
            raise Refused(http.HTTPStatus.MISDIRECTED_REQUEST, f"this server goes by {named}; see --name")
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or (self.command == "POST" and not lengths):
            raise Refused(http.HTTPStatus.LENGTH_REQUIRED, "send a body with its length")
        if len(lengths) > 1 or not all(re.fullmatch(r"[0-9]{1,18}", length) for length in lengths):
            raise Refused(http.HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        length = int(lengths[0]) if lengths else 0
        if length and self.command == "GET":
            raise Refused(http.HTTPStatus.BAD_REQUEST, "a GET has no body")
        if length > LARGEST:
            raise Refused(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                say("an image may have {most} MiB, not {count:,} bytes", most=LARGEST // 2**20, count=length),
            )
        kind = self.headers.get_content_type()
        if length and kind not in TYPES:
            raise Refused(
                http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                say("an image is {types}, not {kind}", types=", ".join(TYPES), kind=repr(kind[:60])),
            )
        return length

    def _check_origin(self) -> None:
        """Refuses requests that a page of another origin makes."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        foreign = origin is not None and origin.lower().partition("://")[2] != self.headers["Host"].strip().lower()
        if foreign or site not in ("same-origin", "none"):
            raise Refused(http.HTTPStatus.FORBIDDEN, "only the page of this server may ask")

    def _read(self, length: int) -> bytes:
        try:
            body = self.read_body(length)
        except TooMuch:
            raise Refused(http.HTTPStatus.SERVICE_UNAVAILABLE, _BUSY) from None
        if len(body) < length:
            raise Refused(http.HTTPStatus.REQUEST_TIMEOUT, say("the image did not arrive"))
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers with {"error": message}, and closes the connection, on which a body may be left unread."""
        self.close_connection = True
        text = message or http.HTTPStatus(code).phrase
        index = self.server.searcher.index.folder
        told = {"error": _without_folders(text, index), "zh": _without_folders(in_chinese(text), index)}
        self._send(http.HTTPStatus(code), Answer(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")))

    def _send(self, status: http.HTTPStatus, answer: Answer) -> None:
        fields = {"Content-Type": answer.kind, "Content-Length": str(len(answer.content)), "Cache-Control": "no-store"}
        self.send_response(status)
        for name, value in {"Content-Security-Policy": _NOTHING, **fields, **_ALWAYS, **answer.headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, form: str, *values: Any) -> None:
        """Keeps what people look for out of the terminal."""


def _without_folders(message: str, index: Path) -> str:
    """Returns a message with names in place of paths: where files lie is nobody's business."""
    for folder in sorted({str(index), str(index.absolute()), str(index.resolve())} - {"."}, key=len, reverse=True):
        message = message.replace(folder + os.sep, "").replace(folder, index.resolve().name)
    return re.sub(r"(?<![\w.:/])(?:/[^\s/:;,()'\"]+)+/(?=[^\s/])", "", message)


def _host(header: str) -> str:
    """Returns the name in a Host header, without its port: tunnels give the server another one."""
    found = re.fullmatch(r"(?:\[(.*)\]|([^\[\]]*?))(?::[0-9]*)?", header.strip().lower())
    return (found[1] or found[2] or "") if found else ""
