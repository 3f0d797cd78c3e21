"""Search an index that `embed` made: by text, by picture, or by both at once.

python -m xmodal search "a red flag" --index index
python -m xmodal search --image photo.jpg --index index --top 20
python -m xmodal search "at night" --image photo.jpg --weight 0.6 --index index --json

The result is the exact top k of the stored embeddings, whichever engine finds it. A text and a picture make one query:
the normalised sum of their embeddings, (1 - weight) times the text and weight times the picture.
"""

import argparse
import json
import pathlib
import sys
import time

ENGINES = ("auto", "numpy", "jax", "faiss")
AMONG = dict(images="image", captions="text")


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how an index is opened."""
    parser.add_argument("--index", required=True, type=pathlib.Path, metavar="DIR", help="made by `embed`")
    parser.add_argument("--model", metavar="MODEL", help="where the model of the index is now, if it was moved")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: numpy on a CPU, jax on accelerators")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("text", nargs="?", default="", help="what to look for")
    add_index_arguments(parser)
    parser.add_argument("--image", type=pathlib.Path, metavar="FILE", help="picture to look for")
    parser.add_argument("--weight", type=float, default=0.5, metavar="W", help="of the picture beside a text, 0 to 1")
    parser.add_argument("--among", choices=AMONG, default="images", help="what to compare with; images by default")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="results")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Searches, and prints the results."""
    from data_pipelines.errors import DataError
    from data_pipelines.names import label_at, parts_of
    from xmodal.distributed.runtime import set_compile_cache
    from xmodal.reporting.summary import print_table
    from xmodal.search.query import Query, Searcher

    try:
        image = args.image.read_bytes() if args.image else b""
    except OSError as error:
        raise DataError(f"--image {args.image}: {error.strerror}") from None
    query = Query(args.text, image, weight=args.weight, among=AMONG[args.among], top=args.top)
    set_compile_cache("~/.cache/xmodal/jax")
    searcher = Searcher.open(args.index, model=args.model, engine=args.engine)
    began = time.perf_counter()
    hits = searcher.search(query)
    seconds = time.perf_counter() - began
    warning = searcher.warning(args.text)
    if args.json:
        asked = dict(text=args.text, image=str(args.image or ""), weight=args.weight, among=query.among)
        found = dict(query=asked) | (dict(warning=warning) if warning else {})
        found |= dict(results=[hit.as_json() for hit in hits])
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    rows = [
        [
            place,
            f"{hit.score:.4f}",
            hit.record["caption"],
            hit.record.get("file", hit.record["key"]),
            label_at(parts_of(hit.record["shard"]), 2),
        ]
        for place, hit in enumerate(hits, 1)
    ]
    print_table(f"{args.index}: {len(searcher.index):,} samples", ["", "cosine", "caption", "key", "shard"], rows)
    print(f"{seconds:.2f} s, loading the embeddings included")
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
