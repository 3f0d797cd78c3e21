"""The distillation recipe: a student of a quarter of the demo's size, which runs with a teacher, and on."""

import jax
import pytest

from configs import demo, distil
from data_pipelines.text.tokenizers import Tokenizer
from tests import tiny_runs
from xmodal.config import ConfigError
from xmodal.distributed.mesh import make_mesh
from xmodal.distributed.runtime import Runtime
from xmodal.training import loop
from xmodal.training.startup import model_facts
from xmodal.training.task import build_task
from xmodal.training.teacher import open_teacher


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


def small(config):
    config.evals, config.batch_size, config.checkpoint.best = {}, 16, ""
    config.schedule.update(total="2steps", warmup="0%")
    config.log.tensorboard, config.data.threads = False, 1
    return config


def run(config, workdir):
    with Runtime.start() as runtime:
        loop.train(config, workdir, runtime)
    return tiny_runs.rows(workdir)[-1]


def task_of(config):
    mesh, tokenizer = make_mesh(config.mesh, jax.devices()[:1]), Tokenizer.load(config.data.text.tokenizer)
    with jax.set_mesh(mesh):
        return build_task(config, mesh, tokenizer, 6520, open_teacher(config, mesh, tokenizer))


def test_a_demo_teaches_a_quarter_of_itself(tmp_path):
    run(small(demo.get_config()), tmp_path / "demo")
    config = small(distil.get_config())
    config.teacher.model = str(tmp_path / "demo")
    last = run(config, tmp_path / "taught")
    parts = 2.0 * last["train/contrastive/loss"] + 16.0 * last["train/features/loss"]
    assert last["train/loss"] == pytest.approx(parts, rel=1e-5)

    config.teacher.model = str(tmp_path / "demo")
    task, plain, teacher = task_of(config), task_of(distil.get_config("untaught")), task_of(demo.get_config())
    facts = [model_facts(t, t.abstract_state()) for t in (task, plain, teacher)]
    assert not task.teacher.texts, "the same tokens"
    for tower in ("image", "text"):
        assert facts[0].parameters[tower] == facts[1].parameters[tower]
        assert 0.22 < facts[0].parameters[tower] / facts[2].parameters[tower] < 0.26
    forward = facts[2].flops_per_sample / 3
    assert 0.9 * forward < facts[0].flops_per_sample - facts[1].flops_per_sample < 1.1 * forward


def test_it_teaches_itself_and_without_a_teacher_says_which(tmp_path):
    own = small(distil.get_config("own"))
    assert run(own, tmp_path / "own")["train/contrastive/teacher_kl"] > 0
    with pytest.raises(ConfigError, match=r"teacher\.model=runs/nowhere"):
        config = distil.get_config()
        config.teacher.model = "runs/nowhere"
        task_of(config)
