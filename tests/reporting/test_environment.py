"""The environment file: what a repetition needs, and no secrets."""

import json
import subprocess
import sys

import jax

from xmodal.reporting import environment


def test_it_names_program_machine_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "configs/demo.py"])
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "off")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    path = environment.write_environment(tmp_path, {"total_steps": 7, "chance_loss": {"contrastive": 5.5}})
    assert "hunter2" not in path.read_text()
    found = environment.read_environment(tmp_path)
    assert found["packages"]["jax"] == jax.__version__
    assert found["devices"] == [{"platform": "cpu", "kind": "cpu", "count": 8, "memory_bytes": None}]
    assert found["hosts"] == 1 and found["cpu"]["cores"] >= 1 and found["memory_bytes"] > 2**20
    assert found["command"] == ["train.py", "--config", "configs/demo.py"]
    assert found["variables"]["JAX_TRACEBACK_FILTERING"] == "off"
    assert found["run"]["chance_loss"] == {"contrastive": 5.5}
    assert json.loads(path.read_text()) == found


def test_the_commit_is_of_this_tree_only(tmp_path, monkeypatch):
    git = lambda *arguments: subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    source = tmp_path / "xmodal" / "reporting" / "environment.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(environment, "__file__", str(source))
    assert environment._git() == {}
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    assert environment._git() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    source.write_text("changed")
    assert environment._git()["dirty"] is True
    inner = tmp_path / "site-packages" / "xmodal" / "reporting" / "environment.py"  # installed inside another tree
    monkeypatch.setattr(environment, "__file__", str(inner))
    inner.parent.mkdir(parents=True)
    assert environment._git() == {}
