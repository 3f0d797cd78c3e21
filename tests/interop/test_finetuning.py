"""Fine-tuning: low-rank updates and their merging, what a run starts from and is measured at, weights in between."""

import contextlib
import functools
import io
import json

import jax
import numpy as np
import pytest

from tests import tiny_runs
from xmodal.__main__ import main
from xmodal.config import ConfigError, load_config, make_spec
from xmodal.configs import base, finetune
from xmodal.interop.averaging import interpolate
from xmodal.interop.lora import merge_lora
from xmodal.interop.tables import InteropError
from xmodal.models import presets
from xmodal.models.model import Functional, ModelSpec
from xmodal.paths import flatten_paths, map_paths
from xmodal.stored.opening import open_stored

TARGETS = ("query", "key", "value", "out", "fc1", "gate", "fc2")


def model(**lora):
    """Two small towers; the pattern of one repeats, the maps of the other are routed."""
    image = presets.image_tower(
        16, 4, 2, patch_size=4, glu=True, embed_dim=8, embed=dict(image_size=8), routes=(("other", 1),)
    )
    layer = image["trunk"]["pattern"][0]
    image["trunk"] |= dict(pattern=(layer, layer))
    text = presets.text_tower(12, 1, 3, embed_dim=8, embed=dict(vocab_size=20, length=5))
    made = presets.dual_tower(image=image, text=text)
    return presets.with_lora(made, **lora) if lora else made


def embed(config_model, params):
    rng = np.random.default_rng(0)
    text = rng.integers(0, 20, (3, 5)).astype(np.int32)
    batch = dict(image=rng.normal(size=(3, 8, 8, 3)).astype(np.float32), text=text, text_valid=text >= 0)
    built = Functional.build(make_spec(ModelSpec, config_model, "model"))
    return jax.jit(lambda params: built(params, batch, frozenset({"image.pooled", "text.pooled"})))(params)


def random(params):
    rng = np.random.default_rng(1)
    return map_paths(lambda _, a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), params)


def test_merged_updates_are_the_same_function():
    tuned = model(rank=3, alpha=6.0, targets=TARGETS)
    shapes = lambda config: jax.eval_shape(
        Functional.build(make_spec(ModelSpec, config, "model")).init, jax.random.key(0)
    )
    params = random(shapes(tuned))
    config = base.get_config()
    config.model = tuned
    merged, whole = merge_lora(config, params)
    assert merged.model.to_dict() == model().to_dict() and config.model is tuned
    assert {p: a.shape for p, a in flatten_paths(whole).items()} == {
        p: a.shape for p, a in flatten_paths(shapes(merged.model)).items()
    }
    before, after = embed(tuned, params), embed(merged.model, whole)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=2e-5, atol=2e-5 * float(np.abs(value).max()))
    kernel = "trunk/layers/1/1/mlp/gate/expert1"  # by hand: y = x (W + 6 / 3 A B)
    a, b, w = (flatten_paths(params)[f"image/{kernel}/{name}"] for name in ("lora_a", "lora_b", "kernel"))
    np.testing.assert_allclose(flatten_paths(whole)[f"image/{kernel}/kernel"], w + 2 * (a @ b), rtol=1e-5, atol=1e-6)
    assert merge_lora(merged, whole) == (merged, whole)


def test_updates_start_as_nothing_where_they_are_wanted():
    tuned = model(rank=2, targets=("query", "fc2"), towers=("text",))
    init = Functional.build(make_spec(ModelSpec, tuned, "model")).init
    params = random(jax.eval_shape(init, jax.random.key(0))) | jax.jit(lambda key: {"text": init(key)["text"]})(
        jax.random.key(0)
    )
    added = {path for path in flatten_paths(params) if "lora" in path}
    place = "text/trunk/layers/0"
    assert added == {f"{place}/{name}/lora_{i}" for name in ("0/attn/query", "1/mlp/fc2") for i in "ab"}
    zeroed = map_paths(lambda path, a: a * 0 if path.endswith("lora_a") else a, params)
    without = embed(tuned, zeroed)
    for name, value in embed(tuned, params).items():
        np.testing.assert_array_equal(without[name], value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [(dict(rank=0), "rank is 0; expected at least 1"), (dict(rank=2, targets=("q",)), "targets names 'q'; expected")],
)
def test_mistakes_in_a_lora(lora, message):
    with pytest.raises(ConfigError, match=message):
        make_spec(ModelSpec, model(**lora), "model")


def test_a_tower_that_is_not_there():
    with pytest.raises(ValueError, match="unknown tower 'audio': the model has image, text"):
        model(rank=1, towers=("audio",))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run of a few steps, and the flags of its data."""
    folder = tmp_path_factory.mktemp("start")
    data = tiny_runs.make_data(folder)
    tiny_runs.run(folder / "start", tiny_runs.flags(data, checkpoint__every=0))
    return data, folder / "start"


@pytest.fixture(scope="module")
def tuned(start, tmp_path_factory):
    """kind -> the folder of a run that tunes it so, and what it printed; each is made once."""

    @functools.cache
    def make(kind):
        workdir, shown = tmp_path_factory.mktemp("tuned") / "tuned", io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
            patch.setattr(finetune, "pairs", lambda c: c)
            tune(start, workdir, kind)
        return workdir, shown.getvalue()

    return make


def tune(start, workdir, kind):
    data, where = start
    config = finetune.get_config(f"{kind}@{where}")
    urls = str(data / "s-{00..01}.tar")
    config.data.sources = dict(train=dict(urls=urls))
    config.evals = dict(held_out=dict(type="retrieval", urls=urls, every=0))
    config.update(batch_size=16, checkpoint=dict(every=0, best=""))
    config.schedule.update(total=3, warmup=0)
    config.optimizer.lr *= 20
    return tiny_runs.run_config(workdir, config)


def figures(workdir):
    """Returns {step: {figure: value}} of the evaluations."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    picked = {row["step"]: {k: v for k, v in row.items() if k.startswith("eval/retrieval/")} for row in found}
    return {step: row for step, row in picked.items() if row}


@pytest.mark.parametrize("kind", ["full", "lora", "locked"])
def test_a_run_reproduces_what_it_started_from_and_changes_what_it_should(start, tuned, kind):
    workdir, shown = tuned(kind)
    assert f"started from {start[1]}" in shown
    before, measured = figures(start[1]), figures(workdir)
    assert measured.keys() == {0, 3} and measured[0] == before[max(before)] and len(measured[0]) > 5
    old, new = (flatten_paths(open_stored(where).params) for where in (start[1], workdir))
    assert old.keys() == new.keys(), "low-rank updates are merged"
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    if kind == "full":
        assert changed == set(old)
        assert "0.75" in shown
    elif kind == "locked":
        assert changed == {path for path in old if not path.startswith("image/")}
    else:
        assert changed == {p for p in old if p.endswith(("query/kernel", "value/kernel")) and "/trunk/" in p}


def test_weights_in_between(start, tuned, tmp_path, capsys):
    workdir, _ = tuned("lora")
    old, new = open_stored(start[1]), open_stored(workdir)
    for share in (0.0, 0.25, 1.0):
        found = flatten_paths(interpolate(old, new, share).params)
        for path, a in flatten_paths(old.params).items():
            expected = (1 - share) * np.asarray(a) + share * np.asarray(flatten_paths(new.params)[path])
            np.testing.assert_allclose(found[path], expected, rtol=1e-6, atol=1e-7)
    main(["export", "--workdir", str(workdir), "--to", "jax", "--interpolate", "0.5",
          "--out", str(tmp_path / "out")])  # fmt: skip
    assert "0.5 of the way from" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InteropError, match=r"a share of 1\.5 lies between no two models"):
        interpolate(old, new, 1.5)
    del new.params["text"]["trunk"]["final_norm"]
    with pytest.raises(InteropError, match=r"missing in .*tuned: text/trunk/final_norm"):
        interpolate(old, new, 0.5)
    with pytest.raises(SystemExit):
        main(["export", "--workdir", str(start[1]), "--to", "jax", "--interpolate", "0.5",
              "--out", str(tmp_path / "none")])  # fmt: skip
    assert "started from random weights; name others with --start" in capsys.readouterr().err


def test_variants_of_the_recipe(start):
    with pytest.raises(ConfigError, match=r"has no variant 'half'.*Variants: .*locked@DIR, small_full@DIR"):
        load_config("configs/finetune.py:half")
    for variant in ("full@nowhere", "small_full"):
        told = r"there is no folder .*behind an `@`: configs/finetune.py:(small_)?full@DIR"
        with pytest.raises(InteropError, match=told):
            finetune.get_config(variant)
    small, large = (finetune.get_config(f"{prefix}lora@{start[1]}") for prefix in ("small_", ""))
    assert (small.batch_size, small.schedule.total, small.optimizer.lr) == (64, "15epochs", 5e-3)
    assert (large.batch_size, large.schedule.total, large.optimizer.lr) == (128, "3epochs", 2e-4)
    assert small.data == large.data and small.model == large.model
    config = finetune.get_config(f"emoji_lora@{start[1]}")
    assert config.init_from == str(start[1]) and "unseen_vendor" in config.evals
