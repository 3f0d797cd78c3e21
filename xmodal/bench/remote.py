"""Throughput of ranged reads: local disk, a web server with injected latency, and an S3 server, in one run."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

_BLOCK = 8 * 2**20  # what the stream reads at a time
_IN_FLIGHT = (1, 4, 16)
_ROUNDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--mib", type=int, default=128, help="size of the file, read once a measurement")
    parser.add_argument("--latency", type=float, default=30.0, help="milliseconds before the web server answers")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Reads the same bytes from each place; returns (title, columns, rows)."""
    import os
    import tempfile

    from data_pipelines.io.storage import Files

    blocks = max(args.mib * 2**20 // _BLOCK, 1)
    content = os.urandom(blocks * _BLOCK)
    with tempfile.TemporaryDirectory() as folder, Files(concurrency=max(_IN_FLIGHT)) as files:
        path = os.path.join(folder, "file")
        files.write_atomic(path, content)
        with (
            _server(_serve_web, path, args.latency / 1000) as web,
            _server(_serve_s3) as s3,
            _s3_environment(s3),
        ):
            files.write_atomic("s3://bench/file", content)
            places = {
                "disk (page cache)": path,
                f"http, {args.latency:g} ms": f"http://127.0.0.1:{web}/file",
                "S3 (moto)": "s3://bench/file",
            }
            for place in places.values():  # the first request connects, and every byte is checked once
                if files.read_all(place) != content:
                    raise AssertionError(f"{place} gave other bytes than were written")
            rows = [[name, *_rates(files, place, blocks)] for name, place in places.items()]
    columns = ["place", *(f"MB/s, {count} in flight" for count in _IN_FLIGHT), "CPU s per GB"]
    return f"reads of {_BLOCK // 2**20} MiB, median of {_ROUNDS}", columns, rows


def _rates(files, place: str, blocks: int) -> list[float]:
    """Returns MB/s for each number of reads in flight, and the CPU time of this process at the last of them."""
    from concurrent.futures import ThreadPoolExecutor

    rates = []
    for count in _IN_FLIGHT:
        seconds, cpu = [], []
        for _ in range(_ROUNDS):
            with ThreadPoolExecutor(count) as pool:
                began, cpu_began = time.perf_counter(), time.process_time()
                for read in [pool.submit(files.read, place, i * _BLOCK, (i + 1) * _BLOCK) for i in range(blocks)]:
                    read.result()
                seconds.append(time.perf_counter() - began)
                cpu.append(time.process_time() - cpu_began)
        rates.append(round(blocks * _BLOCK / 1e6 / statistics.median(seconds)))
    return [*rates, round(statistics.median(cpu) / (blocks * _BLOCK / 1e9), 2)]


@contextlib.contextmanager
def _server(serve: Callable, *args) -> Iterator[int]:
    """Runs a server in a process of its own, whose work does not slow the reader's threads; gives its port."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(sender, *args), daemon=True)
    process.start()
    sender.close()  # so that the end of the process ends the wait
    try:
        yield receiver.recv()
    except EOFError:
        raise RuntimeError(f"the server of the benchmark did not start ({serve.__name__})") from None
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def _s3_environment(port: int) -> Iterator[None]:
    """Points S3 clients at a local server and makes the bucket."""
    import os
    import urllib.request

    address = f"http://127.0.0.1:{port}"
    names = dict(ENDPOINT_URL=address, ACCESS_KEY_ID="x", SECRET_ACCESS_KEY="x", DEFAULT_REGION="us-east-1")
    before = dict(os.environ)
    os.environ.update({f"AWS_{name}": value for name, value in names.items()})
    urllib.request.urlopen(urllib.request.Request(f"{address}/bench", method="PUT")).close()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve_web(sender, path: str, latency: float) -> None:
    """Serves ranges of one file, each after `latency` seconds."""
    import re
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            time.sleep(latency)
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
                last = min(last, size - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                self.send_header("Content-Length", str(last + 1 - first))
                self.end_headers()
                self.connection.sendfile(file, first, last + 1 - first)

        def log_message(self, *_):
            """Not to the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sender.send(server.server_port)
    server.serve_forever()


def _serve_s3(sender) -> None:
    """Serves S3 from memory."""
    import logging
    import threading

    try:
        from moto.moto_server.threaded_moto_server import ThreadedMotoServer
    except ImportError:
        raise SystemExit("the S3 server needs moto; install it with: pip install -e '.[dev,remote]'") from None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    sender.send(server.get_host_and_port()[1])
    threading.Event().wait()
