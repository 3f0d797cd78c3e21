"""What a run says before its first step and when it ends."""

import shlex

import pytest
from ml_collections import ConfigDict

from xmodal.training import startup


@pytest.mark.parametrize("folder", ["my runs/the first", "运行/一", "a'b", "."])
def test_commands_for_a_finished_run_can_be_pasted(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup, "target", lambda *_: "hf")
    config = ConfigDict(dict(objectives=dict(contrastive=dict(between=("image", "text")))))
    name = (tmp_path / folder).resolve().name
    export, embed = startup.next_commands(config, dict(params={}), startup.Path(folder))
    assert shlex.split(export)[3:] == ["export", "--workdir", folder, "--to", "hf", "--out", f"exported/{name}"]
    assert shlex.split(embed)[3:] == ["embed", "SHARDS", "--model", folder, "--out", f"indexes/{name}"]
