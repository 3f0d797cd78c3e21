"""A wheel in a fresh environment, and the project of docs/own_project.md in it, file by file and command by command."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.data.tiny_shards import sample, write_tar

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs" / "own_project.md").read_text()
PACKAGED = ("xmodal", "configs", "data_pipelines", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built without a network from a copy: building leaves files behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "shards", ".index"))
        else:
            shutil.copy(ROOT / name, tree / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=tree, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def xmodal(wheel, tmp_path_factory):
    """An environment with the wheel and the packages that are here; returns f(folder, *argv) -> (code, out, error)."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        entry = re.search(r"xmodal = ([\w.]+):(\w+)", archive.read(f"{site_info(archive)}/entry_points.txt").decode())
    (site / "present.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    script = home / "bin" / "xmodal"  # what pip makes of the entry point
    script.write_text(f"import sys\nfrom {entry[1]} import {entry[2]}\nsys.exit({entry[2]}())\n")
    flags = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"XLA_FLAGS": flags}

    def run(folder: Path, *argv: str, code: str = "") -> tuple[int, str, str]:
        command = ["-c", code] if code else [str(script), *argv]
        done = subprocess.run(
            [home / "bin" / "python", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def site_info(archive: zipfile.ZipFile) -> str:
    return next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)


def test_what_a_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert "xmodal = xmodal.__main__:console" in archive.read(f"{site_info(archive)}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"xmodal", "data_pipelines", site_info(zipfile.ZipFile(wheel))}
    assert {path.name for path in (ROOT / "configs").glob("*.py")} == {
        Path(name).name for name in names if re.fullmatch(r"xmodal/configs/\w+\.py", name)
    }
    for name in (
        "xmodal/configs/suites/emoji.json",
        "xmodal/reporting/assets/report.css",
        "xmodal/search/assets/search.js",
    ):
        assert name in names
    assert "data_pipelines/emoji/tokenizer.json" in names and not any(name.endswith(".tar.gz") for name in names)
    assert all(name.endswith(".py") for name in names if "stamps" in name), "data under the GPL"
    modules = {
        str(path.relative_to(ROOT)) for folder in ("xmodal", "data_pipelines") for path in (ROOT / folder).rglob("*.py")
    }
    assert modules <= names


def test_the_package_alone(xmodal, tmp_path):
    (tmp_path / "configs").mkdir()  # of the user, and no package of xmodal's
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "common.py").write_text("SEED = 5\n")
    recipe = "from configs.common import SEED\nfrom xmodal.configs import demo\n\n"
    recipe += "def get_config():\n    c = demo.get_config()\n    c.seed = SEED\n    return c\n"
    (tmp_path / "configs" / "demo.py").write_text(recipe)
    code = "import sys, xmodal; from xmodal.config import load_config\nprint(xmodal.__file__.startswith(sys.prefix))\n"
    code += "print(load_config('configs/demo.py').seed, load_config('demo.py').seed)"
    assert xmodal(tmp_path, code=code)[1] == "True\n5 0\n"
    listed = xmodal(tmp_path, "params", "--config", "clp.py")
    assert listed[0] == 1 and "Recipes here: configs/demo.py. Recipes of xmodal: align.py, " in listed[2]
    missing = xmodal(tmp_path, "train", "--config", "demo.py", "--workdir", "runs/demo")
    assert missing[0] == 1 and "Traceback" not in missing[2]
    assert "the emoji drawings are in xmodal's repository and not in the installed package" in missing[2]


@pytest.fixture
def project(tmp_path):
    """The folder that the document describes."""
    files = re.findall(r"^`([\w./]+)`:\n\n```python\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["configs/small.py", "birds/parts.py"]
    for name, text in [*files, ("birds/__init__.py", "")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    for shard, numbers in dict(train_0=range(16), held_out=range(16, 24)).items():
        write_tar(tmp_path / "data" / f"{shard.replace('_0', '-0000')}.tar", {f"{i:03d}": sample(i) for i in numbers})
    return tmp_path


def test_the_project_of_the_document(xmodal, project):
    sizes = ["--config.batch_size=8", "--config.schedule.total=2steps", "--config.data.lanes=1", "--config.log.every=1"]
    sizes += ["--config.evals.held_out.every=100%", "--config.evals.crowding.every=100%", "--config.checkpoint.every=0"]
    code, out, error = xmodal(project, "train", "--config", "configs/small.py:tiny", "--workdir", "runs/small", *sizes)
    assert code == 0, error
    assert "alignment" in out and (project / "runs/small/report.html").is_file()
    rows = (project / "runs/small/metrics.jsonl").read_text()
    assert "alignment/cosine" in rows and "crowding/crowding/cosine" in rows

    evaluate = ["eval", "--workdir", "runs/small", "--only", "crowding", "--json", "found.json", "--intervals", "none"]
    code, _, error = xmodal(project, *evaluate)  # a run is only read: its config names no module to import
    assert code == 1 and "`xmodal --import MODULE COMMAND`" in error and "Traceback" not in error
    code, out, error = xmodal(project, "--import", "birds.parts", *evaluate)
    assert code == 0 and '"crowding"' in (project / "found.json").read_text(), error

    code, _, error = xmodal(project, "params", "--config", "configs/small.py:large")
    assert code == 1 and "configs/small.py has no variant 'large'. Variants: small, tiny" in error


def test_the_commands_of_the_document_exist():
    from xmodal.__main__ import COMMANDS, _arguments, _parser

    commands = re.findall(r"^xmodal (.*?)(?:  +#.*)?$", DOC, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        top = _parser().parse_args(command.replace("'", "").split())
        if top.command:
            assert top.command in COMMANDS and _arguments("xmodal", top.command, top.rest)
