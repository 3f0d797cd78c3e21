"""Autoregressive decoding with a key-value cache: greedy, or sampled with a temperature."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from xmodal import keys as key_tools
from xmodal.models.model import Functional


def generate(
    model: Functional,
    params: Mapping,
    batch: Mapping[str, jax.Array],
    *,
    tower: str,
    length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    text: str = "text",
    temperature: float = 0.0,
    keys: jax.Array | None = None,
) -> jax.Array:
    """Generates text for a batch; jit it with the keyword arguments closed over.

    Args:
      model: a model whose `tower` has logits.
      params: its parameters.
      batch: what the text is conditioned on, such as preprocessed images [batch, height, width, 3]; text in it is
        ignored.
      tower: the tower whose logits choose the next token.
      length: tokens to return, begin and end marks included; at least 2.
      bos_id: first token of every sequence.
      eos_id: ends a sequence.
      pad_id: fills a sequence after its end.
      text: name of the ids in the batch that the tower (or the towers it reads) embeds.
      temperature: 0 takes the best token; otherwise logits / temperature are sampled.
      keys: per-sample random keys [batch], needed for sampling.

    Returns:
      int32 [batch, length]; -1 stands for tokens that were chosen by logits with NaN.
    """
    if temperature and keys is None:
        raise ValueError("sampling (temperature > 0) needs per-sample random keys")
    if length < 2:
        raise ValueError(f"length counts the begin mark and at least one token after it, got {length}")
    batch = {name: value for name, value in batch.items() if name not in (text, f"{text}_valid")}
    module, want = model.bind(params), frozenset({f"{tower}.logits"})
    size = next(iter(batch.values())).shape[0]
    caches = module.init_caches(tower, size, length)

    def advance(ids, start, caches, prefill):
        inputs = {text: ids[:, None], f"{text}_start": start}
        inputs |= dict(batch) if prefill else {}
        out = module(inputs, want, caches=caches, prefill=prefill)
        return out[f"{tower}.logits"][:, -1], out["caches"]

    def choose(logits, number):
        if temperature:
            draw = jax.vmap(jax.random.categorical)
            ids = draw(key_tools.fold(keys, number), logits / temperature)
        else:
            ids = jnp.argmax(logits, axis=-1)
        return jnp.where(jnp.isnan(logits).any(axis=-1), -1, ids).astype(jnp.int32)

    def step(carry, number):
        ids, ended, caches = carry
        logits, caches = advance(ids, number, caches, prefill=False)
        return finish_token(choose(logits, number), ended, caches)

    def finish_token(ids, ended, caches):
        ids = jnp.where(ended, pad_id, ids)
        return (ids, ended | (ids == eos_id), caches), ids

    first = jnp.full((size,), bos_id, jnp.int32)
    logits, caches = advance(first, jnp.int32(0), caches, prefill=True)
    carry, second = finish_token(choose(logits, 0), jnp.zeros((size,), bool), caches)
    _, rest = jax.lax.scan(step, carry, jnp.arange(1, length - 1))
    return jnp.concatenate([first[:, None], second[:, None], rest.T], axis=1)
