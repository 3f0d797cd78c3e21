"""The helpers of the fuzz tests: seeds decide, most damages change something, and hangs are seen."""

import json
import time

import pytest

from tests import fuzzing

DOCUMENT = {"a": [1, {"b": "c"}], "d": None}


def test_damage_is_decided_by_the_seed_and_changes_most_inputs():
    data = bytes(range(256)) * 4
    cases = [fuzzing.damaged(data, seed) for seed in range(200)]
    assert cases == [fuzzing.damaged(data, seed) for seed in range(200)]
    assert sum(case != data for case in cases) > 180 and {len(case) > len(data) for case in cases} == {True, False}
    assert all(isinstance(fuzzing.damaged(b"", seed), bytes) for seed in range(50))


def test_damaged_documents_are_decided_by_the_seed_and_leave_the_original():
    before = json.dumps(DOCUMENT)
    cases = [fuzzing.damaged_json(DOCUMENT, seed) for seed in range(200)]
    assert repr(cases) == repr([fuzzing.damaged_json(DOCUMENT, seed) for seed in range(200)])
    assert sum(repr(case) != repr(DOCUMENT) for case in cases) > 160 and json.dumps(DOCUMENT) == before
    json.loads(json.dumps(cases))


def test_what_a_reader_may_do(monkeypatch):
    def fails(error):
        raise error

    fuzzing.survives(lambda: None, (ValueError,), 0)
    fuzzing.survives(lambda: fails(ValueError("said")), (ValueError,), 0)
    with pytest.raises(AssertionError, match="case 7: KeyError"):
        fuzzing.survives(lambda: fails(KeyError("x")), (ValueError,), "case 7")
    with pytest.raises(AssertionError, match="without a message"):
        fuzzing.survives(lambda: fails(ValueError("")), (ValueError,), 0)
    monkeypatch.setattr(fuzzing, "SECONDS", 0.1)
    with pytest.raises(AssertionError, match="no answer"):
        fuzzing.survives(lambda: time.sleep(5), (), 0)
