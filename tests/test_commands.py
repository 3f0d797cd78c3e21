"""The command line: what it lists, what it refuses, with which exit code, and which recipes it finds."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import train as train_script
import xmodal
from tests.tiny_runs import finish, start
from xmodal import recipes
from xmodal.__main__ import COMMANDS, main
from xmodal.config import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("base", "__init__"))


def ended(capsys, *argv: str) -> tuple[int, str, str]:
    """Returns (exit code, output, errors) of a command line."""
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


# ------------------------------------------------------------------------------------------ commands


def test_alone_it_lists_its_commands(capsys):
    code, out, error = ended(capsys)
    assert code == 2 and not out
    for name, module in COMMANDS.items():
        summary = importlib.import_module(f"xmodal.commands.{module}").__doc__.splitlines()[0]
        assert re.search(rf"^  {name} +{re.escape(summary)}$", error, re.MULTILINE), name
    assert ended(capsys, "--help") == (0, error, "")
    for group, member in dict(data="stats", bench="loss").items():
        code, _, error = ended(capsys, group)
        assert code == 2 and member in error


def test_the_version(capsys):
    assert ended(capsys, "--version") == (0, f"xmodal {xmodal.__version__}\n", "")
    assert f'version = "{xmodal.__version__}"' in (ROOT / "pyproject.toml").read_text()


USAGE = {
    "no such command": (["trian"], "there is no command 'trian'. Did you mean 'train'? Commands: train, eval"),
    "no such option": (["report", "--worker", "x"], "--workdir"),
    "a stray argument": (["report", "--workdir", "x", "y"], "unknown arguments: y"),
    "options without a recipe": (["report", "--workdir", "x", "--config.seed=1"], "unknown arguments: --config.seed=1"),
    "a stray argument of a run": (
        ["train", "--config", "demo.py", "--workdir", "x", "lr=1"],
        "unknown arguments: lr=1; options are set with --config.KEY=VALUE",
    ),
    "no recipe": (["train", "--workdir", "x"], "required: --config"),
    "no such action": (["data", "stat"], "invalid choice: 'stat'"),
    "no data": (["data", "stats"], "no data are named"),
    "too few": (["compare", "runs/a"], "two or more"),
    "options that exclude each other": (
        ["export", "--workdir", "x", "--to", "hf", "--out", "y", "--step", "1", "--average", "1,2"],
        "--step and --average exclude each other",
    ),
    "a module that does not exist": (["--import", "nowhere.losses", "report", "--workdir", "x"], "no module 'nowhere'"),
    "a pattern": (["params", "--config", "demo.py", "--match", "("], "--match '(' is not a regular expression"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_have_exit_code_2(capsys, case):
    argv, message = USAGE[case]
    code, out, error = ended(capsys, *argv)
    assert code == 2 and message in error and "Traceback" not in error, error
    assert not out


def test_train_py_is_the_command_train(capsys):
    with pytest.raises(SystemExit) as end:
        train_script.main(["--config", "configs/dem.py", "--workdir", "x"])
    assert end.value.code == 1
    assert capsys.readouterr().err == ended(capsys, "train", "--config", "configs/dem.py", "--workdir", "x")[2]


# ------------------------------------------------------------------------------------------ recipes


def test_recipes_of_the_package_are_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_config(str(ROOT / "configs" / "clip.py:B16"))
    assert load_config("clip.py:B16") == load_config("configs/clip.py:B16") == found
    (tmp_path / "configs").mkdir()
    text = "from xmodal.configs import base\ndef get_config():\n    c = base.get_config()\n    c.seed = 7\n    return c"
    (tmp_path / "configs" / "clip.py").write_text(text)
    assert load_config("configs/clip.py").seed == 7  # a file of that name comes first
    assert load_config("clip.py").seed == 0
    assert recipes.find(Path("emoji.json"), "suites/*.json") == recipes.HOME / "suites" / "emoji.json"


def test_a_recipe_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('no recipe')")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("def get_config(): ...")
    with pytest.raises(
        ConfigError, match=r"no recipe cilp\.py\. Did you mean 'clip\.py'.* Recipes of xmodal: align.py, b"
    ) as at:
        load_config("cilp.py")
    assert "Recipes here: configs/mine.py." in str(at.value) and "train.py" not in str(at.value)
    assert "base.py" not in str(at.value)
    with pytest.raises(ConfigError, match=r"no recipe configs/mien\.py\. Did you mean 'configs/mine\.py'"):
        load_config("configs/mien.py:small")
    with pytest.raises(ConfigError, match=r"no suite emojo\.json\. Did you mean 'emoji\.json'"):
        recipes.find(Path("emojo.json"), "suites/*.json")


def test_recipes_that_cannot_be_read(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from configs import base\n")
    hint = r"mine\.py: No module named 'configs'; .*`from xmodal\.configs import base`"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(ROOT))])
        patch.delitem(sys.modules, "configs", raising=False)
        with pytest.raises(ConfigError, match=hint):
            load_config(str(path))
        (tmp_path / "configs").mkdir()  # a package of the user's
        (tmp_path / "configs" / "__init__.py").write_text("")
        sys.path.insert(0, str(tmp_path))  # of the list made above; `syspath_prepend` would leave it behind
        importlib.invalidate_caches()
        with pytest.raises(
            ConfigError, match=r"cannot import name 'base' from 'configs' .*xmodal\.configs import base"
        ):
            load_config(str(path))
    path.write_text("import nowhere.losses\n")
    with pytest.raises(ConfigError, match=r"mine\.py: there is no module 'nowhere'; start xmodal in the folder"):
        load_config(str(path))
    path.write_text("def get_config(:\n")
    with pytest.raises(ConfigError, match=r"mine\.py, line 1: invalid syntax"):
        load_config(str(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_variants(path):
    recipe = importlib.import_module(f"xmodal.configs.{path.stem}")
    variants = getattr(recipe, "VARIANTS", ())
    takes = recipe.get_config.__defaults__ or ()
    assert bool(variants) == bool(takes), "a recipe with variants names them in VARIANTS"
    assert not takes or takes[0] in {name.partition("@")[0] for name in variants}
    for name in variants:
        if "@" not in name:  # what stands behind it is a model, and there is none here
            assert load_config(f"{path}:{name}") is not None
    for name in ("B17", "B16_naflx", "B16@x", "emoji_tun", "_", "fulll@models/clip"):
        with pytest.raises(
            ConfigError, match=r"has no variants?[ ,].*" + ("Variants: " if variants else "leave out")
        ) as at:
            load_config(f"{path}:{name}")
        assert "\n" not in str(at.value) and name in str(at.value)


def test_a_recipe_that_misses_the_configs_of_its_project_says_where_to_start(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from configs.common_to_birds import WIDTH\n")
    with pytest.raises(ConfigError, match="starts in the folder that holds `configs`"):
        load_config(str(path))


# ------------------------------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_before_a_run_hears_it_ends_in_one_line():
    code = """if True:
        import sys
        from xmodal import recipes
        from xmodal.__main__ import main
        from xmodal.errors import end_process
        def interrupted(*_):
            raise KeyboardInterrupt
        recipes.call = interrupted
        end_process(main, sys.argv[1:])
    """
    for command in (["train", "--workdir", "never"], ["params"]):
        process = start(["-c", code, *command, "--config", "demo.py"])
        assert finish(process) == (130, "", "interrupted\n")


# ------------------------------------------------------------------------------------------ parameters


def test_params_lists_paths_and_rules(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    flags = ["params", "--config", "demo.py:stem"]
    code, out, _ = ended(capsys, *flags)
    assert code == 0 and out.startswith("50 of 50 arrays, 3,486,561 of 3,486,561 parameters")
    rules = "(('image/.*', {'freeze': True}), ('text/.*bias', {'lr': 0.5, 'weight_decay': 0.0}))"
    pattern = "(image|text)/trunk/.*/fc1/bias"
    code, out, _ = ended(capsys, *flags, "--match", pattern, f"--config.optimizer.rules={rules}")
    rows = [line.split() for line in out.splitlines() if "/fc1/" in line]
    assert [row[0] for row in rows] == ["image/trunk/layers/0/1/mlp/fc1/bias", "text/trunk/layers/0/1/mlp/fc1/bias"]
    assert rows[0][1:] == ["[3,", "512]", "1,536", "frozen", "0", "0", "image/.*"]
    assert rows[1][1:] == ["[1,", "512]", "512", "adamw", "0.5", "0", "text/.*bias"]
    code, _, error = ended(capsys, *flags, "--match", "image/trunk")
    assert code == 1 and "matches no parameter. A rule matches whole paths" in error
