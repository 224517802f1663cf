"""Embeddings of hashed n-grams: what a token and those just before it are together (Pagnoni et al. 2024, sec. 3.2.1).

A small network need not spend its layers on spelling: a table knows what follows "th". Axes: B batch, L length, S all
positions that may be looked back to, N the token itself and those before it, D width.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError

_PRIME = 2_654_435_761  # 2^32 over the golden ratio, about (Knuth, The Art of Computer Programming 3, section 6.4)
_MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))  # MurmurHash3's last steps, after which every bit knows every other


class NgramEmbedding(nn.Module):
  """A sum of one row from each length's table; n-grams that share a row share what is learned.

  Attributes:
    lengths: of the n-grams, each at least 2.
    rows: of each table.
    width: D.
    dtype: of the sum; tables are float32.
  """

  lengths: Sequence[int]
  rows: int
  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, past_BLN: jax.Array) -> jax.Array:
    """int32 from `preceding`, N at least the greatest length → (B, L, D)."""
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    total_BLD = jnp.zeros((*past_BLN.shape[:2], self.width), self.dtype)
    for length in self.lengths:
      table = nn.Embed(
        self.rows, self.width, dtype=self.dtype, param_dtype=jnp.float32, embedding_init=init, name=f"of_{length}"
      )
      total_BLD = total_BLD + table(hashed(past_BLN[:, :, :length], self.rows))
    return total_BLD


def preceding(
  tokens_BS: jax.Array, places_BL: jax.Array, count: int, segments_BS: jax.Array | None = None
) -> jax.Array:
  """Each position's token and the `count` − 1 before it, newest first: int32 (B, L, count).

  Args:
    tokens_BS: int32.
    places_BL: int32, where in S each position stands.
    count: N.
    segments_BS: int32; a token of another segment is not told.

  Returns: −1 where there is no such token.
  """
  batch, length = places_BL.shape
  places_BLN = places_BL[:, :, None] - jnp.arange(count, dtype=jnp.int32)[None, None]

  def at(x_BS: jax.Array) -> jax.Array:
    flat = jnp.maximum(places_BLN, 0).reshape(batch, length * count)
    return jnp.take_along_axis(x_BS, flat, axis=1).reshape(batch, length, count)

  known_BLN = places_BLN >= 0
  if segments_BS is not None:
    of_BLN = at(segments_BS)
    known_BLN &= of_BLN == of_BLN[:, :, :1]
  return jnp.where(known_BLN, at(tokens_BS), -1)


def hashed(past_BLN: jax.Array, rows: int) -> jax.Array:
  """The n-grams' rows, int32 (B, L) from 0 to `rows` − 1: the same in every process and on every device."""
  state_BL = jnp.zeros(past_BLN.shape[:2], jnp.uint32)
  for n in range(past_BLN.shape[2]):
    state_BL = (state_BL ^ (past_BLN[:, :, n] + 1).astype(jnp.uint32)) * jnp.uint32(_PRIME)
    state_BL = state_BL ^ (state_BL >> jnp.uint32(15))
  for shift, factor in _MIXING:
    state_BL = (state_BL ^ (state_BL >> jnp.uint32(shift))) * jnp.uint32(factor)
  state_BL = state_BL ^ (state_BL >> jnp.uint32(16))
  return (state_BL % jnp.uint32(rows)).astype(jnp.int32)


def check(lengths: Sequence[int]) -> None:
  """Raises UserError for lengths that no n-gram has."""
  if any(length < 2 for length in lengths) or len(set(lengths)) < len(lengths):
    told = ",".join(map(str, lengths))
    raise UserError(f"flags: --model.ngrams={told}; lengths are different whole numbers from 2 on, such as 2,3,4")
