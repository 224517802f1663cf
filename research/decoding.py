"""Text from a language model, a token at a time: a cache of keys and values, ways of choosing, beams, stop strings.

Two programs are compiled for a batch and a cache length, whatever the prompts: one reads the prompts, one goes on by a
token. Axes: B texts, S the cache's places, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError
from research.models.attention import Cache
from research.models.language_model import LanguageModel

NEVER = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class Choice:
  """How the next token is chosen. The filters are applied in the order in which they stand here.

  Attributes:
    repetition_penalty: logits of tokens already in the text are divided by it where positive and multiplied where
      negative (Keskar et al. 2019, section 4.1); 1: none.
    temperature: divides the logits; 0: the likeliest token (greedy).
    top_k: only the k likeliest; 0: all.
    top_p: only the likeliest that together reach this probability (Holtzman et al. 2020); 1: all.
    min_p: only those at least this times as likely as the likeliest (Nguyen et al. 2024); 0: all.
  """

  repetition_penalty: float = 1.0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0

  def filtered(self, logits_BV: jax.Array, seen_BV: jax.Array) -> jax.Array:
    """Logits to draw from, NEVER where a token is left out; seen_BV bool."""
    if self.repetition_penalty != 1.0:
      penalty = self.repetition_penalty
      punished_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
      logits_BV = jnp.where(seen_BV, punished_BV, logits_BV)
    if self.temperature == 0.0:
      return logits_BV
    logits_BV = logits_BV / self.temperature
    if self.top_k:
      least_B1 = jax.lax.top_k(logits_BV, min(self.top_k, logits_BV.shape[-1]))[0][:, -1:]
      logits_BV = jnp.where(logits_BV < least_B1, NEVER, logits_BV)
    if self.top_p < 1.0:
      sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
      probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
      # A token stays while those before it do not reach top_p, so the likeliest always does.
      stays_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV < self.top_p
      least_B1 = jnp.where(stays_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
      logits_BV = jnp.where(logits_BV < least_B1, NEVER, logits_BV)
    if self.min_p:
      least_B1 = logits_BV.max(axis=-1, keepdims=True) + math.log(self.min_p)
      logits_BV = jnp.where(logits_BV < least_B1, NEVER, logits_BV)
    return logits_BV

  def __call__(self, keys_B: jax.Array, logits_BV: jax.Array, seen_BV: jax.Array) -> jax.Array:
    """A key for each text → token_B int32."""
    logits_BV = self.filtered(logits_BV, seen_BV)
    if self.temperature == 0.0:
      return logits_BV.argmax(axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def read(model: LanguageModel, params: Any, prompt_BS: jax.Array, length_B: jax.Array) -> tuple[jax.Array, Cache]:
  """Prompts, filled up with anything to the cache's length S → (logits_BV after each prompt's last token, cache)."""
  cache = model.empty_cache(*prompt_BS.shape)
  x_BSD, cache, _ = model.apply({"params": params}, prompt_BS, train=False, cache=cache, method="hidden")
  last_B1D = jnp.take_along_axis(x_BSD, (length_B - 1)[:, None, None], axis=1)
  return model.apply({"params": params}, last_B1D, method="logits")[:, 0], cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(
  model: LanguageModel, params: Any, cache: Cache, token_B: jax.Array, position_B: jax.Array
) -> tuple[jax.Array, Cache]:
  """One more token of each text, at its own position → (logits_BV of the next, cache)."""
  logits_B1V, cache, _ = model.apply(
    {"params": params}, token_B[:, None], train=False, positions_BL=position_B[:, None], cache=cache
  )
  return logits_B1V[:, 0], cache


@functools.partial(jax.jit, static_argnums=0)
def _choose(choice: Choice, key: jax.Array, step: jax.Array, logits_BV: jax.Array, seen_BV: jax.Array):
  """(token_B, seen_BV with it). A text's draw depends on its own row and step, not on its neighbours."""
  rows_B = jnp.arange(logits_BV.shape[0])
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), rows_B)
  token_B = choice(keys_B, logits_BV, seen_BV)
  return token_B, seen_BV.at[rows_B, token_B].set(True)


def generate(
  model: LanguageModel,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  count: int,
  length: int,
  choice: Choice = Choice(),
  key: jax.Array | None = None,
  told: Callable[[np.ndarray], Sequence[bool]] | None = None,
) -> list[list[int]]:
  """Goes on from each prompt by `count` tokens.

  Where a text has filled the cache, all are read again from their last half: a model has no more places.

  Args:
    model: the network.
    params: its parameters.
    prompts: token ids, of any lengths from 1 on.
    count: tokens to make of each.
    length: S, places of the cache: a prompt and one token must fit.
    choice: how tokens are chosen.
    key: of the draws; greedy choices need none.
    told: given token_B after each step, says which texts are finished; they get no more tokens, and when all are, it
      ends.

  Returns: the new tokens of each text. Raises UserError for an empty prompt, ids beyond the vocabulary, and prompts
    that do not fit.
  """
  prompt_BS, length_B = pad(prompts, length=length, vocabulary=model.vocabulary)
  key = jax.random.key(0) if key is None else key
  seen_BV = np.zeros((len(prompts), model.vocabulary), bool)
  for row, prompt in enumerate(prompts):
    seen_BV[row, list(prompt)] = True
  texts, made = [list(prompt) for prompt in prompts], [[] for _ in prompts]
  logits_BV, cache = read(model, params, jnp.asarray(prompt_BS), jnp.asarray(length_B))
  seen_BV, place_B, written = jnp.asarray(seen_BV), jnp.asarray(length_B), int(length_B.max())
  finished = np.zeros(len(prompts), bool)
  for step in range(count):
    token_B, seen_BV = _choose(choice, key, jnp.int32(step), logits_BV, seen_BV)
    is_full = written == length
    if not is_full:  # on its way while the token is looked at
      logits_BV, cache = advance(model, params, cache, token_B, place_B)
      place_B, written = place_B + 1, written + 1
    tokens = np.asarray(token_B)
    for row, token in enumerate(tokens.tolist()):
      texts[row].append(token)
      if not finished[row]:
        made[row].append(token)
    if told is not None:
      finished |= np.asarray(told(tokens), bool)
      if finished.all():
        break
    if is_full:
      halves = [text[-(length // 2) :] for text in texts]
      prompt_BS, length_B = pad(halves, length=length, vocabulary=model.vocabulary)
      logits_BV, cache = read(model, params, jnp.asarray(prompt_BS), jnp.asarray(length_B))
      place_B, written = jnp.asarray(length_B), int(length_B.max())
  return made


def pad(
  prompts: Sequence[Sequence[int]], *, length: int, vocabulary: int, count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """(prompt_BS int32, filled up with zeros; length_B int32). Raises UserError as `generate` does."""
  prompt_BS = np.zeros((len(prompts), length), np.int32)
  for row, prompt in enumerate(prompts):
    if not len(prompt):
      raise UserError(f"sample: prompt {row + 1} is empty; a model goes on from one token at least")
    if len(prompt) + count > length:
      raise UserError(
        f"sample: a prompt of {len(prompt)} tokens does not fit in a context of {length} with {count} to come; at most"
        f" {max(0, length - count)} would"
      )
    if min(prompt) < 0 or max(prompt) >= vocabulary:
      raise UserError(f"sample: token {max(prompt)} is beyond the vocabulary of {vocabulary}")
    prompt_BS[row, : len(prompt)] = prompt
  return prompt_BS, np.asarray([len(prompt) for prompt in prompts], np.int32)


def beam_search(
  model: LanguageModel,
  params: Any,
  prompt: Sequence[int],
  *,
  count: int,
  length: int,
  beams: int,
  end: int | None = None,
  length_penalty: float = 1.0,
) -> list[tuple[float, list[int]]]:
  """The likeliest continuations that `beams` open ones find: (score, tokens), best first.

  A score is the sum of log-probabilities over (number of tokens)^length_penalty (Wu et al. 2016, without the offset). A
  continuation that ends with `end` is finished; the others are of `count` tokens.
  """
  if not 1 <= beams <= model.vocabulary:
    raise UserError(f"sample: {beams} beams; there may be 1 to {model.vocabulary}, the vocabulary")
  prompt_BS, length_B = pad([prompt] * beams, count=count, length=length, vocabulary=model.vocabulary)
  logits_BV, cache = read(model, params, jnp.asarray(prompt_BS), jnp.asarray(length_B))
  total_B = np.full(beams, NEVER, np.float64)
  total_B[0] = 0.0  # all beams are the same at first; one of them counts
  texts: list[list[int]] = [[] for _ in range(beams)]
  finished: list[tuple[float, list[int]]] = []
  for step in range(count):
    log_BV = np.asarray(jax.nn.log_softmax(logits_BV, axis=-1), np.float64)
    scores = (total_B[:, None] + log_BV).ravel()
    order = np.argsort(-scores, kind="stable")[: 2 * beams]  # enough though half of them end
    chosen = []
    for place in order:
      row, token = divmod(int(place), model.vocabulary)
      text = [*texts[row], token]
      if token == end:
        finished.append((scores[place] / len(text) ** length_penalty, text))
      elif len(chosen) < beams:
        chosen.append((row, token, scores[place], text))
    rows, tokens, totals, texts = (list(column) for column in zip(*chosen, strict=True))
    total_B = np.asarray(totals)
    if step + 1 < count:
      cache = _reordered(cache, np.asarray(rows))
      position_B = jnp.full(beams, len(prompt) + step, jnp.int32)
      logits_BV, cache = advance(model, params, cache, jnp.asarray(tokens, jnp.int32), position_B)
  finished += [(total / count**length_penalty, text) for total, text in zip(total_B, texts, strict=True)]
  return sorted(finished, key=lambda pair: -pair[0])[:beams]


def _reordered(cache: Cache, rows_B: np.ndarray) -> Cache:
  return jax.tree.map(lambda x: x[:, rows_B], cache)
