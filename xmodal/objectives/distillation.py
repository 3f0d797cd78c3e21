"""Learning from a frozen teacher: how it divides its belief over the pairs of a batch, and its embeddings.

The teacher's embeddings stand in the batch as `<provider>.<tower>` [batch, width], unit vectors without a gradient: see
`xmodal.objectives.providers.teacher`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal

from xmodal import keys as key_tools
from xmodal.objectives.base import Loss, Objective, count_rows, mean_rows, weighed
from xmodal.objectives.contrastive import (
    NEVER,
    NO_OVERRIDES,
    SoftmaxContrastive,
    candidates,
    normalize,
    of_all,
    scaled,
    similarity,
    weighed_sum,
)
from xmodal.objectives.pairs import ring, zero_rows


@dataclasses.dataclass(frozen=True)
class Distillation(SoftmaxContrastive):
    """CLIP's symmetric cross-entropy with soft targets: the teacher's softmax over the batch.

    With `soft` 1 its gradient is that of the divergence between teacher and student (affinity distillation of
    MobileCLIP, Vasu et al. 2024; contrastive relational distillation of CLIP-KD, Yang et al. 2024, section 3.2), with 0
    it is the objective `softmax`, and between them `softmax` with targets of both kinds in these shares: MobileCLIP's
    sum by lambda, ALBEF's by alpha (Li et al. 2021, section 3.3; its teacher is the average of the student's weights,
    a provider of type `ema`). One temperature serves both parts. As a cross-entropy it is near log(batch) at the start
    and at best the teacher's entropy (`teacher_entropy`); `teacher_kl` is what lies between.

    Attributes:
      teacher: name of the provider, in `config.providers`, that gives the teacher's embeddings.
      soft: share of the target that is the teacher's; the rest lies on the positives.
      teacher_logit_scale: log of the teacher's inverse temperature; None takes what it has learned.
    """

    teacher: str = "teacher"
    soft: float = 1.0
    teacher_logit_scale: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.soft <= 1:
            raise ValueError(f"soft={self.soft}: expected a share from 0 to 1")

    @classmethod
    def settle_facts(cls, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Takes the teacher's temperature where the entry does not give one."""
        name = f"{entry.get('teacher', cls.teacher)}.logit_scale"
        if entry.get("teacher_logit_scale") is not None or name not in facts:
            return {}
        if facts[name] is None:
            raise ValueError(
                "the teacher has no contrastive objective between images and texts, and so no temperature: set "
                "teacher_logit_scale, such as 4.6 (log of 100)"
            )
        return {"teacher_logit_scale": facts[name]}

    @classmethod
    def alone(cls, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps the part of the positives."""
        kept = {field.name for field in dataclasses.fields(SoftmaxContrastive)}
        return {"type": "softmax"} | {key: value for key, value in entry.items() if key in kept}

    @property
    def asks(self) -> frozenset[str]:
        """The teacher's embeddings of both towers."""
        return frozenset(f"{self.teacher}.{tower}" for tower in self.between)

    def __call__(self, outputs, batch, params, mesh):
        """See `Objective`."""
        hard = super().__call__(outputs, batch, params, mesh)
        student = tuple(normalize(outputs[f"{tower}.pooled"]) for tower in self.between)
        teacher = tuple(batch[f"{self.teacher}.{tower}"] for tower in self.between)
        scale, sample = jnp.exp(of_all(params)["logit_scale"]), self._per_sample(params, batch)
        fixed = self.teacher_logit_scale
        teacher_scale = jax.lax.stop_gradient(scale) if fixed is None else jnp.exp(jnp.float32(fixed))
        form = affinity_ring if self._use_ring(mesh, len(student[0])) else affinity_plain
        soft, entropy = form(mesh, *zip(student, teacher, strict=True), scale, teacher_scale, sample)
        most = jnp.maximum(hard.weight, 1.0)
        metrics = hard.metrics | {"teacher_kl": (soft - entropy) / most, "teacher_entropy": entropy / most}
        loss = soft if self.soft == 1 else (1.0 - self.soft) * hard.sum + self.soft * soft
        return Loss(loss, hard.weight, metrics)


def affinity_plain(mesh, rows, columns, scale, teacher_scale, sample=NO_OVERRIDES):
    """Returns (cross-entropy, teacher's entropy), sums over rows, means of both ways, from the whole matrix at once.

    Args:
      mesh: not used.
      rows: unit embeddings of the rows, of the student [rows, dim] and of the teacher [rows, teacher's dim].
      columns: the same of the columns.
      scale: inverse temperature of the student.
      teacher_scale: inverse temperature of the teacher.
      sample: what differs between samples, as for `softmax_plain`.
    """
    del mesh
    student, teacher = _similarities(rows, columns)

    def one_way(student, teacher):
        log_target = jax.nn.log_softmax(candidates(teacher_scale * teacher, sample, NEVER), axis=1)
        log_p = jax.nn.log_softmax(candidates(scaled(student, sample, scale), sample, NEVER), axis=1)
        target = jnp.exp(log_target)
        total = lambda logs: weighed_sum(-jnp.sum(target * logs, axis=1), sample)
        return total(log_p), total(log_target)

    (loss_x, entropy_x), (loss_y, entropy_y) = one_way(student, teacher), one_way(student.T, teacher.T)
    return (loss_x + loss_y) / 2, (entropy_x + entropy_y) / 2


def affinity_ring(mesh, rows, columns, scale, teacher_scale, sample=NO_OVERRIDES):
    """The same as `affinity_plain`, block by block: expectations under the teacher travel with its log-sum-exp."""

    def start(e):
        zero = zero_rows(e)
        side = dict(top=zero - jnp.inf, total=zero)
        return dict(student=side, teacher=side, expected=zero, entropy=zero)

    def grown(side, logits):
        """The running log-sum-exp, what the sums before must be multiplied by, and the new exponentials."""
        top = jnp.maximum(side["top"], jax.lax.stop_gradient(jnp.max(logits, axis=1)))
        before, new = jnp.exp(side["top"] - top), jnp.exp(logits - top[:, None])
        return dict(top=top, total=side["total"] * before + jnp.sum(new, axis=1)), before, new

    def fold(state, student, teacher, columns):
        student, teacher = candidates(student, columns, NEVER), candidates(teacher, columns, NEVER)
        student_side, _, _ = grown(state["student"], student)
        teacher_side, before, new = grown(state["teacher"], teacher)
        return dict(
            student=student_side,
            teacher=teacher_side,
            expected=state["expected"] * before + jnp.sum(new * student, axis=1),
            entropy=state["entropy"] * before + jnp.sum(new * teacher, axis=1),
        )

    def block(rows, columns, row_state, column_state, params):
        student, teacher = _similarities(rows[0], columns[0])
        scale, teacher = params[0], params[1] * teacher
        of_rows, of_columns = scaled(student, rows[1], scale), scaled(student.T, columns[1], scale)
        return fold(row_state, of_rows, teacher, columns[1]), fold(column_state, of_columns, teacher.T, rows[1])

    def one_way(s, sample):
        log_total = lambda side: jnp.log(side["total"]) + side["top"]
        mean = lambda name: s[name] / s["teacher"]["total"]
        loss = log_total(s["student"]) - mean("expected")
        return weighed_sum(loss, sample), weighed_sum(log_total(s["teacher"]) - mean("entropy"), sample)

    def finish(row_state, column_state, rows, columns):
        (loss_x, entropy_x), (loss_y, entropy_y) = one_way(row_state, rows[1]), one_way(column_state, columns[1])
        return (loss_x + loss_y) / 2, (entropy_x + entropy_y) / 2

    return ring(mesh, block, finish, start, (rows, sample), (columns, sample), (scale, teacher_scale))


def _similarities(rows, columns):
    """Cosines [rows, columns] of the student and of the teacher, the latter without a gradient."""
    student, teacher = (similarity(x, y) for x, y in zip(rows, columns, strict=True))
    return student, jax.lax.stop_gradient(teacher)


@dataclasses.dataclass(frozen=True)
class FeatureMatching(Objective):
    """One minus the cosine of the student's and the teacher's embedding, mean over towers and samples.

    CLIP-KD's feature distillation (Yang et al. 2024, section 3.2), half the squared distance of unit vectors. A student
    of another width learns a linear map to the teacher's. The paper weighs the mean over a vector's entries, summed for
    both towers, by 2,000; here that is a weight of 8,000 over the width, 16 at 512.

    Attributes:
      teacher: name of the provider, in `config.providers`, that gives the teacher's embeddings.
      towers: whose `pooled` learn.
      widths: of the teacher's embeddings, one for each tower; () takes what it has.
    """

    teacher: str = "teacher"
    towers: tuple[str, ...] = ("image", "text")
    widths: tuple[int, ...] = ()
    takes_mixed: ClassVar[bool] = True

    @classmethod
    def settle_facts(cls, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Takes the widths of the teacher's embeddings."""
        names = [f"{entry.get('teacher', cls.teacher)}.{tower}.width" for tower in entry.get("towers", cls.towers)]
        if any(name not in facts for name in names):  # no such provider, which is an error elsewhere
            return {}
        found = tuple(facts[name] for name in names)
        if entry.get("widths", ()) not in ((), found):
            raise ValueError(f"widths={entry['widths']}, and the teacher's embeddings are {found} wide; leave them out")
        return {"widths": found}

    @classmethod
    def alone(cls, entry: Mapping[str, Any]) -> None:
        """Keeps nothing."""

    @property
    def needs(self) -> frozenset[str]:
        """The towers' embeddings."""
        return frozenset(f"{tower}.pooled" for tower in self.towers)

    @property
    def asks(self) -> frozenset[str]:
        """The teacher's embeddings of the same inputs."""
        return frozenset(f"{self.teacher}.{tower}" for tower in self.towers)

    def init(self, key=None, model_spec=None) -> dict:
        """The maps of towers whose width is not the teacher's."""
        params = {}
        for tower, width in zip(self.towers, self.widths):
            pooled = model_spec.towers[tower].pooled_width
            if pooled != width:
                kernel = lecun_normal()(key_tools.named(key, tower), (pooled, width), jnp.float32)
                params[tower] = {"projection": {"kernel": kernel}}
        return params

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Random directions are orthogonal."""
        return 1.0

    def __call__(self, outputs, batch, params, mesh):
        """See `Objective`."""
        cosines = {tower: self._cosine(tower, outputs, batch, params) for tower in self.towers}
        loss = jnp.sum(weighed(1.0 - sum(cosines.values()) / len(cosines), batch))
        metrics = {f"{tower}_cosine": mean_rows(cosine, batch) for tower, cosine in cosines.items()}
        return Loss(loss, count_rows(batch, next(iter(cosines.values())).shape[0]), metrics)

    def _cosine(self, tower: str, outputs, batch, params) -> jax.Array:
        x = outputs[f"{tower}.pooled"]
        if tower in params:
            kernel = params[tower]["projection"]["kernel"]
            x = jnp.dot(x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(normalize(x) * batch[f"{self.teacher}.{tower}"], axis=-1)
