"""What a source is, and how its texts are encoded, is told by the data; where both disagree, one line says so."""

import pytest
from tiny_inputs import data_section
from tiny_shards import encode, sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source
from data_pipelines.sources.files import FilesSource
from data_pipelines.sources.kinds import kind_of
from data_pipelines.sources.tars import TarSource
from data_pipelines.stream.evalset import EvalSet


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encode(1))
    (tmp_path / "list.csv").write_text("image,caption\na.png,cat\nb.png,dog\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode(1))
    (tmp_path / "photos" / "a.txt").write_text("cat")
    write_tar(tmp_path / "s.tar", {"a": sample(1)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(**entry):
    with Files() as files:
        return open_source("d", entry, data_section(), files)


def test_the_type_is_told_by_the_names(folder):
    kinds = {"s.tar": TarSource, "list.csv": FilesSource, "photos": FilesSource, "{s,s}.tar": TarSource}
    for urls, kind in kinds.items():
        assert type(opened(urls=urls)) is kind
    assert type(opened(urls="list.csv", type="")) is FilesSource
    assert EvalSet("list.csv", data_section()).records[1].captions == ["dog"]


@pytest.mark.parametrize(
    "entry, kind",
    [
        (dict(urls="gs://bucket/a-{00..11}.tar.gz"), "tar"),
        (dict(urls="a.tgz"), "tar"),
        (dict(urls=("https://host/a.tar?key=x.csv",)), "tar"),
        (dict(urls="https://host/a.parquet?key=1"), "files"),
        (dict(urls="{a.JSONL,b.jsonl}"), "files"),
        (dict(dataset="mnist"), "tfds"),
        (dict(urls="what"), "tar"),
        (dict(urls="what", type="files"), "files"),
        (dict(type="synthetic", samples=3), "synthetic"),
    ],
)
def test_the_type_of_names_that_need_not_exist(entry, kind):
    assert kind_of(entry, "data.sources.d") == kind


@pytest.mark.parametrize(
    "entry, words",
    [
        (dict(urls="s.tar", type="files"), r"'s.tar' is a tar: .* set --config\.data\.sources\.d\.type=tar$"),
        (dict(urls="list.csv", type="tar"), r"a folder or a list: .* --config\.data\.sources\.d\.type=files$"),
        (dict(urls="photos", type="tar"), r"--config\.data\.sources\.d\.type=files$"),
        (dict(urls=("s.tar", "list.csv")), r"tars as well as folders or lists \('s.tar' and 'list.csv'\)"),
    ],
)
def test_names_of_another_type_are_refused(folder, entry, words):
    with pytest.raises(DataError, match=words):
        opened(**entry)


def test_a_folder_of_shards_says_how_they_are_named(folder):
    (folder / "shards").mkdir()
    write_tar(folder / "shards" / "s.tar", {"a": sample(1)})
    with pytest.raises(DataError, match=r"no files .*shards/\*\.tar'"):
        opened(urls="shards")


TEXTS = {
    ("gb18030", "GB18030"): ("一只长颈鹿站在树旁边", "红色的心、很大。", "两个人在骑自行车"),
    ("big5", "BIG5-HKSCS"): ("一隻長頸鹿站在樹旁邊", "紅色的心、很大。", "兩個人在騎自行車"),
    ("euc_kr", "EUC-KR"): ("빨간 깃발이 바람에 흔들린다", "나무 옆에 서 있는 기린", "자전거를 타는 사람"),
    ("cp932", "SHIFT_JIS"): ("木のそばに立つキリン", "赤いハート", "自転車に乗る人"),
    ("cp1252", "WINDOWS-1252"): ("Zwei Äpfel über dem Fluß", "schöne Grüße", "Müller"),
}


@pytest.mark.parametrize("codec, name", TEXTS)
@pytest.mark.parametrize("long", [1, 3000])
def test_a_list_that_is_no_utf8_names_its_encoding(folder, codec, name, long):
    lines = [f"a.png,{text}" for text in TEXTS[codec, name]] * long
    (folder / "list.csv").write_text("\n".join(["image,caption", *lines]), encoding=codec)
    with pytest.raises(DataError, match=rf"not UTF-8, it looks like {name}, .*iconv -f {name} -t UTF-8 list\.csv"):
        opened(urls="list.csv")


def test_json_that_is_no_utf8_names_its_encoding(folder):
    texts = TEXTS["gb18030", "GB18030"]
    rows = ",\n".join(f'{{"image": "a.png", "caption": "{text}"}}' for text in texts)
    (folder / "list.json").write_text(f"[{rows}]", encoding="gb18030")
    with pytest.raises(DataError, match=r"not UTF-8, it looks like GB18030, .*iconv -f GB18030"):
        opened(urls="list.json")


def test_a_few_damaged_lines_are_rows_left_out(folder):
    rows = [b"image,caption", "a.png,schön".encode(), b"a.png,sch\xf6n", b"a.png,cat"]
    (folder / "list.csv").write_bytes(b"\n".join(rows))
    assert opened(urls="list.csv").skipped == {"bad text": 1}


@pytest.mark.parametrize(
    "urls, words", [("pairs.csv", "no file matches"), ("pairs", "no file or folder"), ("s-*.tar", "no shard matches")]
)
def test_what_is_missing_is_called_what_it_is(folder, urls, words):
    with pytest.raises(DataError, match=words) as error:
        opened(urls=urls)
    assert str(error.value).endswith(f"looked for {folder / urls}")


def test_options_in_hints_have_their_full_names(folder):
    (folder / "list.csv").write_text("image,caption\nnone.png,cat\n")
    with pytest.raises(DataError, match=r"--config\.evals\.held_out\.source\.root=DIR$"):
        EvalSet("list.csv", data_section(), where="evals.held_out.source")
    with pytest.raises(DataError, match=r"--config\.data\.sources\.d\.root=DIR \(a data command: --root DIR\)$"):
        opened(urls="list.csv")
