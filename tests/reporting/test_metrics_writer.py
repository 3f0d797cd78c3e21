"""The metric series: valid lines, resume without doubles, TensorBoard, full disks."""

import errno
import json
import math
import os
import struct

import pytest
from tensorboardX.proto import event_pb2

from xmodal.reporting.files import read_json, write_json, write_text
from xmodal.reporting.metrics import MetricsWriter, read_metrics


def events(folder):
    """Event files are length (8 bytes), checksum (4), record, checksum (4)."""
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_rows_are_strict_json_whatever_the_values(tmp_path):
    with MetricsWriter(tmp_path, False, 0) as writer:
        writer.write(1, 8, {"train/loss": math.nan, "lr": math.inf, "x": 0.5}, alarms=["look: ünï"])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["train/loss"] is None and row["lr"] is None and row["x"] == 0.5
    (row,) = read_metrics(tmp_path)
    assert (row["step"], row["samples"], row["alarms"]) == (1, 8, ["look: ünï"])
    assert math.isnan(row["train/loss"])


def test_each_row_is_readable_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, False, 0)
    writer.write(1, 8, {"loss": 2.0})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]
    writer.close()


def test_kill_and_resume_leaves_the_series_of_an_unbroken_run(tmp_path):
    with MetricsWriter(tmp_path, True, 0) as writer:
        for step in (10, 20, 30):
            writer.write(step, 8 * step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "samp')  # killed in the middle of a line
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 30]

    with MetricsWriter(tmp_path, True, 20) as writer:  # the last checkpoint is older than the last row
        assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]
        writer.write(30, 240, {"loss": -30.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 10.0), (20, 20.0), (30, -30.0)]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert not list(tmp_path.glob(".*tmp"))


def test_a_new_run_in_the_folder_starts_an_empty_series(tmp_path):
    for value in (1.0, 2.0):
        with MetricsWriter(tmp_path, False, 0) as writer:
            writer.write(1, 8, {"loss": value})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]


def test_tensorboard_holds_the_same_and_hides_what_resume_dropped(tmp_path):
    with MetricsWriter(tmp_path, True, 0) as writer:
        writer.write(10, 80, {"train/loss": 2.5, "bad": math.nan}, alarms=["slow"])
    with MetricsWriter(tmp_path, True, 10) as writer:
        writer.write(20, 160, {"train/loss": 1.5})
    found = list(events(tmp_path / "tensorboard"))
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value if v.HasField("simple_value")]
    assert scalars == [(10, "train/loss", 2.5), (20, "train/loss", 1.5)]
    assert [v.tensor.string_val for e in found for v in e.summary.value if v.tag.startswith("alarms")] == [[b"slow"]]
    assert [e.step for e in found if e.HasField("session_log")] == [11]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named_with_the_remedy(tmp_path):
    writer = MetricsWriter(tmp_path, False, 0)
    writer._file.close()
    writer._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl.*Free space.*--workdir"):
        writer.write(1, 8, {"loss": 1.0})


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_json(tmp_path / "a" / "x.json", {"value": 1, "nan": math.nan})
    assert read_json(path) == {"value": 1, "nan": None}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"x\.json.*Free space"):
        write_text(path, "new")
    assert read_json(path) == {"value": 1, "nan": None}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")
    assert read_json(tmp_path / "missing.json", default={}) == {}
