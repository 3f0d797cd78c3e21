"""Lists: every row is read once, whatever it holds, and read again from any place."""

import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from tiny_shards import encode

from data_pipelines.errors import DataError
from data_pipelines.images.formats import IMAGE_EXTENSIONS
from data_pipelines.io.listing import CAPTION_COLUMNS, IMAGE_COLUMNS, Wanted
from data_pipelines.io.lists import open_list
from data_pipelines.io.storage import Files


@pytest.fixture
def files():
    with Files() as files:
        yield files


def opened(path, files, image="", caption="", fields=None, columns=()):
    listing = open_list(str(path), files, columns, IMAGE_EXTENSIONS)
    images = Wanted("image", "image", image, IMAGE_COLUMNS, True, IMAGE_EXTENSIONS)
    listing.use({"image": images}, {"text": Wanted("caption", "caption", caption, CAPTION_COLUMNS)}, fields)
    return listing


def image_of(row):
    return row.parts.get("image")


def text_of(row):
    return row.texts.get("text")


def check_reads(listing):
    """All rows of a scan; any range read later gives the same rows."""
    rows = list(listing.scan())
    assert [row.number for row in rows] == list(range(len(rows)))
    for start, end in ((0, len(rows)), (1, 2), (63, 65), (100, 170), (len(rows) - 1, len(rows))):
        again = listing.read(start, end)
        strip = lambda some: [row._replace(parts={}, sizes={}) for row in some]
        assert strip(again) == strip(rows[start:end])
    return rows


def test_csv_with_quotes_line_ends_and_empty_lines(tmp_path, files):
    path = tmp_path / "list.csv"
    lines = ["\ufefffile_name,caption,width"]
    lines += [f'img/{i}.jpg,"thing {i}, with ""quotes""\nand two lines",{i}' for i in range(200)]
    path.write_bytes("\r\n".join([*lines[:50], "", *lines[50:]]).encode())
    rows = check_reads(opened(path, files))
    assert len(rows) == 200
    assert image_of(rows[7]) == "img/7.jpg"
    assert text_of(rows[7]) == 'thing 7, with "quotes"\nand two lines'
    assert rows[7].fields["width"] == "7"
    assert not any(row.problem for row in rows)


def test_damaged_rows_do_not_touch_their_neighbours(tmp_path, files):
    rows = [f"{i}.jpg\tthing {i}".encode() for i in range(10)]
    rows[3] = b"3.jpg\tthing \xff"
    rows[5] = b"5.jpg\tthing\tone too many"
    rows[7] = b"7.jpg"
    path = tmp_path / "list.tsv"
    path.write_bytes(b"\n".join([b"image\tcaption", *rows]) + b"\n")
    found = check_reads(opened(path, files))
    assert {row.number: row.problem for row in found if row.problem} == {3: "bad text", 5: "too many values"}
    assert (image_of(found[7]), text_of(found[7])) == ("7.jpg", None)
    assert [text_of(found[i]) for i in (2, 4, 6, 8)] == ["thing 2", "thing 4", "thing 6", "thing 8"]


def test_a_quote_that_is_never_closed_costs_a_row_and_is_no_crash(tmp_path, files):
    path = tmp_path / "list.csv"
    lines = [f"{i}.jpg,thing {i}" for i in range(300)]
    lines[40], lines[130], lines[299] = '40.jpg,"never closed', '"130.jpg,thing', '299.jpg,"at the end'
    lines[60:62] = ['60.jpg,"in two', 'lines"']
    lines[200:202] = ['200.jpg,"two lines', 'and too long",1,2']
    path.write_text("\n".join(["image,caption", *lines]))
    found = check_reads(opened(path, files))
    assert len(found) == 299 and [row.number for row in found if row.problem] == [40, 129, 199, 200, 298]
    assert [text_of(found[i]) for i in (41, 60, 61, 130, 201)] == [
        "thing 41", "in two\nlines", "thing 62", "thing 131", "thing 202",
    ]  # fmt: skip


def test_a_quote_in_a_tab_separated_file_is_a_character(tmp_path, files):
    """Read as the start of a quoted value it would join all that follows, up to the next quote, to one caption."""
    texts = {
        3: '"never closed', 5: '"A title" by someone', 7: '5" screen', 8: '"', 9: 'closed"', 11: '""',
        13: '"said ""so"" twice"',
    }  # fmt: skip
    lines = [f"{texts.get(i, f'thing {i}')}\t{i}.jpg" for i in range(150)]
    lines[20] = '"a\ttab"\t20.jpg'
    lines[30] = '"in two\nlines"\t30.jpg'
    path = tmp_path / "list.tsv"
    path.write_text("\n".join(["caption\timage", *lines]))
    found = check_reads(opened(path, files))
    expected = texts | {11: "", 13: 'said "so" twice', 20: "a\ttab", 30: "in two\nlines"}
    assert [text_of(row) for row in found] == [expected.get(i, f"thing {i}") for i in range(150)]
    assert [image_of(row) for row in found] == [f"{i}.jpg" for i in range(150)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_separator_is_found_in_the_header(tmp_path, files, separator):
    path = tmp_path / "list.csv"
    path.write_text(f"FilePath{separator}Title\na.jpg{separator}one\n")
    (row,) = opened(path, files).scan()
    assert (image_of(row), text_of(row)) == ("a.jpg", "one")


def test_a_file_without_a_header(tmp_path, files):
    path = tmp_path / "list.tsv"
    path.write_text("a thing\thttp://host/a.jpg\nanother\thttp://host/b.jpg\n")
    rows = list(opened(path, files, columns=("caption", "url")).scan())
    assert [(image_of(row), text_of(row)) for row in rows] == [
        ("http://host/a.jpg", "a thing"),
        ("http://host/b.jpg", "another"),
    ]


def test_json_lines(tmp_path, files):
    lines = [json.dumps(dict(image=f"{i}.jpg", caption=f"thing {i}", meta=dict(width=i))) for i in range(150)]
    lines[20], lines[21], lines[22] = "{not json", "[1, 2]", ""
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(lines))
    rows = check_reads(opened(path, files))
    assert len(rows) == 149
    assert {row.number for row in rows if row.problem == "bad json"} == {20, 21}
    assert rows[30].fields["meta"] == {"width": 31}


def test_a_folder_gives_labels_and_what_lies_beside_the_images(tmp_path, files):
    for name in ("cats/1.png", "cats/2.png", "dogs/inner/3.PNG", ".hidden/4.png", "dogs/.5.png", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(1))
    (tmp_path / "cats/2.txt").write_text("a small cat")
    (tmp_path / "cats/2.json").write_text('{"width": 24}')
    (tmp_path / "loop").symlink_to(tmp_path)
    listing = opened(tmp_path, files)
    rows = list(listing.scan())
    assert [listing.name(row) for row in rows] == ["cats/1.png", "cats/2.png", "dogs/inner/3.PNG"]
    assert [row.fields["label"] for row in rows] == ["cats", "cats", "inner"]
    assert [text_of(row) for row in rows] == [None, "a small cat", None]
    assert rows[1].fields["width"] == 24
    assert listing.read(1, 3) == rows[1:]


def test_parquet_of_paths(tmp_path, files):
    columns = dict(image=[f"{i}.jpg" for i in range(200)], caption=[f"thing {i}" for i in range(200)], n=range(200))
    path = tmp_path / "list.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=70)
    listing = opened(path, files)
    rows = check_reads(listing)
    assert list(listing.edges()) == [0, 70, 140]
    assert rows[199].fields == dict(image="199.jpg", caption="thing 199", n=199)


@pytest.mark.parametrize("holder", [True, False])
def test_parquet_with_images_inside(tmp_path, files, holder):
    images = [encode(i) for i in range(12)]
    images[4] = None
    held = [None if image is None else dict(bytes=image, path="x.png") for image in images] if holder else images
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table(dict(image=held, text=["a"] * 12)), path, row_group_size=5)
    listing = opened(path, files)
    assert [image_of(row) is None for row in listing.scan()] == [i == 4 for i in range(12)]
    assert [image_of(row) for row in listing.read(2, 8)] == images[2:8]
    assert listing.read(0, 1)[0].fields == dict(text="a")


def test_parquet_with_paths_where_there_are_no_bytes(tmp_path, files):
    path = tmp_path / "data.parquet"
    rows = [dict(bytes=None, path="a.png"), dict(bytes=b"x", path=None), dict(bytes=None, path=None)]
    pyarrow.parquet.write_table(pyarrow.table(dict(image=rows, text=["a", "b", "c"])), path)
    listing = opened(path, files)
    assert [image_of(row) for row in listing.scan()] == ["a.png", b"x", None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "imag,caption\n", "say with `image` which of its columns holds the images: imag, caption"),
        ("list.tsv", "a thing\thttp://host/a.jpg\n", "if its first line is not a header, .* with `columns`"),
        ("list.csv", "", "empty"),
        ("list.csv", "a.jpg,a.jpg\n", "repeats 'a.jpg'.*`columns`"),
        ("list.xlsx", "x", "neither a folder nor a list"),
        ("list.parquet", "no parquet", "not a parquet file"),
        ("list.jsonl", '{"image": "a.jpg", "caption": ["a", "b"]}', "'caption' of row 1.*max_list=1"),
    ],
)
def test_what_cannot_be_a_list_is_named(tmp_path, files, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        list(opened(path, files).scan())
    assert name in str(error.value)


def test_a_column_that_is_not_there_is_named_with_the_closest_one(tmp_path, files):
    path = tmp_path / "list.csv"
    path.write_text("image,caption_en\n")
    with pytest.raises(DataError, match=r"no column 'caption_e', which `caption` names; did you mean 'caption_en'\?"):
        opened(path, files, caption="caption_e")


def test_only_parquet_needs_pyarrow(tmp_path):
    (tmp_path / "list.csv").write_text("image,caption\na.jpg,one\n")
    (tmp_path / "list.parquet").write_text("")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from data_pipelines.io.lists import open_list; from data_pipelines.io.storage import Files\n"
        f"lists = [{str(tmp_path / 'list.csv')!r}, {str(tmp_path / 'list.parquet')!r}]\n"
        "print(open_list(lists[0], Files()).columns); open_list(lists[1], Files())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "('image', 'caption')" in done.stdout
    assert "pip install -e '.[tables]'" in done.stderr
