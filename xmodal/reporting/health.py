"""Host-side alarms: what a watchful person would read from the metrics, said once and with a remedy.

The signals are read from the scalars of a metric row:

| scalar | meaning |
|---|---|
| `train/<objective>/loss` | compared with that objective's loss for a model that knows nothing |
| `train/<objective>/logit_scale` | the temperature as a factor on the cosine (CLIP: 14.3 at start, at most 100) |
| `health/<modality>_mean_cosine` | mean cosine of different samples of the batch; 1 means all embeddings agree |
| `health/<modality>_norm` | mean length of the embeddings before normalisation |
| `health/nonfinite_total` | optimizer steps skipped so far because loss or gradient was not finite |
| `health/duplicate_share` | share of the batch whose content or caption occurs more than once in it |
| `throughput/data_wait` | share 0..1 of the time in which the devices waited for the host |
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from xmodal.reporting.formatting import number, percent


@dataclasses.dataclass(frozen=True)
class Signal:
    """One judgement of one row: is the cause there, is it clearly gone, how many steps must it last, what to say."""

    cause: str
    bad: bool
    recovered: bool
    patience: int
    message: str


class Alarms:
    """Turns metric rows into messages: once per cause, and again only after the cause had gone."""

    def __init__(
        self,
        chance_loss: Mapping[str, float],
        total_steps: int = 0,
        max_logit_scale: Mapping[str, float] = MappingProxyType({}),
    ):
        """Prepares the alarms of one run.

        Args:
          chance_loss: objective name -> its loss for a model that knows nothing, such as log(batch) for
            softmax contrastive and log(vocabulary) for captioning; objectives left out are not judged.
          total_steps: length of the run; "long" means a twentieth of it (at least 100 steps).
          max_logit_scale: objective name -> bound of its temperature factor; others are not judged.
        """
        self._chance = dict(chance_loss)
        self._long = max(100, total_steps // 20)
        self._max_logit_scale = dict(max_logit_scale)
        self._since: dict[str, int] = {}  # cause -> step at which it appeared
        self._said: set[str] = set()
        self._skipped = 0.0

    def check(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """Messages of the causes that became certain with this row; usually none.

        Args:
          step: optimizer steps done.
          scalars: the row's scalars, see the table at the top of this file; missing ones are not judged.
        """
        messages = []
        for signal in self._signals(step, scalars):
            if signal.recovered:
                self._said.discard(signal.cause)
            if not signal.bad:
                self._since.pop(signal.cause, None)
                continue
            since = self._since.setdefault(signal.cause, step)
            if step - since >= signal.patience and signal.cause not in self._said:
                self._said.add(signal.cause)
                messages.append(signal.message)
        return messages

    def _signals(self, step: int, scalars: Mapping[str, float]) -> Iterator[Signal]:
        for name, chance in self._chance.items():
            if (loss := scalars.get(f"train/{name}/loss")) is not None and math.isfinite(loss):
                yield self._at_chance(name, loss, chance)
        for name, bound in self._max_logit_scale.items():
            if (scale := scalars.get(f"train/{name}/logit_scale")) is not None:
                yield self._temperature(name, scale, bound)
        for key in [key for key in scalars if key.endswith("_mean_cosine")]:
            place = key.removesuffix("_mean_cosine")
            modality = place.rpartition("/")[2]
            yield self._collapse(step, modality, scalars[key])
            if (norm := scalars.get(f"{place}_norm")) is not None:
                yield self._small_norm(modality, norm)
        if (wait := scalars.get("throughput/data_wait")) is not None:
            yield self._data_wait(wait)
        if (share := scalars.get("health/duplicate_share")) is not None:
            yield self._duplicates(share)
        if (skipped := scalars.get("health/nonfinite_total")) is not None:
            yield self._nonfinite(skipped)

    def _at_chance(self, name: str, loss: float, chance: float) -> Signal:
        return Signal(
            f"chance/{name}",
            bad=loss > 0.98 * chance,
            recovered=loss < 0.95 * chance,
            patience=self._long,
            message=f"{name}: the loss ({number(loss)}) has been at chance ({number(chance)}) for {self._long} "
            "steps: nothing is learned. Check that images and captions belong together and that the "
            "tokenizer fits the text, then try a 10 times smaller learning rate or a longer warm-up; a "
            "model that cannot overfit one batch has a bug, not a tuning problem",
        )

    def _collapse(self, step: int, modality: str, cosine: float) -> Signal:
        # A freshly initialised transformer maps everything into a narrow cone; that is no alarm yet.
        return Signal(
            f"collapse/{modality}",
            bad=cosine > 0.95 and step >= self._long,
            recovered=cosine < 0.9,
            patience=0,
            message=f"{modality} embeddings collapse: different samples have a mean cosine of {cosine:.3f} "
            "(1 = all the same). Usually the learning rate is too high or the warm-up too short; constant "
            "input (blank images, empty captions) looks the same, so look at a batch too",
        )

    def _small_norm(self, modality: str, norm: float) -> Signal:
        return Signal(
            f"norm/{modality}",
            bad=norm < 1e-3,
            recovered=norm > 1e-2,
            patience=0,
            message=f"{modality} embeddings vanish: mean norm {norm:.1e} before normalisation, so their direction "
            "is rounding noise. Check the projection's initialisation and that weight decay spares "
            "normalisation scales",
        )

    def _temperature(self, name: str, scale: float, bound: float) -> Signal:
        return Signal(
            f"temperature/{name}",
            bad=scale >= 0.999 * bound,
            recovered=scale < 0.95 * bound,
            patience=0,
            message=f"{name}: the temperature is at its bound (logit scale {number(scale)} of at most "
            f"{number(bound)}). Normal late in a long run with a large batch; early on it means "
            "memorised pairs or a learning rate that is too high for the scale (give it its own "
            "optimizer rule with a smaller lr)",
        )

    def _data_wait(self, wait: float) -> Signal:
        return Signal(
            "data_wait",
            bad=wait > 0.3,
            recovered=wait < 0.15,
            patience=20,
            message=f"the devices wait for data {percent(wait)} of the time. Raise data.threads or data.prefetch, "
            "store smaller images, or move the shards to a faster disk",
        )

    def _duplicates(self, share: float) -> Signal:
        return Signal(
            "duplicates",
            bad=share > 0.25,
            recovered=share < 0.15,
            patience=20,
            message=f"{percent(share)} of a batch shares its content or caption with another sample of the batch. "
            "They are labelled as positives, but teach little: deduplicate the data, use a smaller "
            "batch, or set data.group_key if these are different things",
        )

    def _nonfinite(self, skipped: float) -> Signal:
        fresh, self._skipped = skipped - self._skipped, skipped
        return Signal(
            "nonfinite",
            bad=fresh > 0,
            recovered=fresh <= 0,
            patience=0,
            message=f"{number(skipped)} step{'s' if skipped > 1 else ''} skipped so far because the loss or its "
            "gradient was not finite; the weights are untouched. Now and then is harmless; when it goes on, lower "
            "optimizer.lr or optimizer.clip_norm and look for broken samples",
        )
