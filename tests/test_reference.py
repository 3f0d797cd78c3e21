"""docs/reference.md says all that a config can hold, and is up to date."""

import dataclasses
from pathlib import Path
from typing import Literal

from xmodal.__main__ import main
from xmodal.commands import reference_page as reference
from xmodal.config import load_config
from xmodal.configs import base
from xmodal.objectives import OBJECTIVES
from xmodal.objectives.captioning import Captioning

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == reference.reference(), "run `xmodal reference --out docs/reference.md`"


def test_every_option_and_every_field_says_what_it_means():
    assert reference.undocumented() == [], "a comment in configs/base.py or a line under `Attributes:` is missing"


def test_options_are_those_of_the_base():
    def leaves(section, prefix=""):
        for key, value in section.items():
            yield from leaves(value, f"{prefix}{key}.") if hasattr(value, "items") and len(value) else [prefix + key]

    items = {item.name: item for item in reference.options()}
    assert sorted(name for name in items if items[name].default) == sorted(leaves(base.get_config()))
    assert items["schedule.total"] == ("schedule.total", "", '"10epochs"', "length of the run")
    rules = items["optimizer.rules"]  # the comment is above, and the value a tuple over a line
    assert rules.meaning.endswith("first match wins") and rules.default.startswith("((")


def test_what_a_project_registers_is_in_it(monkeypatch, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(Captioning):
        """An objective of a project.

        Attributes:
          share: of the tokens, on
            two lines.
        """

        share: float = 0.5
        kind: Literal["a", "b"] | None = None

    monkeypatch.setitem(OBJECTIVES, "mine", Mine)
    assert reference.undocumented() == ["Mine.kind"]
    assert main(["reference", "--out", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert '### type="mine"\n\nAn objective of a project.\n' in page
    assert "| `share` | float | `0.5` | of the tokens, on two lines. |\n" in page
    assert '| `kind` | "a", "b" or None | `None` |  |\n' in page
    assert '`tower` | str | `"caption"` | the tower whose `logits` [batch, seq, vocab] predict' in page  # inherited
    assert page.count("| `weight` | float or Ramp | `1.0` | factor of this loss in the sum: ") == 1  # shared by all


def test_its_overrides_work():
    """The page's own example."""
    path = "config.model.towers.image.trunk.depth=6"
    assert f"--{path}" in PAGE.read_text()
    assert load_config("demo.py", [path]).model.towers.image.trunk.depth == 6
