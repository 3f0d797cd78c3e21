"""The search server: what it answers, and what hostile requests get."""

import base64
import contextlib
import html
import http.client
import io
import json
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import DataError
from data_pipelines.modalities import image
from tests.search.conftest import GOOD, caption, picture
from xmodal.search import connections
from xmodal.search import query as querying
from xmodal.search import server as serving
from xmodal.search.index import Index
from xmodal.search.models import model_of
from xmodal.search.parts import Part, part_path
from xmodal.search.query import Searcher
from xmodal.search.server import SearchServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def server(made_index, tmp_path_factory):
    """Serves a copy of the index in which one caption is hostile."""
    folder = shutil.copytree(made_index, tmp_path_factory.mktemp("served") / "pictures")
    _replace_caption(folder, 0, EVIL)
    index = Index(folder)
    with _serving(Searcher(index, model_of(index.manifest["model"]))) as server:
        yield server


@contextlib.contextmanager
def _serving(searcher):
    with SearchServer(searcher) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _replace_caption(folder, part, text):
    """Gives the first sample of a part another caption."""
    path, note = part_path(folder, part), Part(folder, part).note
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | dict(caption=text))
    arrays = load_file(path)
    arrays["record_end"] = np.cumsum([len(line.encode()) + 1 for line in lines])
    save_file(arrays, path, metadata=dict(note=json.dumps(note)))
    path.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines))


def ask(server, path, method="GET", body=None, **headers):
    """Returns (status, headers, body) of a request; `_` of a header's name is `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw(server, content):
    """Sends bytes and returns what comes back until the connection ends."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def error(answer, status):
    assert answer[0] == status, answer
    assert answer[1]["Content-Type"] == "application/json" and answer[1]["X-Content-Type-Options"] == "nosniff"
    return json.loads(answer[2])["error"]


def test_questions_are_answered(server):
    status, headers, body = ask(server, "/api/index")
    about = json.loads(body)
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert (about["name"], about["samples"], about["among"]) == ("pictures", len(GOOD), ["image", "text"])
    text = caption(GOOD[20]).replace(" ", "+")
    found = json.loads(ask(server, f"/api/search?text={text}&among=text&top=3")[2])
    assert found["results"][0] | dict(score=1) == dict(
        row=20, score=1, shard="a.tar", key=f"{GOOD[20]:03d}", caption=caption(GOOD[20])
    )
    assert found["query"] == dict(text=caption(GOOD[20]), picture=False, sample=None, weight=0.5, among="text")
    posted = ask(server, "/api/search?top=2", "POST", picture(GOOD[30]), Content_Type="image/png")
    assert json.loads(posted[2])["results"][0]["row"] == 30
    both = ask(server, "/api/search?text=w9&weight=0.9", "POST", picture(GOOD[30]), Content_Type="image/png")
    assert len(json.loads(both[2])["results"]) == 10
    some = json.loads(ask(server, "/api/samples")[2])["results"]
    assert [some[0]["row"], some[-1]["row"], len(some)] == [0, len(GOOD) - 1, 24] and "/" not in some[0]["shard"]
    assert "warning" not in found
    like = json.loads(ask(server, "/api/search?sample=12&top=1")[2])["results"]
    assert like[0]["row"] == 12


@pytest.mark.parametrize("text", ["\u957f\u9888\u9e7f", "\u5168\u5934", "\u00e9t\u00e9"])
def test_bytes_of_the_address_are_utf8_or_refused(server, text):
    head = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw(server, b"GET /api/search?text=" + text.encode() + head)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["query"]["text"] == text
    for other in (text.encode("utf-16-le"), b"%B3%A4", "\u957f\u9888\u9e7f".encode("gb18030")):
        answer = raw(server, b"GET /api/search?text=" + other.replace(b"\0", b"") + b"\xff" + head)
        assert answer.startswith(b"HTTP/1.1 400 ") and b"not UTF-8" in answer


def test_a_connection_is_used_again(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    for row in (0, 1, len(GOOD) - 1):
        connection.request("GET", f"/api/thumbnail/{row}?v=1")
        response = connection.getresponse()
        content = response.read()
        assert response.headers["Content-Type"] == "image/jpeg" and "immutable" in response.headers["Cache-Control"]
        assert content == server.searcher.index.thumbnail(row)
        assert Image.open(io.BytesIO(content)).size == (32, 23)
    connection.close()


def test_the_page_loads_nothing_from_elsewhere(server):
    status, headers, body = ask(server, "/?q=" + "x" * 50)
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page) and "http://" not in page and "https://" not in page
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)
    assert not re.search(r"<[^>]*\s(?:style|on\w+)=", page.partition("<script>")[0])  # the policy would stop them
    assert page.count("<script>") == page.count("<style>") == 1
    assert "x" * 50 not in page


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/../../etc/passwd", "/api/../manifest.json", "/manifest.json", "/00000.safetensors",
        "/api/thumbnail/", "/api/thumbnail/-1", "/api/thumbnail/999", "/api/thumbnail/99999999999999999999",
        "/api/thumbnail/../../../etc/passwd", "/api/thumbnail/..%2f..%2fetc%2fpasswd", "/api/thumbnail/0/../1",
        "/api/map/", "/api/map/-1?text=w9", "/api/map/999?text=w9", "/api/map/99999999999999999999?text=w9", "/api/map",
        "/api/map/../manifest.json?text=w9", "/api/map/0/1?text=w9", "/api/map/%30?text=w9", "/api/map/1.0?text=w9",
        "/api/thumbnail/%30", "/api/thumbnail/1e1", "/api/thumbnail/0%00", "/api/search/x", "/x", "//etc/passwd",
        "http://evil.example/api/index", "http://[/api/index", "//[", "/api/index#", "api/index",
        "/api/thumbnail/\u0661".encode().decode("latin-1"),
    ],
)  # fmt: skip
def test_nothing_but_the_index_is_served(server, path):
    answer = raw(
        server, b"GET " + path.encode("latin-1") + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 404 ") and b"root:" not in answer, answer[:200]


def test_hosts_and_origins_are_checked(server):
    port, get = server.server_address[1], lambda **headers: ask(server, "/api/index", **headers)
    for host in ("localhost", f"localhost:{port}", "LOCALHOST:99", "127.0.0.1", "[::1]:8000"):
        assert get(Host=host)[0] == 200, host
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[::2]",
        "[::1",
    ):
        assert "goes by" in error(get(Host=host), 421), host
        assert error(ask(server, "/", Host=host), 421)
    twice = b"GET /api/index HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert raw(server, twice).startswith(b"HTTP/1.1 421 ")
    assert raw(server, b"GET /api/index HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    own = f"127.0.0.1:{port}"
    assert get(Host=own, Origin=f"http://{own}", Sec_Fetch_Site="same-origin")[0] == 200
    for foreign in (
        dict(Origin="http://evil.example"), dict(Origin="null"), dict(Origin="http://["),
        dict(Origin=f"http://127.0.0.1:{port + 1}"),
        dict(Sec_Fetch_Site="cross-site"), dict(Sec_Fetch_Site="same-site"),
    ):  # fmt: skip
        assert "only the page of this server" in error(get(Host=own, **foreign), 403), foreign
        posted = ask(server, "/api/search", "POST", picture(1), Content_Type="image/png", Host=own, **foreign)
        assert error(posted, 403)
    assert ask(server, "/", Host=own, Sec_Fetch_Site="cross-site")[0] == 200  # a link to the page


def png_of(width, height):
    """A small file that claims to be large."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_uploads_are_bounded(server):
    post = lambda body, kind="image/png": ask(server, "/api/search", "POST", body, Content_Type=kind)
    assert "not an image" in error(post(b"<svg onload=alert(1)>"), 400)
    assert "not an image" in error(post(b"\x7fELF" + bytes(1000), "image/jpeg"), 400)
    assert "too large" in error(post(png_of(60_000, 60_000)), 400)
    assert "corrupt" in error(post(picture(1)[:200]), 400)
    assert "nothing is looked for" in error(post(b""), 400)
    for kind in ("image/svg+xml", "text/html", "multipart/form-data; boundary=x", "application/json"):
        assert "an image is image/jpeg" in error(post(picture(1), kind), 415), kind
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    huge = raw(server, head + b"Content-Length: 99999999999\r\n\r\n" + bytes(1000))  # refused before it is read
    assert huge.startswith(b"HTTP/1.1 413 ") and b"16 MiB" in huge and b"Connection: close" in huge
    assert raw(server, head + b"Content-Length: -5\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345").startswith(b"HTTP/1.1 400 ")
    assert raw(server, head + b"Content-Length: 500\r\n\r\nshort").startswith(b"HTTP/1.1 408 ")
    assert raw(server, head + b"\r\n").startswith(b"HTTP/1.1 411 ")
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert raw(server, chunked).startswith(b"HTTP/1.1 411 ")
    get = b"GET /api/index HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    assert raw(server, get).startswith(b"HTTP/1.1 400 ")
    assert ask(server, "/api/index")[0] == 200  # it is still there


def test_parameters_are_checked(server):
    for query, message in (
        ("", "nothing is looked for"),
        ("text=w9&top=ten", "top is 'ten'; expected a number"),
        ("text=w9&top=100000", "expected 1 to 1,000"),
        ("text=w9&weight=nan", "expected 0"),
        ("text=w9&sample=" + "9" * 5000, "expected a number"),
        ("sample=-1", "no sample -1"),
        ("text=w9&among=../../x", "no embeddings of the kind '../../x'"),
        ("text=w9&path=/etc/passwd", "unknown parameter 'path'"),
        ("text=" + "w" * 3000, "at most 2,000"),
        ("&".join(f"a{i}=1" for i in range(50)), "too many parameters"),
    ):
        assert message in error(ask(server, f"/api/search?{query}"), 400), query
    for text in ("%ff%fe", "%ED%A0%80"):
        assert "not UTF-8" in error(ask(server, f"/api/search?text={text}"), 400)
    for text in ("%00", "%F0%9F%9A%A9", "%3Cscript%3E"):  # whatever the words, an answer
        status, headers, body = ask(server, f"/api/search?text={text}")
        assert status == 200 and headers["Content-Type"] == "application/json" and json.loads(body)
    assert error(ask(server, "/", "DELETE"), 501) and error(ask(server, "/api/index", "POST", b""), 404)
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").count(b"Traceback") == 0
    assert raw(server, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 414 ")


def test_words_are_mapped(server):
    searcher, text = server.searcher, "W20 no, w50!"
    expected = searcher.model.word_map(searcher.index.thumbnail(12), text)
    ask_map = lambda query="": ask(server, f"/api/map/12?text=W20+no,+w50!{query}")
    status, headers, body = ask_map()
    found = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json" and headers["Cache-Control"] == "no-store"
    assert found["words"] == ["W20", "no", "w50"] and found["caption"] == caption(GOOD[12]) and found["row"] == 12
    pieces = [["W20", 0], [" ", None], ["no", 1], [", ", None], ["w50", 2], ["!", None]]
    assert found["pieces"] == pieces and "".join(piece for piece, _ in pieces) == expected.text == text
    assert found["word"] == expected.clearest
    for word in range(3):
        own, scores = json.loads(ask_map(f"&word={word}")[2]), expected.scores[word]
        assert own["word"] == word and own["grid"] == list(scores.shape)
        assert own["best"] == list(divmod(int(scores.argmax()), scores.shape[1]))
        np.testing.assert_allclose([own["highest"], own["lowest"]], [scores.max(), scores.min()], rtol=1e-6)
        kind, content = own["picture"].split(",")
        shown = Image.open(io.BytesIO(base64.b64decode(content)))
        difference = np.asarray(shown).astype(float) - np.asarray(expected.overlay(word, max(shown.size)))
        assert kind == "data:image/jpeg;base64" and np.abs(difference).mean() < 3


def test_maps_that_cannot_be(server, index_copy):
    for query, message in (
        ("", "needs a text with words"),
        ("text=", "needs a text with words"),
        ("text=%00+!!", "needs a text with words"),
        ("text=w9&word=1", "the text has those from 0 to 0"),
        ("text=w9&word=-1", "the text has those from 0 to 0"),
        ("text=w9&word=" + "9" * 4000, "the text has those from 0 to 0"),
        ("text=w9&word=" + "9" * 5000, "expected a number"),
        ("text=w9&word=w9", "word is 'w9'; expected a number"),
        ("text=w9&word=0.5", "expected a number"),
        ("text=w9&word=nan", "expected a number"),
        ("text=w9&top=3", "unknown parameter 'top'; known are text, word"),
        ("text=" + "w" * 3000, "at most 2,000"),
    ):
        assert message in error(ask(server, f"/api/map/0?{query}"), 400), query
    for text in ("%ff%fea", "%ED%A0%80a"):
        assert "not UTF-8" in error(ask(server, f"/api/map/0?text={text}"), 400)
    for text in ("%3Cscript%3Ex", "%F0%9F%9A%A9x", "a" * 2000, "+w9+" * 400):
        status, headers, body = ask(server, f"/api/map/0?text={text}")
        assert status == 200 and headers["Content-Type"] == "application/json" and json.loads(body)["words"]
    assert error(ask(server, "/api/map/0?text=w9", "POST", picture(1), Content_Type="image/png"), 404)
    assert error(ask(server, "/api/map/0?text=w9", Host="evil.example"), 421)
    assert error(ask(server, "/api/map/0?text=w9", Origin="http://evil.example"), 403)
    for path in sorted(index_copy.glob("*.safetensors")):  # as `--thumbnails 0` writes it
        note, arrays = Part(index_copy, int(path.stem)).note, load_file(path)
        del arrays["thumbnail_end"]
        save_file(arrays, path, metadata=dict(note=json.dumps(note)))
    with _serving(Searcher(Index(index_copy), server.searcher.model)) as bare:
        assert "no word maps: the index keeps no images" in error(ask(bare, "/api/map/0?text=w9"), 400)
        assert json.loads(ask(bare, "/api/index")[2])["no_maps"] == "the index keeps no images"
        assert " · no word maps: the index keeps no images</t-en>" in ask(bare, "/")[2].decode()
    assert (
        json.loads(ask(server, "/api/index")[2])["no_maps"] == ""
        and " · no word maps:".encode() not in ask(server, "/")[2].partition(b"<script>")[0]
    )


GET = b"GET /api/index HTTP/1.1\r\nHost: localhost\r\n\r\n"


def held_open(server, count, content=GET):
    """Opens connections and sends something on each of them."""
    held = [socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) for _ in range(count)]
    for connection in held:
        connection.sendall(content)
    return held


def waited_for(server, count):
    """Waits until so many clients are waited for."""
    for _ in range(2000):
        if len(server._receiving) == count:
            return
        time.sleep(0.005)
    pytest.fail(f"{len(server._receiving)} clients are waited for, not {count}")


POST = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\n"


@pytest.mark.parametrize("slow", [b"", b"GET /api/index HT", GET[:-2], POST + b"abc"])
def test_slow_clients_shut_nobody_out(server, monkeypatch, slow):
    monkeypatch.setattr(connections, "CONNECTIONS", 3)
    with _serving(server.searcher) as small:
        held = held_open(small, 3, slow)
        waited_for(small, 3)
        for _ in range(9):
            assert ask(small, "/api/index")[0] == 200
        for connection in held:
            connection.close()


def test_connections_that_are_answered_are_not_cut(server, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 2)
    go_on, answer = threading.Event(), serving.ROUTES["GET", "/api/index"]
    with _serving(server.searcher) as small:
        monkeypatch.setitem(serving.ROUTES, ("GET", "/api/index"), lambda *a: go_on.wait(20) and answer(*a))
        held = held_open(small, 2)
        waited_for(small, 0)
        time.sleep(0.1)
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            ask(small, "/api/samples")
        go_on.set()
        for connection in held:
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
        assert ask(small, "/api/samples")[0] == 200


@pytest.mark.parametrize("part", ["IDLE", "HEAD", "BODY"])
def test_each_part_of_a_request_has_a_deadline(server, monkeypatch, part):
    monkeypatch.setattr(connections, part, 0.4)
    content = dict(IDLE=b"", HEAD=b"GET / HTTP/1.1\r\nA: ", BODY=POST)[part]
    with _serving(server.searcher) as small:
        (connection,) = held_open(small, 1, content)
        began, answer = time.monotonic(), b""
        with contextlib.suppress(ConnectionError), connection:
            connection.settimeout(0.05)
            while time.monotonic() < began + 10:  # a byte now and then does not keep it open
                if part != "IDLE":
                    connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    if not (received := connection.recv(4096)):
                        break
                    answer += received
        assert time.monotonic() - began < 5
        assert answer.startswith(b"HTTP/1.1 408 ") == (part == "BODY")


def test_bodies_are_bounded_together(server, monkeypatch):
    monkeypatch.setattr(connections, "BODY_BYTES", 1000)
    with _serving(server.searcher) as small:
        big = ask(small, "/api/search", "POST", bytes(2000), Content_Type="image/png")
        assert "ask again in a while" in error(big, 503)
        for _ in range(5):
            while small._bodies:  # what was held is given back, right after the answer
                time.sleep(0.005)
            assert "not an image" in error(ask(small, "/api/search", "POST", bytes(900), Content_Type="image/png"), 400)


def test_a_picture_that_is_decoded_keeps_nobody_waiting(server, monkeypatch):
    go_on, began = threading.Event(), threading.Event()

    def slowly(data, options):
        began.set()
        assert go_on.wait(20)
        return decode(data, options)

    decode = image.full_image
    monkeypatch.setattr(image, "full_image", slowly)
    answers = []
    post = lambda: answers.append(ask(server, "/api/search", "POST", picture(1), Content_Type="image/png")[0])
    threads = [threading.Thread(target=post) for _ in range(querying._DECODERS)]
    for thread in threads:
        thread.start()
    assert began.wait(20)
    assert ask(server, "/api/search?text=w9")[0] == 200 and not answers
    monkeypatch.setattr(querying, "_PATIENCE", 0.05)
    late = ask(server, "/api/search", "POST", picture(1), Content_Type="image/png")
    assert "other images are still being read" in error(late, 400)
    go_on.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * len(threads)


def test_errors_name_no_folders(server, index_copy):
    folders = {str(index_copy), str(index_copy.parent)}
    with _serving(Searcher(Index(index_copy), server.searcher.model)) as damaged:
        (index_copy / "00000.jsonl").unlink()
        (index_copy / "00000.thumbnails").unlink()
        (index_copy / "00000.thumbnails").symlink_to("/etc/passwd")
        for path in ("/api/samples", "/api/thumbnail/0", "/api/search?text=w9&among=sound", "/api/search?sample=0"):
            answer = ask(damaged, path)
            text = error(answer, 400)
            assert not any(folder in answer[2].decode() for folder in folders) and "root:" not in text, text
            assert "pictures" in text or "00000." in text, text
    without = serving._without_folders
    assert without("cannot read /data/c/00000.jsonl: gone", index_copy) == "cannot read 00000.jsonl: gone"
    assert without("an image is image/jpeg, image/png", index_copy) == "an image is image/jpeg, image/png"


def test_a_fault_of_ours_says_nothing_of_itself(server, monkeypatch):
    def fails(*_):
        raise RuntimeError("secret")

    monkeypatch.setitem(serving.ROUTES, ("GET", "/api/index"), fails)
    assert error(ask(server, "/api/index"), 500) == "the server failed; its terminal says why"


def test_a_taken_port_is_said(server):
    with pytest.raises(DataError, match="choose another with --port"):
        SearchServer(server.searcher, port=server.server_address[1])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with")
def test_a_browser_shows_captions_and_questions_as_text(server, tmp_path):
    """The hostile caption is found by its own picture, asked for by its words, and these mapped: all is text."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    address = f"{server.url}?like=0&map=0&q=" + "".join(f"%{byte:02x}" for byte in EVIL.encode())
    how = [
        f"--user-data-dir={tmp_path}",
        "--lang=en-US",
        "--accept-lang=en-US",
        "--virtual-time-budget=8000",
        "--dump-dom",
    ]
    command = [CHROMIUM, *flags.split(), *how, address]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "38 nearest of 38" in page and page.count('class="card"') == 38
    assert ">pictures · xmodal search</title>" in page and "owned</title>" not in page
    assert f'<span class="caption">{html.escape(EVIL, quote=False)}</span>' in page
    assert page.count("<script>") == 1 and "<img src=x" not in page
    assert (
        re.search(r'<dialog[^>]* open=""', page) and page.count('<button class="word" type="button" aria-pressed') == 1
    )
    word = re.search(r'class="word"[^>]*aria-pressed="true">(.*?)</button>', page)[1]
    assert (
        "&lt;<button" in page
        and f"Clear where “{word}” fits well, grey where badly. Best in the frame: cosine " in page
    )
    assert re.search(r'<span id="best" style="top: [0-9.]+%; left: ', page)
    assert re.search(r'<img id="shown"[^>]* src="data:image/jpeg;base64,', page)
