"""What is known of a list is not looked for again, and is not believed when it no longer holds."""

import contextlib
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from source_checks import open_it, read_whole
from tiny_shards import encode

from data_pipelines.io.parquet import Parquet
from data_pipelines.io.storage import Files
from data_pipelines.io.text_lists import Csv, JsonLines

ROWS = 400


@pytest.fixture
def files():
    with Files() as files:
        yield files


@pytest.fixture
def images(tmp_path):
    """A folder of images of which two cannot be used."""
    (tmp_path / "img").mkdir()
    for i in range(ROWS):
        (tmp_path / "img" / f"{i}.png").write_bytes(b"" if i == 5 else encode(i % 7))
    (tmp_path / "img" / "6.png").unlink()
    return tmp_path


def rows():
    return [dict(image=f"img/{i}.png", caption="" if i == 9 else f"thing {i}", width=i) for i in range(ROWS)]


def write_csv(folder):
    lines = [",".join(str(value) for value in row.values()) for row in rows()]
    (folder / "list.csv").write_text("\n".join(["image,caption,width", *lines]))
    return folder / "list.csv"


def write_jsonl(folder):
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return folder / "list.jsonl"


def write_parquet(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), folder / "list.parquet", row_group_size=90)
    return folder / "list.parquet"


def write_embedded(folder):
    table = [
        row | dict(image=dict(bytes=None if i == 6 else b"" if i == 5 else encode(i % 7), path=None))
        for i, row in enumerate(rows())
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "embedded.parquet", row_group_size=90)
    return folder / "embedded.parquet"


@contextlib.contextmanager
def scans():
    """Notes which lists are scanned."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Csv, JsonLines, Parquet):
            scan = kind.scan
            patch.setattr(kind, "scan", lambda self, scan=scan: seen.append(os.path.basename(self.path)) or scan(self))
        yield seen


def opened(files, path, **entry):
    return open_it(files, type="files", urls=str(path), **entry)


def facts(source):
    blocks = source.blocks(2_000)
    return blocks.digest(), source.identity(), source.samples, source.bytes, source.skipped, list(source.faults())


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet, write_embedded])
def test_a_list_is_looked_at_once(files, images, write):
    path = write(images)
    with scans() as seen:
        first = opened(files, path)
        assert seen == [path.name]
        second = opened(files, path)
        assert seen == [path.name]
    assert first.skipped == {"empty image": 1, "no image": 1, "empty caption": 1}
    assert facts(first) == facts(second)
    assert read_whole(first, 2_000) == read_whole(second, 2_000)


def test_other_rules_are_other_knowledge(files, images):
    path = write_csv(images)
    with scans() as seen:
        assert opened(files, path).samples == ROWS - 3
        assert opened(files, path, filter="width >= 100").samples == ROWS - 100
        assert opened(files, path, caption="width").samples == ROWS - 2
        assert opened(files, path, templates=((1, "{width}"),)).samples == ROWS - 2
        assert len(seen) == 4
        assert opened(files, path, filter="width >= 100").samples == ROWS - 100
        assert opened(files, path).samples == ROWS - 3
        assert len(seen) == 4


def test_of_several_lists_only_the_changed_one_is_looked_at(files, images, caplog):
    one, two = write_csv(images), write_jsonl(images)
    urls = [str(one), str(two)]
    open_it(files, type="files", urls=urls)
    two.write_text("\n".join(two.read_text().splitlines()[:-1]))
    with scans() as seen:
        source = open_it(files, type="files", urls=urls)
    assert seen == ["list.jsonl"]
    assert source.samples == 2 * (ROWS - 3) - 1
    assert "list.jsonl, the list changed" in caplog.text


@pytest.mark.parametrize(("name", "content"), [("6.png", encode(1)), ("5.png", encode(2))])
def test_images_that_have_come_are_found(files, images, caplog, name, content):
    path = write_csv(images)
    opened(files, path)
    (images / "img" / name).write_bytes(content)
    assert opened(files, path).samples == ROWS - 2
    assert "images that could not be used changed" in caplog.text


def test_one_image_that_is_gone_is_a_fault_and_many_are_noticed(files, images, caplog):
    path = write_csv(images)
    opened(files, path)
    (images / "img" / "20.png").unlink()  # not among those that are looked for
    source = opened(files, path)
    assert [s.key for s in read_whole(source, 2_000) if s.fault == "no image"] == ["row 21"]
    for i in range(0, ROWS, 2):
        (images / "img" / f"{i}.png").unlink(missing_ok=True)
    assert opened(files, path).samples == ROWS // 2 - 2
    assert "images are missing that were there" in caplog.text


def test_a_list_in_a_bucket_is_kept_beside_it_and_a_damaged_file_is_made_again(files, caplog):
    lines = [f"https://host/{i}.png,thing {i}" for i in range(ROWS)]
    files.write_atomic("memory://lists/a.csv", "\n".join(["url,caption", *lines]).encode())
    assert opened(files, "memory://lists/a.csv").samples == ROWS
    (kept,) = files.glob("memory://lists/.index/*.npz")
    with scans() as seen:
        assert opened(files, "memory://lists/a.csv").samples == ROWS
        assert not seen
        files.write_atomic(kept, b"no npz")
        assert opened(files, "memory://lists/a.csv").samples == ROWS
        assert seen == ["a.csv"]
    assert "cannot be read" in caplog.text
    assert "host" not in caplog.text
