"""The training step: one pure, jitted function from (state, batch) to (state, metrics)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from xmodal import keys as key_tools
from xmodal.building import init_params
from xmodal.models.batch_norm import STATISTICS, updated
from xmodal.training.losses import Given, Losses
from xmodal.training.optimizer import OptimizerPlan, ema_update

State = dict
Metrics = dict[str, jax.Array]


def init_state(losses: Losses, plan: OptimizerPlan, key: jax.Array, *, ema: bool) -> State:
    """Returns the state before the first step; jit it with `out_shardings` to create it sharded.

    Keys: `step` (int32), `params`, `opt_state`, `carried` (what objectives change without a gradient, where there is
    any), `ema` (averaged params, when wanted), `nonfinite` (skipped steps in a row) and `nonfinite_total`.
    """
    params = init_params(losses.model, losses.objectives, key)
    state = dict(step=jnp.int32(0), params=params, opt_state=plan.tx.init(params))
    if carried := losses.init_carried(key):
        state["carried"] = {"objectives": carried}
    if ema:
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state | dict(nonfinite=jnp.int32(0), nonfinite_total=jnp.int32(0))


def make_step(
    losses: Losses,
    plan: OptimizerPlan,
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    seed: int,
    accumulation: int,
    ema: float,
) -> Callable[[State, Mapping, Mapping], tuple[State, Metrics]]:
    """Builds the step.

    A step whose loss or gradient is not finite changes nothing but the counters: weights, moments and averages stay.
    BatchNorm statistics are averaged with the weights (as in EfficientNet), so EMA weights get EMA statistics.

    Args:
      losses: objectives, providers and model.
      plan: the optimizer and what it leaves frozen.
      learning_rate: schedule, for the metrics.
      seed: of the random keys, which are a pure function of (seed, step, row).
      accumulation: micro-batches per step.
      ema: decay of the averaged weights; 0 keeps none.

    Returns:
      (state, batch, {provider: frozen parameters}) -> (new state, metrics).
    """
    follows = {name: provider.follows for name, provider in losses.providers.items() if provider.follows}

    def step(state: State, batch: Mapping, frozen: Mapping) -> tuple[State, Metrics]:
        keys = key_tools.sample_keys(seed, state["step"], batch["key_id"].shape[0])
        params = state["params"]
        frozen = {**frozen, **{name: state[part] for name, part in follows.items()}}
        carried = state.get("carried", {}).get("objectives", {})
        given = Given(frozen, state["step"], carried)
        (loss, metrics, seen), grads = losses.value_and_grad(params, batch, keys, accumulation, plan.frozen, given)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = plan.tx.update(grads, state["opt_state"], params)
        new = dict(params=losses.bound(optax.apply_updates(params, updates)), opt_state=opt_state)
        if STATISTICS in seen:
            new["params"][STATISTICS] = updated(params[STATISTICS], seen[STATISTICS])
        if carried:
            new["carried"] = {"objectives": losses.carry_on(carried, seen.get("objectives", {}))}
        if ema:
            new["ema"] = ema_update(state["ema"], new["params"], ema, state["step"])
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {key: state[key] for key in new})
        bad = (~finite).astype(jnp.int32)
        new |= dict(
            step=state["step"] + 1,
            nonfinite=(state["nonfinite"] + bad) * bad,
            nonfinite_total=state["nonfinite_total"] + bad,
        )
        metrics |= {
            "train/loss": loss,
            "train/grad_norm": norm,
            "health/nonfinite": new["nonfinite"],
            "health/nonfinite_total": new["nonfinite_total"],
            "lr": learning_rate(state["step"] - state["nonfinite_total"]),  # the optimizer counts finite steps
        }
        for name, schedule in plan.further.items():
            metrics[f"lr/{name}"] = schedule(state["step"] - state["nonfinite_total"])
        return new, metrics

    return step
