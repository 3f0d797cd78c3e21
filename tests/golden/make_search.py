"""Writes search.npz: what FAISS's flat index finds among random unit vectors.

python -m tests.golden.make_search     # needs faiss-cpu
"""

from pathlib import Path

import faiss
import numpy as np

ROWS, DIM, QUERIES, TOP = 900, 20, 7, 25


def main() -> None:
    rng = np.random.default_rng(0)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    vectors = unit(rng.standard_normal((ROWS, DIM))).astype(np.float16)
    queries = unit(rng.standard_normal((QUERIES, DIM))).astype(np.float32)
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors.astype(np.float32))
    scores, rows = index.search(queries, TOP)
    versions = f"faiss {faiss.__version__}, numpy {np.__version__}"
    out = Path(__file__).with_name("search.npz")
    np.savez_compressed(
        out, vectors=vectors, queries=queries, scores=scores, rows=rows.astype(np.int32), versions=np.array(versions)
    )
    print(f"{out}: {out.stat().st_size:,} bytes, {versions}")


if __name__ == "__main__":
    main()
