"""Runs that start from several places, and keep what they do not train out of their checkpoints."""

import shutil

import numpy as np
import pytest

import xmodal
from tests import tiny_runs
from xmodal.__main__ import main
from xmodal.commands.evaluate import evaluate
from xmodal.config import ConfigError, validate
from xmodal.configs import base
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored
from xmodal.stored.starting import Starting, merged, without

FROZEN = '(("image/.*", {"freeze": True}),)'


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Data, and two runs that have not trained yet: other seeds, other weights."""
    folder = tmp_path_factory.mktemp("starts")
    data = tiny_runs.make_data(folder)
    for seed, name in enumerate(("pictures", "words")):
        tiny_runs.run(folder / name, tiny_runs.flags(data, evals="{}", seed=seed), tiny_runs.StopAt(0))
    return data, folder / "pictures", folder / "words"


def flags(data, *entries, **changes):
    """Arguments of a run of four steps from these entries, with a frozen image tower and averaged weights."""
    options = dict(schedule__total=4, checkpoint__every=2, checkpoint__keep_last=9, optimizer__ema=0.9)
    options |= dict(init_from=repr(entries), init_from_except='("objectives/.*",)', optimizer__rules=FROZEN)
    return tiny_runs.flags(data, **(options | changes))


def unstored(data, pictures, words, **changes):
    return flags(data, ("image/.*", str(pictures), {"stored": False}), ("text/.*", str(words)), **changes)


def config_of(**options):
    config = validate(base.get_config(), base.get_config())
    config.update(options)
    return config


def test_each_parameter_comes_from_the_first_place_whose_pattern_matches(starts, tmp_path, capsys):
    data, pictures, words = starts
    arguments = flags(data, ("image/.*", str(pictures)), (".*", str(words)), init_from_except="()", evals="{}")
    tiny_runs.run(tmp_path / "run", arguments, tiny_runs.StopAt(0))
    assert f"started from {pictures} (image/.*), {words}: " in capsys.readouterr().out
    found = flatten_paths(open_stored(tmp_path / "run").params)
    of = {"image": flatten_paths(open_stored(pictures).params), "": flatten_paths(open_stored(words).params)}
    assert all((a == of["image" if p.startswith("image/") else ""][p]).all() for p, a in found.items())
    assert any((of["image"][p] != of[""][p]).any() for p in found)


@pytest.mark.parametrize(
    "entries,changes,message",
    [
        ([("image/.*", 0)], {}, r"no pattern covers some parameters.*\n  not covered: text/"),
        ([(".*", 0)], dict(init_from_except="()"), None),
        ([(".*", 0), ("text/.*", 1)], {}, r"'text/\.\*' gives no parameter: earlier entries"),
        ([("image/.*", 0), ("text/.*", "nowhere")], {}, "there is no folder nowhere"),
        ([("(", 0)], {}, "not regular expressions"),
        ([("image/.*",)], {}, r"init_from\[0\]: expected \(path regex, place\)"),
        ([("image/.*", 0, {"keep": True})], {}, r"init_from\[0\]: unknown key 'keep'"),
        ([("image/.*", 0), ("text/.*", 1, {"stored": False})], {}, r"text/\S+, .* are not stored .* freeze them"),
    ],
)
def test_what_does_not_fit_is_named(starts, tmp_path, capsys, entries, changes, message):
    data, *places = starts
    place = lambda where: str(places[where]) if isinstance(where, int) else where
    given = [tuple(place(part) if i == 1 else part for i, part in enumerate(entry)) for entry in entries]
    arguments = flags(data, *given, evals="{}", **changes)
    if message is None:
        tiny_runs.run(tmp_path, arguments, tiny_runs.StopAt(0))
    else:
        with pytest.raises(ConfigError, match=message):
            tiny_runs.run(tmp_path, arguments, tiny_runs.StopAt(0))


def test_a_run_goes_on_exactly_without_what_it_does_not_store(starts, tmp_path):
    data, pictures, words = starts
    stored = flags(data, ("image/.*", str(pictures)), ("text/.*", str(words)))
    tiny_runs.run(tmp_path / "stored", stored)
    arguments = unstored(*starts)
    tiny_runs.run(tmp_path / "broken", arguments, tiny_runs.StopAt(3))
    tiny_runs.run(tmp_path / "broken", arguments)
    whole, lean = (tiny_runs.arrays(tmp_path / name, 4) for name in ("stored", "broken"))
    assert {p for p in whole if p not in lean} == {
        p for p in whole if p.split("/")[:2] in (["params", "image"], ["ema", "image"])
    }
    assert lean == {path: whole[path] for path in lean}, "bit for bit, in the average, too"


def test_whoever_opens_its_checkpoint_reads_the_rest(starts, tmp_path, capsys):
    _, pictures, _ = starts
    tiny_runs.run(tmp_path / "run", unstored(*starts))
    for ema in (False, True):
        found = flatten_paths(open_stored(tmp_path / "run", ema=ema).params)
        image = flatten_paths(open_stored(pictures).params["image"])
        assert all((found[f"image/{path}"] == array).all() for path, array in image.items())
    image = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    np.testing.assert_array_equal(
        xmodal.load(tmp_path / "run").embed_image(image), xmodal.load(pictures).embed_image(image)
    )
    assert "retrieval" in evaluate(tmp_path / "run").results
    assert main(["export", "--workdir", str(tmp_path / "run"), "--to", "xmodal", "--out", str(tmp_path / "out")]) == 0
    assert "image/embed/kernel" in flatten_paths(open_stored(tmp_path / "out").params)


def test_a_place_that_is_gone_or_has_changed_is_refused_in_one_line(starts, tmp_path, capsys):
    data, pictures, words = starts
    shutil.copytree(pictures, tmp_path / "copy")
    arguments = unstored(data, tmp_path / "copy", words, evals="{}")
    tiny_runs.run(tmp_path / "run", arguments, tiny_runs.StopAt(2))
    shutil.rmtree(tmp_path / "copy")
    message = tiny_runs.fail(tmp_path / "run", arguments, capsys, tiny_runs.StopAt(3))
    assert f"init_from: there is no folder {tmp_path / 'copy'}" in message and "stored=False" in message
    assert len(message.strip().splitlines()) == 1
    shutil.copytree(words, tmp_path / "copy")
    message = tiny_runs.fail(tmp_path / "run", arguments, capsys, tiny_runs.StopAt(3))
    assert f"{tmp_path / 'copy'} does not hold the weights that this run began with" in message
    assert len(message.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match="does not hold the weights that this run began with"):
        open_stored(tmp_path / "run")


def test_no_places_is_a_fresh_start():
    assert Starting.of(config_of()).entries == () and str(Starting.of(config_of())) == ""
    assert Starting.of(config_of(init_from="runs/x")).entries[0][:2] == (".*", "runs/x")
    with pytest.raises(ConfigError, match="init_from is 7; expected a place"):
        Starting.of(config_of(init_from=7))


def test_leaves_are_taken_out_of_a_tree_and_put_back():
    tree = dict(a=dict(x=1, y=dict(z=2)), b=dict(x=3), c={})
    lean = without(tree, {"a/y/z", "b/x"})
    assert lean == dict(a=dict(x=1), c={}) and without(tree, ()) is tree
    assert merged(lean, tree, {"a/y/z": 2, "b/x": 3}) == tree
