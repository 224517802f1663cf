"""Which tokens of a text a masked language model guesses, and what stands in their place (Devlin et al. 2019, 3.1).

Of n tokens exactly the share of n is chosen, rounded, and at least one, as in Devlin et al.'s code: a text is never
without a guess, and their number has a bound, so that the product with the vocabulary is done for them alone. Choosing
each by itself (Bernoulli) has neither. Axes: B batch, L tokens of a text, K places, V vocabulary, R ordinary tokens.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.data.tokenizers import Tokenizer, word_edges
from research.errors import UserError
from research.task import Key

NO_TARGET = -1
MASKED, REPLACED = 0.8, 0.1  # of the chosen: what becomes [MASK], what another token; the rest stays


class Masked(NamedTuple):
  """Texts with tokens taken out.

  Attributes:
    inputs_BL: int32, what the model sees; negative where there is no text.
    places_BK: int32, distinct places of each text.
    targets_BK: int32, what stood there, NO_TARGET where fewer than K places are guessed.
  """

  inputs_BL: jax.Array
  places_BK: jax.Array
  targets_BK: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Masking:
  """How texts of one tokenizer are masked.

  Attributes:
    mask: id of [MASK].
    ordinary_V: bool: which tokens may be chosen, and may stand for another: not those for a text's end or for what the
      tokenizer does not know.
    opens_V, closes_V: bool, from `tokenizers.word_edges`.
    share: of a text's ordinary tokens that are chosen.
    whole_words: choose words instead of tokens: words in random order, of which each is taken that does not make the
      chosen tokens more than the share. A word of more tokens than that is never chosen.
  """

  mask: int
  ordinary_V: np.ndarray
  opens_V: np.ndarray
  closes_V: np.ndarray
  share: float = 0.15
  whole_words: bool = False

  def __post_init__(self):
    if not 0.0 < self.share < 1.0:
      raise UserError(f"masking: a share of {self.share:g} of the tokens; it must be above 0 and below 1, as 0.15 is")

  def most(self, length: int) -> int:
    """K: the most that are chosen of `length` tokens."""
    return max(1, math.floor(self.share * length + 0.5))

  def __call__(self, tokens_BL: jax.Array, index_B: jax.Array, key: Key) -> Masked:
    """Masks each text with a key of its own, of `key` and the number of the example: the texts beside it, and where it
    stands among them, change nothing.

    Args:
      tokens_BL: int32, negative where there is no text.
      index_B: int32, the examples' numbers.
      key: of the update, or a fixed one in evaluation.
    """
    keys_B = jax.vmap(lambda index: jax.random.fold_in(key, index))(index_B)
    return Masked(*jax.vmap(self._masked)(tokens_BL, keys_B))

  def _masked(self, tokens_L: jax.Array, key: Key) -> tuple[jax.Array, jax.Array, jax.Array]:
    choice_key, kind_key, other_key = jax.random.split(key, 3)
    places_K, is_chosen_K = self._chosen(tokens_L, choice_key)
    targets_K = tokens_L[places_K]
    ordinary_R = jnp.asarray(np.flatnonzero(self.ordinary_V), jnp.int32)
    others_K = ordinary_R[jax.random.randint(other_key, places_K.shape, 0, len(ordinary_R))]
    kind_K = jax.random.uniform(kind_key, places_K.shape)
    seen_K = jnp.where(kind_K < MASKED, self.mask, jnp.where(kind_K < MASKED + REPLACED, others_K, targets_K))
    inputs_L = tokens_L.at[places_K].set(jnp.where(is_chosen_K, seen_K, targets_K))
    return inputs_L, places_K, jnp.where(is_chosen_K, targets_K, NO_TARGET)

  def _chosen(self, tokens_L: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
    """(places_K, distinct; which of them are chosen, bool)."""
    length = tokens_L.shape[0]
    most = self.most(length)
    ordinary_L = jnp.asarray(self.ordinary_V)[jnp.maximum(tokens_L, 0)] & (tokens_L >= 0)
    size = ordinary_L.sum()
    wanted = jnp.floor(self.share * size.astype(jnp.float32) + 0.5).astype(jnp.int32)
    wanted = jnp.minimum(jnp.clip(wanted, 1, most), size)
    draw_L = jax.random.uniform(key, (length,))
    if self.whole_words:
      in_words_L = self._words(tokens_L, ordinary_L, draw_L, wanted)
      is_chosen_K, places_K = jax.lax.top_k(in_words_L.astype(jnp.float32), most)
      return places_K, is_chosen_K > 0
    _, places_K = jax.lax.top_k(jnp.where(ordinary_L, draw_L, -1.0), most)
    return places_K, jnp.arange(most) < wanted

  def _words(self, tokens_L: jax.Array, ordinary_L: jax.Array, draw_L: jax.Array, wanted: jax.Array) -> jax.Array:
    """The tokens of the chosen words, bool (L,)."""
    length = tokens_L.shape[0]
    ids_L = jnp.maximum(tokens_L, 0)
    opens_L = jnp.asarray(self.opens_V)[ids_L] & ordinary_L
    closes_L = jnp.asarray(self.closes_V)[ids_L] & ordinary_L
    goes_on_L = jnp.concatenate([jnp.zeros(1, bool), opens_L[1:] & closes_L[:-1]])
    word_L = jnp.cumsum(~goes_on_L) - 1  # the number of its word
    size_W = jax.ops.segment_sum(ordinary_L.astype(jnp.int32), word_L, num_segments=length)
    order_W = jnp.argsort(draw_L)

    def take(taken: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
      fits = (size > 0) & (taken + size <= wanted)
      return taken + jnp.where(fits, size, 0), fits

    _, is_taken_W = jax.lax.scan(take, jnp.zeros((), jnp.int32), size_W[order_W])
    return jnp.zeros(length, bool).at[order_W].set(is_taken_W)[word_L] & ordinary_L


def masking_of(tokenizer: Tokenizer, mask: int, *, share: float = 0.15, whole_words: bool = False) -> Masking:
  """The masking of texts of `tokenizer`; `mask` is an id beyond its own. UserError for an impossible share."""
  ordinary_V = tokenizer.bytes_V > 0  # a text's end stands for none, nor does what fills up a vocabulary
  if (unknown := getattr(tokenizer, "unknown", None)) is not None:
    ordinary_V[unknown] = False
  return Masking(mask, ordinary_V, *word_edges(tokenizer), share, whole_words)
