"""The distillation recipe: a student of a quarter of the demo's size, and its teacher."""

import helpers
import jax
import pytest

from data_pipelines.modalities import inputs_of
from xmodal.config import ConfigError
from xmodal.configs import demo, distil
from xmodal.distributed.mesh import make_mesh
from xmodal.stored.base import Stored
from xmodal.stored.project import write_stored
from xmodal.training.providers import open_providers
from xmodal.training.startup import model_facts
from xmodal.training.task import build_task


def task_of(config):
    mesh, inputs = make_mesh(config.mesh, jax.devices()[:1]), inputs_of(config.data)
    with jax.set_mesh(mesh):
        return build_task(config, mesh, inputs, 6520, open_providers(config, mesh, inputs))


def test_a_demo_teaches_a_quarter_of_itself(tmp_path):
    demos = task_of(demo.get_config("stem"))
    params = helpers.random_params(demos.losses.model) | {"objectives": {"contrastive": {"logit_scale": 2.5}}}
    write_stored(Stored(demos.config, params, demos.inputs.tokenizers, "a demo"), tmp_path / "demo")
    config, plain = distil.get_config(), task_of(distil.get_config("alone"))
    config.providers.teacher.model = str(tmp_path / "demo")
    task = task_of(config)
    assert not task.providers["teacher"].texts and task.config.objectives.contrastive.teacher_logit_scale == 2.5
    facts = [model_facts(t, t.abstract_state()) for t in (task, plain, demos)]
    for tower in ("image", "text"):
        assert facts[0].parameters[tower] == facts[1].parameters[tower]
        assert 0.22 < facts[0].parameters[tower] / facts[2].parameters[tower] < 0.26
    forward = facts[2].flops_per_sample / 3
    assert 0.9 * forward < facts[0].flops_per_sample - facts[1].flops_per_sample < 1.1 * forward
    objectives = task.losses.objectives
    assert {name: o.weight for name, o in objectives.items()} == dict(contrastive=2.0, features=16.0)
    assert objectives["features"].widths == (256, 256) and not plain.losses.objectives["contrastive"].asks


def test_its_average_is_a_teacher_and_without_a_teacher_says_which():
    task = task_of(distil.get_config("ema"))
    assert task.providers["teacher"].model.spec == task.losses.model.spec and task.frozen == {}
    config = distil.get_config()
    config.providers.teacher.model = "runs/nowhere"
    with pytest.raises(ConfigError, match=r"providers\.teacher\.model=runs/nowhere"):
        task_of(config)
