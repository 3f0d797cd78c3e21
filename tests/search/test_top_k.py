"""Exact nearest neighbours: every engine finds what sorting all float64 scores finds, and what FAISS finds."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.errors import DataError
from xmodal.config import ConfigError
from xmodal.search.top_k import ENGINES, FaissNearest, JaxNearest, NumPyNearest, open_nearest
from xmodal.search.vectors import Vectors

GOLDEN = Path(__file__).parents[1] / "golden" / "search.npz"
OWN = [NumPyNearest, JaxNearest]
has_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def unit(rows, dim, seed=0, dtype=np.float16):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def split(matrix, *ends):
    return Vectors(np.split(matrix, ends), matrix.shape[1])


def sorted_out(matrix, queries, k):
    """(scores, rows) of the k best by float64 scores, equal ones by number."""
    scores = (queries.astype(np.float64)[:, None] * matrix.astype(np.float64)).sum(-1)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", OWN)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_equals_a_sort_of_all_scores(engine, dtype):
    matrix, queries = unit(1003, 24, dtype=dtype), unit(19, 24, seed=1, dtype=np.float32)
    nearest = engine(split(matrix, 0, 1, 400, 400, 997))
    for k in (1, 7):
        same(nearest.top(queries, k), sorted_out(matrix, queries, k))
    same(nearest.top(queries[:1], 7), sorted_out(matrix, queries[:1], 7))  # a single query goes another way


@pytest.mark.parametrize("engine", OWN)
def test_equal_scores_are_in_the_order_of_their_numbers(engine):
    distinct = unit(40, 16)
    matrix = distinct[np.random.default_rng(2).integers(0, 40, 800)]  # every row is there some twenty times
    matrix[100:500] = distinct[3]  # and one far oftener than candidates are asked for at first
    queries = np.concatenate([distinct[3:5].astype(np.float32), unit(2, 16, seed=3, dtype=np.float32)])
    same(engine(split(matrix, 333)).top(queries, 90), sorted_out(matrix, queries, 90))


@pytest.mark.parametrize("engine", OWN)
def test_scores_that_only_float64_tells_apart(engine):
    """Rows that differ by less than the rounding of a float32 sum still come in their exact order."""
    base = np.zeros((300, 64), np.float32)
    base[:, :32] = 1 / np.sqrt(32)
    base[:, 33] = np.random.default_rng(4).permutation(300) * 1e-9
    query = np.zeros((1, 64), np.float32)
    query[:, :34] = 1 / np.sqrt(34)
    same(engine(split(base)).top(query, 20), sorted_out(base, query, 20))


@pytest.mark.parametrize("engine", OWN)
def test_small_and_empty_sets(engine):
    matrix, queries = unit(5, 8), unit(2, 8, seed=1, dtype=np.float32)
    same(engine(split(matrix)).top(queries, 50), sorted_out(matrix, queries, 5))
    scores, rows = engine(split(matrix)).top(queries[:0], 3)
    assert scores.shape == rows.shape == (0, 3)
    with pytest.raises(DataError, match=r"queries are \(2, 7\); expected \[queries, 8\]"):
        engine(split(matrix)).top(queries[:, :7], 3)


@pytest.mark.parametrize("devices", [8, 1])  # of one, JAX asks for all rows at once
def test_blocks_of_a_device_change_nothing(monkeypatch, devices):
    own = jax.devices()[:devices]
    monkeypatch.setattr("jax.local_devices", lambda: own)
    monkeypatch.setattr("xmodal.search.top_k._BLOCK_BYTES", 4 * 24 * 50)  # 50 rows at a time and device
    matrix, queries = unit(1501, 24), unit(3, 24, seed=1, dtype=np.float32)
    same(JaxNearest(split(matrix, 700)).top(queries, 11), sorted_out(matrix, queries, 11))


@pytest.mark.parametrize("engine", [*OWN, pytest.param(FaissNearest, marks=has_faiss)])
def test_finds_what_faiss_found(engine):
    with np.load(GOLDEN) as golden:
        nearest = engine(split(golden["vectors"], 300))
        scores, rows = nearest.top(golden["queries"], golden["rows"].shape[1])
        np.testing.assert_array_equal(rows, golden["rows"])
        np.testing.assert_allclose(scores, golden["scores"], rtol=0, atol=1e-6)


def test_engines_are_chosen_by_name(monkeypatch):
    vectors = split(unit(5, 8))
    assert {name: cls.name for name, cls in ENGINES.items()} == dict(numpy="numpy", jax="jax", faiss="faiss")
    assert type(open_nearest(vectors)) is NumPyNearest  # on a CPU
    assert type(open_nearest(vectors, "jax")) is JaxNearest
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="FAISS is not installed"):
        open_nearest(vectors, "faiss")


def test_vectors_are_rows_of_several_arrays():
    matrix = unit(50, 6)
    vectors = split(matrix, 0, 13, 13, 40)
    wide = matrix.astype(np.float32)
    assert len(vectors) == 50 and vectors.dtype == np.float16
    np.testing.assert_array_equal(vectors.matrix(), wide)
    np.testing.assert_array_equal(vectors.rows(11, 42), wide[11:42])
    np.testing.assert_array_equal(vectors.rows(45, 99), wide[45:])
    order = np.array([49, 0, 13, 12, 13, 40])
    np.testing.assert_array_equal(vectors.take(order), wide[order])
    assert vectors.take(order[:0]).shape == (0, 6) and len(Vectors([], 6).matrix()) == 0
