"""LiT and FLIP: the locked tower costs its forward pass alone and starts from imported weights; masks end in tuning."""

import jax
import numpy as np
import pytest

from data_pipelines.modalities import inputs_of
from tests import tiny_runs
from tests.interop.test_vision import PIXELS, hugging_face
from xmodal.config import load_config
from xmodal.configs import flip, lit
from xmodal.distributed.mesh import make_mesh
from xmodal.paths import flatten_paths
from xmodal.reporting.flops import count_flops
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored
from xmodal.training.startup import abstract_batch
from xmodal.training.task import build_task


def task_of(config, **changes):
    config.mesh.update(data=1)
    config.update(changes)
    with jax.set_mesh(mesh := make_mesh(config.mesh, jax.devices()[:1])):
        return build_task(config, mesh, inputs_of(config.data), 1_281_167)


def test_a_locked_tower_has_no_state_and_costs_its_forward_pass():
    task = task_of(lit.get_config("emoji"), batch_size=16)
    state, batch = task.abstract_state(), abstract_batch(task)
    locked = {path: frozen for path, frozen in flatten_paths(task.plan.frozen).items() if path.startswith("image/")}
    assert locked and all(locked.values())
    assert not any("/image/" in f"/{path}" for path in flatten_paths(state["opt_state"]))

    model = task.losses.model
    cost = lambda tower: count_flops(
        lambda p, b: model(p, task.losses.preprocess(b, None), frozenset({f"{tower}.pooled"})), state["params"], batch
    )
    with jax.set_mesh(task.mesh):
        forward = count_flops(lambda p, b: task.losses(p, b, None)[0], state["params"], batch)
        both = lambda frozen: count_flops(
            lambda p, b: task.losses.value_and_grad(p, b, None, 1, frozen), state["params"], batch
        )
        step, unlocked = both(task.plan.frozen), both(None)
    image, text = cost("image"), cost("text")
    logits = forward - image - text
    assert image < step - 3 * text < image + 3 * logits + 1, "one forward pass of it and three of the text tower"
    assert unlocked > step + 1.5 * image


@pytest.fixture
def imported(tmp_path):
    """An imported DINOv2."""
    write_stored(open_stored(f"hf:{hugging_face(tmp_path / 'hf', 'dinov2')}"), tmp_path / "dinov2")
    return tmp_path / "dinov2"


def locked_dinov2(where):
    """The LiT recipe with a tiny DINOv2 and a tiny text tower, on emoji."""
    stored = open_stored(where)
    config = lit.get_config("emoji")
    config.init_from, config.init_from_except = str(where), lit.NEW
    image = stored.config.model.towers.image
    config.model.towers.image = image
    config.model.towers.text.heads.pooled.embed_dim = image.trunk.width
    shown = stored.config.data.inputs.image
    config.data.inputs.image.update(size=PIXELS, mean=shown.mean, std=shown.std)
    config.evals, config.batch_size, config.checkpoint.best = {}, 16, ""
    return config


def test_it_starts_from_an_imported_tower_and_leaves_it_as_it_is(imported, tmp_path):
    config = locked_dinov2(imported)
    config.schedule.update(total="2steps", warmup="0%")
    config.checkpoint.every = 1
    config.log.tensorboard, config.data.threads = False, 1
    tiny_runs.run_config(tmp_path / "run", config)
    given, learned = open_stored(imported), open_stored(tmp_path / "run")
    for path, array in flatten_paths(given.params["image"]).items():
        np.testing.assert_array_equal(flatten_paths(learned.params["image"])[path], array, err_msg=path)
    before = flatten_paths(open_stored(tmp_path / "run", step=1).params["text"])
    assert any(np.any(before[path] != a) for path, a in flatten_paths(learned.params["text"]).items())


def test_flip_tunes_what_it_has_masked():
    masked, whole = flip.get_config("L16"), flip.get_config("L16_tune")
    assert (masked.model.towers.image.embed.patch_dropout, whole.model.towers.image.embed.patch_dropout) == (0.5, 0)
    assert whole.init_from == "runs/flip_l16" and whole.optimizer.lr == masked.optimizer.lr / 10
    counts = {}
    for name in ("emoji", "emoji_tune"):
        task = task_of(flip.get_config(name), batch_size=16, init_from="")
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 16))
        with jax.set_mesh(task.mesh):
            counts[name] = count_flops(
                lambda p, b, k, t=task: t.losses.model(
                    p, t.losses.preprocess(b, None), frozenset({"image.tokens"}), k
                )["image.tokens"].x,
                task.abstract_state()["params"], abstract_batch(task), keys,
            )  # fmt: skip
    assert counts["emoji"] < 0.65 * counts["emoji_tune"]


FULL_SIZE = ("lit.py:B14", "lit.py:S14", "lit.py:L14", "flip.py:B16_tune", "vit_classify.py:S16", "siglip2.py:L16",
             "siglip2.py:So400m16", "siglip2.py:So400m16_naflex")  # fmt: skip


@pytest.mark.parametrize("recipe", FULL_SIZE)
def test_full_size_recipes_fit_together(recipe):
    config = load_config(f"configs/{recipe}")
    config.data.inputs.text.update(tokenizer="data_pipelines/emoji/tokenizer.json")
    for tower in config.model.towers.values():
        tower.trunk.depth = 1
    assert task_of(config, batch_size=64).total_steps > 0
