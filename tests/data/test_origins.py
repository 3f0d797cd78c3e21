"""`data build` keeps where samples came from, and whoever shows them says it."""

import json

import pytest
from tiny_shards import encode, sample, write_tar

from data_pipelines.io.storage import Files
from data_pipelines.sources import open_source
from xmodal.__main__ import main


def built(tmp_path, config, *arguments) -> list[str]:
    """The paths that the samples of shards made by `data build` have."""
    out = tmp_path / "out"
    assert main(["data", "build", *map(str, arguments), "--out", str(out), "--workers", "1"]) == 0
    with Files() as files:
        source = open_source("main", dict(urls=str(out / "*.tar")), config, files, every_field=True)
        table = source.blocks(2**20)
        samples = [sample for i in range(len(table)) for sample in source.read(table, i)]
    assert all(sample.record.fields["source_path"] == sample.path for sample in samples)
    return [sample.path for sample in samples]


def test_folders(config, tmp_path):
    for name in ("cats/grey tom.png", "dogs/rex.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(encode(len(name)))
    found = built(tmp_path, config, tmp_path / "photos", "--template", "a {label}")
    parent = tmp_path.name
    assert found == [f"{parent}/photos/cats/grey tom.png", f"{parent}/photos/dogs/rex.png"]


def test_lists(config, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(1))
    (tmp_path / "list.jsonl").write_text(json.dumps(dict(image="a.png", caption="one", width=3)))
    assert built(tmp_path, config, tmp_path / "list.jsonl") == ["a.png"]


def test_shards_and_shards_of_shards(config, tmp_path):
    samples = {f"{i:03d}": sample(i) for i in range(2)}
    samples["002"] = sample(2) | dict(json=json.dumps(dict(source_path="kept/as/it.was")).encode())
    write_tar(tmp_path / "old.tar", samples)
    found = built(tmp_path, config, tmp_path / "old.tar", "--type", "tar")
    assert found == [f"{tmp_path.name}/old.tar/000", f"{tmp_path.name}/old.tar/001", "kept/as/it.was"]


@pytest.mark.parametrize("kind", ["list", "shards"])
def test_the_preview_shows_them(config, tmp_path, kind):
    (tmp_path / "an odd name.png").write_bytes(encode(1))
    (tmp_path / "list.jsonl").write_text(json.dumps(dict(image="an odd name.png", caption="one")))
    data = tmp_path / "list.jsonl"
    if kind == "shards":
        built(tmp_path, config, data)
        data = tmp_path / "out" / "000000.tar"
    page = tmp_path / "page.html"
    assert main(["data", "preview", str(data), "--out", str(page), "--config.data.inputs.image.size=8"]) == 0
    assert "an odd name.png" in page.read_text().split("<main>")[1]
