"""A local page to search an index with words and pictures, and its JSON API.

python -m xmodal serve --index index
python -m xmodal serve --index index --port 9000

It listens to this machine alone. To reach it from elsewhere, `ssh -L 8000:localhost:8000 HOST` needs nothing more;
`--host 0.0.0.0 --name HOST` opens it to the network, without any password. Ctrl-C ends it.
"""

import argparse
import contextlib
import sys

from xmodal.commands.search import add_index_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_index_arguments(parser)
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen to; this machine by default")
    parser.add_argument("--name", nargs="+", default=[], metavar="HOST", help="further names that browsers use for it")


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C."""
    from xmodal.distributed.runtime import set_compile_cache
    from xmodal.search.query import Searcher
    from xmodal.search.server import SearchServer

    set_compile_cache("~/.cache/xmodal/jax")
    searcher = Searcher.open(args.index, model=args.model, engine=args.engine)
    with SearchServer(searcher, args.host, args.port, args.name) as server:
        print("loading embeddings and compiling ...", flush=True)
        searcher.warm()
        print(f"{len(searcher.index):,} samples at {server.url} (Ctrl-C ends)", flush=True)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print("anyone who reaches this address can search, without a password", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
