"""Recipes, overrides and specs: everything wrong is named, everything right survives unchanged."""

import dataclasses
import pathlib
import textwrap
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict

from xmodal import config as config_lib
from xmodal.config import ConfigError, load_config, make_spec
from xmodal.configs import base

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe whose `get_config` has the given body and returns its path."""

    def write(body: str, arguments: str = "", name: str = "recipe") -> str:
        path = tmp_path / f"{name}.py"
        body = textwrap.indent(textwrap.dedent(body), "    ")
        path.write_text(
            f"from xmodal.configs import base\n\n\ndef get_config({arguments}):\n"
            f"    c = base.get_config()\n{body}\n    return c\n"
        )
        return str(path)

    return write


PLAIN = """
c.model = {'towers': {'image': {'trunk': {'depth': 12}}}}
c.data.inputs = dict(image=dict(type='image'), text=dict(type='text'))
"""


def test_a_recipe_without_changes_is_the_base(recipe):
    assert load_config(recipe("")) == base.get_config()


def test_variants_and_sections_in_part(recipe):
    path = recipe(
        """
        c.optimizer.update(name="lion", lr=1)
        c.schedule = dict(total=500, final=0.1)
        c.data.inputs.image = dict(type="image", size=64 if variant == "small" else 224, mean=[0.5, 0.5, 1])
        c.objectives.contrastive = dict(type="softmax", between=["image", "text"])
        """,
        "variant='large'",
    )
    small, large = load_config(f"{path}:small"), load_config(path)
    assert (small.data.inputs.image.size, large.data.inputs.image.size) == (64, 224)
    assert small.schedule.total == "500"  # a duration in steps
    assert small.schedule.warmup == base.get_config().schedule.warmup  # not written: the base's default
    assert small.data.inputs.image.mean == (0.5, 0.5, 1.0)
    assert small.optimizer.lr == 1.0 and isinstance(small.optimizer.lr, float)
    assert small.optimizer.b1 == 0.9
    assert small.objectives.contrastive.between == ("image", "text")


def test_overrides(recipe):
    config = load_config(
        recipe(PLAIN),
        [
            "--config.optimizer.lr=3e-4",
            "--config.data.inputs.text.templates=((1.0,'{label}'),)",
            "--config.model.towers.image.trunk.depth=6",
            "config.model.towers.image.trunk.scan=false",  # an open section takes what make_spec will check
            "schedule.total=1_000_000examples",
            "checkpoint.every=100",
            "data.group_key=007",
            "log.tensorboard=false",
            "data.inputs.image.scale=[1, 1]",
            "--config.objectives.captioning={'type': 'captioning', 'weight': 2}",
            "optimizer.rules=()",
            "schedule={'warmup': '10steps'}",
        ],
    )
    assert config.optimizer.lr == 3e-4
    assert config.data.inputs.text.templates == ((1.0, "{label}"),)
    assert config.model.towers.image.trunk.to_dict() == {"depth": 6, "scan": False}
    assert config.schedule.to_dict() == {**base.get_config().schedule.to_dict(), "warmup": "10steps"}
    assert config.checkpoint.every == "100" and config.data.group_key == "007"
    assert config.log.tensorboard is False
    assert config.data.inputs.image.scale == (1.0, 1.0)
    assert config.objectives.captioning.weight == 2
    assert config.optimizer.rules == ()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("c.optimizer.lrr = 1e-3", "unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        ("c.optimizer.update(lrr=1e-3)", "Did you mean 'optimizer.lr'?"),
        ("c.schedule = dict(totl='1epoch')", "Did you mean 'schedule.total'?"),
        ("c.data.inputs.image = dict(type='image', sise=3)", "image has no key 'sise'; did you mean 'size'"),
        ("c.data.image = dict(size=3)", "'data.image' is now data.inputs.image (type=\"image\")"),
        ("c.data.image.size = 3", "'data.image' is now data.inputs.image"),
        ("c.data.modalities = ('text',)", "'data.modalities' is now the entries of data.inputs"),
        ("c.optimiser = dict(lr=1.0)", "Did you mean 'optimizer'?"),
        ("c.optimiser.lr = 1.0", "line 6, `c.optimiser.lr = 1.0`: unknown key 'optimiser'. Did you mean"),
        ("c['optimiser']['lr'] = 1.0", "Did you mean 'optimizer'?"),
        ("c.log.zebra = 1", "Keys of log: compile_cache, every, intervals, tensorboard, wandb."),
        ("c.optimizer.lr = 'abc'", "optimizer.lr: expected a number, got 'abc' (str)"),
        ("c.batch_size = 2.5", "batch_size: expected an integer, got 2.5 (float)"),
        ("c.batch_size = True", "batch_size: expected an integer, got True (bool)"),
        ("c.data.inputs.a = dict(type='image', scale=0.5)", "data.inputs.a.scale is 0.5; expected tuple"),
        ("c.data.inputs.a = dict(type='image', mean=(1, 2))", "data.inputs.a.mean is (1, 2); expected 3 numbers"),
        ("c.optimizer = 3", "optimizer: expected a section"),
        ("c.model = 'B16'", "model: expected a section"),
        ("c.evals.retrieval = dict(every=object())", "evals.retrieval.every: a config holds"),
    ],
)
def test_mistakes_in_a_recipe(recipe, body, wanted):
    path = recipe(body)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert wanted in str(error.value)
    assert path in str(error.value)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("--config.lr=1", "command line: unknown key 'lr'. Did you mean 'optimizer.lr'?"),
        ("--config.optimizer.wieght_decay=0", "Did you mean 'optimizer.weight_decay'?"),
        ("--config.optimzer.lr=1", "Did you mean 'optimizer.lr'?"),
        ("--config.depth=6", "Did you mean 'model.towers.image.trunk.depth'?"),
        ("--config.model.towers.imge.trunk.depth=6", "Did you mean 'model.towers.image.trunk.depth'?"),
        ("--config.optimizer.lr.peak=6", "unknown key 'optimizer.lr.peak'"),
        ("--config.optimizer.lr=abc", "command line: optimizer.lr: expected a number, got 'abc' (str)"),
        ("--config.schedule={'totl': '1epoch'}", "Did you mean 'schedule.total'?"),
        ("--config.optimizer=3", "optimizer: expected a section"),
        ("--config.optimizer.lr", "expected --config.KEY=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(recipe, override, wanted):
    with pytest.raises(ConfigError) as error:
        load_config(recipe(PLAIN), [override])
    assert wanted in str(error.value)


def test_relative_paths(recipe, tmp_path, monkeypatch):
    recipe("c.optimiser.lr = 1.0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"recipe\.py, line 6, .*unknown key 'optimiser'"):
        load_config("recipe.py")


def test_missing_recipes_and_variants(recipe, tmp_path):
    path = recipe("", name="clip")
    with pytest.raises(
        ConfigError, match=r"no recipe .*clp\.py\. Did you mean '.*/clip\.py'\? Recipes here: .*/clip\.py\. Rec"
    ):
        load_config(str(tmp_path / "clp.py"))
    with pytest.raises(ConfigError, match="has no variants, got 'B16'"):
        load_config(f"{path}:B16")
    path = recipe("c.batch_size = {'B16': 1}[variant]", "variant='B16'")
    with pytest.raises(ConfigError, match=r"has no variant 'B17'; a recipe that names its VARIANTS lists them"):
        load_config(f"{path}:B17")
    path = recipe("c.batch_size = {'B16': 1}[variant.split('_')[0]]", "variant='B16'")
    with pytest.raises(ConfigError, match="has no variant 'B17_long'"):
        load_config(f"{path}:B17_long")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"from xmodal\.configs import base"):
        load_config(str(tmp_path / "empty.py"))


def test_a_bug_in_a_recipe_keeps_its_traceback(recipe):
    with pytest.raises(KeyError, match="nothing"):
        load_config(recipe("{}['nothing']"))
    with pytest.raises(AttributeError, match="has no attribute"):
        load_config(recipe("c.batch_size = c.seed.value"))


def test_a_recipe_on_another_recipe(tmp_path):
    (tmp_path / "base.py").write_text("raise RuntimeError('of the user, and not what options are checked against')")
    (tmp_path / "mine.py").write_text("from xmodal.configs.demo import get_config as parent\nget_config = parent\n")
    assert load_config(str(tmp_path / "mine.py"), ["batch_size=8"]).batch_size == 8


def test_saved_configs_come_back_equal(recipe, tmp_path):
    config = load_config(recipe("c.objectives.a = dict(between=('image', 'text'), names='é', none=None)"))
    config_lib.save_config(config, tmp_path / "config.json")
    saved = config_lib.load_saved(tmp_path / "config.json")
    assert saved == config
    assert saved.optimizer.rules == config.optimizer.rules and isinstance(saved.optimizer.rules, tuple)
    assert config_lib.to_json(saved) == config_lib.to_json(config)
    assert [p.name for p in tmp_path.glob("config*")] == ["config.json"]


def test_damaged_saved_configs(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="no saved config"):
        config_lib.load_saved(path)
    for text in ("{", "[1]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json is not a saved config"):
            config_lib.load_saved(path)


def test_diff(recipe):
    path = recipe(PLAIN)
    overrides = ["optimizer.lr=3e-4", "schedule.total=5epochs", "evals.r={'type': 'retrieval'}"]
    lines = config_lib.diff(load_config(path), load_config(path, overrides))
    assert lines == [
        "optimizer.lr: 0.001 -> 0.0003",
        "schedule.total: '10epochs' -> '5epochs'",
        "evals.r.type: (not set) -> 'retrieval'",
    ]
    assert config_lib.diff(load_config(path), load_config(path)) == []


# ------------------------------------------------------------------------------------------ make_spec


@dataclasses.dataclass(frozen=True)
class Part:
    kind: Literal["self", "cross", "mlp"]
    rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Round:
    radius: float
    type: Literal["round"] = "round"


@dataclasses.dataclass(frozen=True)
class Square:
    side: float
    type: Literal["square"] = "square"


@dataclasses.dataclass(frozen=True)
class Whole:
    width: int
    layers: tuple[tuple[Part, ...], ...]
    named: dict[str, Part] = dataclasses.field(default_factory=dict)
    patch: int | tuple[int, int] = 16
    head: Part | None = None
    every: str = "1epoch"
    shape: Round | Square | None = None
    extra: Any = None

    def __post_init__(self):
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}")


GOOD = {"width": 4, "layers": [[{"kind": "self"}, {"kind": "mlp", "rate": 1}]]}


@pytest.mark.parametrize("wrap", [dict, ConfigDict])
def test_make_spec(wrap):
    values = dict(GOOD, named={"a": {"kind": "cross"}}, patch=[8, 16], head={"kind": "mlp"}, every=5, extra=[1])
    spec = make_spec(Whole, wrap(values), "model.w")
    assert spec == Whole(
        width=4,
        layers=((Part("self"), Part("mlp", 1.0)),),
        named={"a": Part("cross")},
        patch=(8, 16),
        head=Part("mlp"),
        every="5",
        extra=(1,),
    )
    assert type(spec.layers[0][1].rate) is float
    assert make_spec(Whole, dict(GOOD, patch=32, head=None), "w").patch == 32
    assert make_spec(Whole, dict(GOOD, shape={"type": "square", "side": 2}), "w").shape == Square(2.0)
    assert make_spec(Whole, dict(GOOD, shape={"side": 2}), "w").shape == Square(2.0)
    assert make_spec(Whole, dict(GOOD, head=Part("mlp")), "w").head == Part("mlp")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"widht": 3},
            "model.w: unknown key 'widht'. Did you mean 'width'? Keys of Whole: width, layers, named",
        ),
        ({"width": "a"}, "model.w.width: expected an integer, got 'a' (str)"),
        ({"width": None}, "model.w.width: expected an integer, got None"),
        ({"width": 3}, "model.w: width must be even, got 3"),
        (
            {"layers": [[{"kind": "sefl"}]]},
            "model.w.layers[0][0].kind: expected one of 'self', 'cross', 'mlp', got 'se",
        ),
        ({"layers": [[{"kind": "sefl"}]]}, "Did you mean 'self'?"),
        ({"layers": [[{"rate": 1.0}]]}, "model.w.layers[0][0]: Part needs 'kind'"),
        ({"layers": 3}, "model.w.layers: expected a tuple, got 3 (int)"),
        (
            {"named": {"a": {"kind": "mlp", "rat": 1}}},
            "model.w.named.a: unknown key 'rat'. Did you mean 'rate'?",
        ),
        ({"named": 3}, "model.w.named: expected named entries"),
        ({"head": {"kind": "mlp", "rate": "x"}}, "model.w.head.rate: expected a number, got 'x'"),
        ({"head": 3}, "model.w.head: expected the keys of Part, got 3"),
        ({"patch": "x"}, "model.w.patch: expected an integer or tuple, got 'x' (str)"),
        ({"shape": {"type": "square", "sid": 2}}, "model.w.shape: unknown key 'sid'. Did you mean 'side'?"),
        ({"shape": {"type": "sqare"}}, "model.w.shape.type: expected one of 'round', 'square', got 'sqare'. Did"),
        ({"patch": (1, 2, 3)}, "model.w.patch: expected an integer or tuple"),
    ],
)
def test_make_spec_mistakes(change, wanted):
    with pytest.raises(ConfigError) as error:
        make_spec(Whole, {**GOOD, **change}, "model.w")
    assert wanted in str(error.value)


def test_a_saved_config_gets_the_options_that_were_added_since():
    new = base.get_config()
    new.data.inputs = dict(image=dict(type="image"), text=dict(type="text"))
    new = config_lib.with_inputs(new)
    old = new.copy_and_resolve_references()
    old.data.inputs.text.length, old.batch_size = 9, 17
    del old.data["remote"], old.data.inputs.image["policy"], old["watchdog"]
    found = config_lib.with_new_options(old)
    assert (found.data.inputs.text.length, found.batch_size) == (9, 17)
    assert found.data.remote == new.data.remote and found.watchdog == new.watchdog
    assert found.data.inputs.image.policy == ""
    assert config_lib.diff(found, new) == ["batch_size: 17 -> 256", "data.inputs.text.length: 9 -> 77"]


def test_a_config_of_before_inputs_is_refused_by_name():
    old = base.get_config()
    old.data.text = dict(length=77)
    with pytest.raises(ConfigError, match=r"is of an older xmodal.*'data\.text' is now data\.inputs\.text"):
        config_lib.with_new_options(old)
