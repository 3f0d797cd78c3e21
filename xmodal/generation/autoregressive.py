"""Autoregressive decoding with a key-value cache: greedy, sampled, or by beam search, from a prompt."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from xmodal import keys as key_tools
from xmodal.models.model import CrossModalModel, Functional
from xmodal.models.trunk import Cache, cache_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """Text that a continuation starts from; all rows end at the same place, so shorter ones are padded on the left.

    Attributes:
      ids: int32 [batch, length].
      valid: bool [batch, length], false for padding; None: all is text.
      group: int32 [batch, length], as `Tokens.group`: 0 lets a token see all of its group, such as a whole question.
        None: as the tower has it.
      media: int32 [batch, length], as `Tokens.media`; what follows looks at the medium of the last. None: no media.
    """

    ids: jax.Array
    valid: jax.Array | None = None
    group: jax.Array | None = None
    media: jax.Array | None = None

    @classmethod
    def begin(cls, rows: int, bos_id: int) -> "Prompt":
        """The begin token alone."""
        return cls(jnp.full((rows, 1), bos_id, jnp.int32))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
      temperature: 0 takes the best token; otherwise logits / temperature are sampled.
      top_k: only so many of the best tokens are sampled; 0: all.
      top_p: only the best tokens that together have this probability (nucleus sampling, Holtzman et al. 2020).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: temperature and top_k are at least 0, and top_p is above 0 and at most 1")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p choose what is sampled: set temperature above 0")

    def choose(self, logits: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns int32 [batch] for logits [batch, vocab]; -1 where they hold NaN."""
        if self.temperature:
            ids = jax.vmap(jax.random.categorical)(keys, self.kept(logits / self.temperature))
        else:
            ids = jnp.argmax(logits, axis=-1)
        return jnp.where(jnp.isnan(logits).any(axis=-1), -1, ids).astype(jnp.int32)

    def kept(self, logits: jax.Array) -> jax.Array:
        """Returns logits [batch, vocab] that are -inf for tokens outside `top_k` or `top_p`; equals stay together."""
        if self.top_k:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = -jnp.sort(-logits, axis=-1)
            chance = jax.nn.softmax(ordered, axis=-1)
            inside = jnp.cumsum(chance, axis=-1) - chance < self.top_p  # the first is always inside
            least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model that writes text token by token.

    Attributes:
      module: the model with its parameters.
      tower: whose logits choose the next token.
      text: name of the ids in the batch that the tower (or the towers it reads) embeds.
    """

    module: CrossModalModel
    tower: str
    text: str = "text"

    def start(self, batch: Mapping, prompt: Prompt, length: int) -> tuple[jax.Array, dict[str, Cache], jax.Array]:
        """Reads what the text is conditioned on and the prompt.

        Args:
          batch: raw arrays; text in it is ignored.
          prompt: what the text starts with.
          length: tokens of the whole text, prompt and padding included.

        Returns:
          Logits [rows, vocab] of the next token, caches, and the position of the next token, int32 [rows].
        """
        given = {n: a for n, a in batch.items() if n != self.text and not n.startswith(f"{self.text}_")}
        rows, text = prompt.ids.shape[0], self.text
        caches = self.module.init_caches(self.tower, rows, length, given)
        valid = jnp.ones(prompt.ids.shape, bool) if prompt.valid is None else prompt.valid
        if prompt.valid is not None:
            self._check_padding()
        number = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        given |= {text: prompt.ids, f"{text}_valid": valid, f"{text}_pos": jnp.maximum(number - 1, 0)}
        given |= {} if prompt.group is None else {f"{text}_group": prompt.group}
        given |= {} if prompt.media is None else {f"{text}_media": prompt.media}
        logits, caches = self._call(given, caches, prefill=True)
        return logits, caches, number[:, -1]

    def advance(
        self, ids: jax.Array, place: jax.Array, caches: dict[str, Cache], media: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Cache]]:
        """Reads one token a row.

        Args:
          ids: int32 [rows].
          place: their positions, int32 [rows].
          caches: state so far.
          media: int32 [rows], which medium they may look at, or None.

        Returns:
          Logits [rows, vocab] of the next token, and the new caches.
        """
        text = self.text
        inputs = {text: ids[:, None], f"{text}_pos": place[:, None]}
        inputs |= {} if media is None else {f"{text}_media": media[:, None]}
        return self._call(inputs, caches, prefill=False)

    def _call(self, inputs: Mapping, caches: dict[str, Cache], prefill: bool):
        name = f"{self.tower}.logits"
        out = self.module(inputs, frozenset({name}), caches=caches, prefill=prefill)
        return out[name][:, -1], out["caches"]

    def _check_padding(self) -> None:
        for name, tower in self.module.spec.towers.items():
            embed = tower.embed
            if embed is not None and embed.decodes and embed.input == self.text and not embed.mask_padding:
                raise ValueError(f"prompts are padded, and the tower {name!r} sees padding: its mask_padding is False")


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
    prompt: Prompt | None = None,
    sampling: Sampling | None = None,
    keys: jax.Array | None = None,
) -> jax.Array:
    """Generates text for a batch; jit it with the keyword arguments closed over.

    Args:
      model: a model whose `tower` has logits.
      params: its parameters.
      batch: what the text is conditioned on, such as preprocessed images [batch, height, width, 3]; text in it is
        ignored.
      tower: the tower whose logits choose the next token.
      length: tokens to return, prompt and end token included; at least one more than the prompt has.
      bos_id: first token of every sequence that has no prompt.
      eos_id: ends a sequence.
      pad_id: fills a sequence after its end.
      text: name of the ids in the batch that the tower (or the towers it reads) embeds.
      prompt: what the text starts with; None: the begin token.
      sampling: how a token is chosen; None: the best.
      keys: per-sample random keys [batch], needed for sampling.

    Returns:
      int32 [batch, length], prompt included; -1 stands for tokens that were chosen by logits with NaN.
    """
    sampling = sampling or Sampling()
    if sampling.temperature and keys is None:
        raise ValueError("sampling (temperature > 0) needs per-sample random keys")
    prompt = prompt or Prompt.begin(_rows(batch, text), bos_id)
    new = _new_tokens(prompt, length)
    decoder = Decoder(model.bind(params), tower, text)
    logits, caches, place = decoder.start(batch, prompt, length)
    media = None if prompt.media is None else prompt.media[:, -1]
    draw = lambda number: None if keys is None else key_tools.fold(keys, number)

    def finish(ids, ended, caches):
        ids = jnp.where(ended, pad_id, ids)
        return (ids, ended | (ids == eos_id), caches), ids

    def step(carry, number):
        ids, ended, caches = carry
        logits, caches = decoder.advance(ids, place + number - 1, caches, media)
        return finish(sampling.choose(logits, draw(number)), ended, caches)

    carry, first = finish(sampling.choose(logits, draw(0)), jnp.zeros(len(place), bool), caches)
    _, rest = jax.lax.scan(step, carry, jnp.arange(1, new))
    return jnp.concatenate([prompt.ids, first[:, None], rest.T], axis=1)


def _rows(batch: Mapping[str, jax.Array], text: str) -> int:
    """Samples of a batch whose text is ignored."""
    given = {name: value for name, value in batch.items() if name != text and not name.startswith(f"{text}_")}
    return next(len(array) for array in jax.tree.leaves(given) if array.ndim)


def _new_tokens(prompt: Prompt, length: int) -> int:
    if length <= prompt.ids.shape[1]:
        raise ValueError(
            f"length counts the begin token or prompt ({prompt.ids.shape[1]}) and at least one token after it, "
            f"got {length}"
        )
    return length - prompt.ids.shape[1]


def beam_search(
    model: Functional,
    params: Mapping,
    batch: Mapping[str, jax.Array],
    *,
    tower: str,
    length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    beams: int,
    length_penalty: float = 1.0,
    text: str = "text",
    prompt: Prompt | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Searches for the text of the highest score: the sum of its log probabilities / tokens ** length_penalty.

    Tokens are those after the prompt, end token included. Every step keeps the `beams` best texts that go on, and the
    `beams` best that have ended; at the end all of them are compared.

    Args:
      model: as for `generate`, and so are the other arguments.
      params: its parameters.
      batch: what the text is conditioned on.
      tower: the tower whose logits are searched.
      length: tokens to return, prompt included.
      bos_id: first token of every sequence that has no prompt.
      eos_id: ends a sequence.
      pad_id: fills a sequence after its end.
      beams: texts that are followed at a time.
      length_penalty: 0 compares sums, which favours short texts; 1 means.
      text: name of the ids in the batch.
      prompt: what the text starts with; None: the begin token.

    Returns:
      int32 [batch, length] and its score, float32 [batch]; -1 and NaN for rows whose logits held NaN.
    """
    prompt = prompt or Prompt.begin(_rows(batch, text), bos_id)
    new = _new_tokens(prompt, length)
    decoder = Decoder(model.bind(params), tower, text)
    logits, caches, place = decoder.start(batch, prompt, length)
    rows = len(place)
    several = jnp.repeat(jnp.arange(rows), beams)
    media = None if prompt.media is None else prompt.media[several, -1]
    caches = {name: cache_rows(cache, several) for name, cache in caches.items()}
    search = _Beams.empty(rows, beams, new, pad_id)
    search, _ = search.grown(jnp.repeat(logits[:, None], beams, axis=1), 0, eos_id, length_penalty)

    def step(carry, number):
        search, caches = carry
        ids = search.ids[:, :, number - 1].reshape(-1)
        logits, caches = decoder.advance(ids, place[several] + number - 1, caches, media)
        search, parents = search.grown(logits.reshape(rows, beams, -1), number, eos_id, length_penalty)
        chosen = (jnp.arange(rows)[:, None] * beams + parents).reshape(-1)
        return (search, {name: cache_rows(cache, chosen) for name, cache in caches.items()}), None

    (search, _), _ = jax.lax.scan(step, (search, caches), jnp.arange(1, new))
    ids, score = search.best(new, length_penalty)
    return jnp.concatenate([prompt.ids, ids], axis=1), score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beams:
    """Texts that go on, and texts that have ended.

    Attributes:
      ids: int32 [rows, beams, new], of texts that go on.
      score: float32 [rows, beams], sums of log probabilities; -inf where there is no text.
      ended: int32 [rows, beams, new], of texts that have ended, padded.
      ended_score: float32 [rows, beams], with the length penalty.
      broken: bool [rows], whether logits held NaN.
    """

    ids: jax.Array
    score: jax.Array
    ended: jax.Array
    ended_score: jax.Array
    broken: jax.Array

    @classmethod
    def empty(cls, rows: int, beams: int, new: int, pad_id: int) -> "_Beams":
        """One text without tokens, which goes on."""
        ids = jnp.full((rows, beams, new), pad_id, jnp.int32)
        nothing = jnp.full((rows, beams), -jnp.inf)
        return cls(ids, nothing.at[:, 0].set(0.0), ids, nothing, jnp.zeros(rows, bool))

    def grown(self, logits: jax.Array, number: jax.Array | int, eos_id: int, penalty: float):
        """Adds token `number` to every text by logits [rows, beams, vocab]; returns (beams, parents [rows, beams])."""
        beams, vocab = logits.shape[1:]
        broken = self.broken | jnp.isnan(logits).any(axis=(1, 2))
        total = self.score[..., None] + jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        total = jnp.where(jnp.isnan(total), -jnp.inf, total)
        is_end = jnp.arange(vocab) == eos_id
        score, chosen = jax.lax.top_k(jnp.where(is_end, -jnp.inf, total).reshape(len(broken), -1), beams)
        parents, tokens = chosen // vocab, (chosen % vocab).astype(jnp.int32)
        ids = jnp.take_along_axis(self.ids, parents[..., None], axis=1).at[:, :, number].set(tokens)
        # Each text that goes on may end here; of these and all that ended before, the best stay.
        end = jnp.max(jnp.where(is_end, total, -jnp.inf), axis=-1) / (number + 1.0) ** penalty
        ended_score, best = jax.lax.top_k(jnp.concatenate([self.ended_score, end], axis=1), beams)
        both = jnp.concatenate([self.ended, self.ids.at[:, :, number].set(eos_id)], axis=1)
        ended = jnp.take_along_axis(both, best[..., None], axis=1)
        return _Beams(ids, score, ended, ended_score, broken), parents

    def best(self, new: int, penalty: float) -> tuple[jax.Array, jax.Array]:
        """Returns the best text of each row, int32 [rows, new], and its score."""
        scores = jnp.concatenate([self.ended_score, self.score / float(new) ** penalty], axis=1)
        texts = jnp.concatenate([self.ended, self.ids], axis=1)
        first = jnp.argmax(scores, axis=1)
        ids = jnp.take_along_axis(texts, first[:, None, None], axis=1)[:, 0]
        score = jnp.take_along_axis(scores, first[:, None], axis=1)[:, 0]
        return jnp.where(self.broken[:, None], -1, ids), jnp.where(self.broken, jnp.nan, score)
