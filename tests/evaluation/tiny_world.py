"""A held-out set with everything that evaluators read, and a tiny model with random weights."""

import dataclasses
import json
from pathlib import Path

import jax

from data_pipelines.modalities import inputs_of
from tests import tiny_runs
from tests.data.tiny_shards import sample, write_tar
from xmodal.config import load_config
from xmodal.distributed.mesh import make_mesh
from xmodal.evaluation import EvalContext
from xmodal.live import Live
from xmodal.training.settle import resolve
from xmodal.training.task import build_losses

SAMPLES = 45  # divides by no batch size of the tests
KINDS = ("star", "moon", "sun")
# Options of every evaluator for the set and the model `every_model`; one that is added needs an entry here.
OPTIONS = dict(
    retrieval=dict(caption_list="lines", by="side", examples=0),
    cross_retrieval=dict(captions=("{kind}",), group="kind", by="side", control=("number", "number")),
    zero_shot=dict(label_field="kind", prompts=("{label}", "a {label}")),
    pointing=dict(label_field="kind", pairs=13),
    captioning=dict(captions=("{kind}",), examples=SAMPLES),
    classification=dict(),
    masked_text=dict(captions=("{lines}",)),
    linear_probe=dict(label_field="kind", l2=(1e-3, 1e-1), iterations=30),
    few_shot=dict(label_field="kind", shots=(1, 4), draws=2),
    pairs=dict(captions=("{kind}",), wrong=("side",), by="side"),
    embeddings=dict(),
)


def options_of(kind: str, train: str) -> dict:
    """Returns the options of an evaluator; `train` are the samples that probes learn from."""
    return OPTIONS[kind] | (dict(train=train) if kind in ("linear_probe", "few_shot") else {})


def held_out(i: int) -> dict[str, bytes]:
    """Sample i, of a kind, with one to three captions of which some are those of other samples too."""
    captions = [f"thing {i}", f"Thing {i // 2}  small", KINDS[i % 3]][: 1 + i % 3]
    fields = dict(kind=KINDS[i % 3], lines=captions, side="left" if i < 20 else "right", number=i)
    return sample(i) | dict(json=json.dumps(fields).encode())


def changed(context: EvalContext, data=None, tokenizer=None, **changes) -> EvalContext:
    """The context of another model, tokenizer or section `data`."""
    config = context.live.config.copy_and_resolve_references()
    config.data = config.data if data is None else data
    tokenizers = context.inputs.tokenizers if tokenizer is None else dict(text=tokenizer)
    inputs = inputs_of(config.data).with_tokenizers(tokenizers)
    return EvalContext(dataclasses.replace(context.live, config=config, modalities=inputs, **changes))


class World:
    """The set and the model on some of the devices."""

    def __init__(self, folder: Path, devices: int):
        arguments = tiny_runs.flags(tiny_runs.make_data(folder))
        config = load_config(arguments[1], arguments[2:])
        self.urls = str(write_tar(folder / "held_out.tar", {f"{i:03d}": held_out(i) for i in range(SAMPLES)}))
        self.mesh = make_mesh(config.mesh, jax.devices()[:devices])
        inputs = inputs_of(config.data)
        losses = build_losses(resolve(config, inputs), self.mesh, inputs)
        self.context = EvalContext(Live(losses.model, config, self.mesh, inputs))
        self.params = jax.jit(losses.model.init)(jax.random.key(1))

    def evaluate(self, evaluator, params=None):
        """The result of an evaluator called "x"."""
        with jax.set_mesh(self.mesh):
            return evaluator.prepare("x", self.context)(self.params if params is None else params)
