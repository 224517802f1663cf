"""Which blocks of queries meet which blocks of keys: a kernel's grid walks over these pairs and no others.

A pair that nobody sees is no step, so it costs neither a product nor a transfer nor the third of a microsecond that an
empty step takes. Places (causal, window) are known when a program is traced; segments are not, and then the number of
steps is a number of the program's, too.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.kernels.attention.masks import How

LANES = 128  # columns of a register, which blocks are made of
FIRST, LAST, WHOLE = 1, 2, 4  # bits: the first and last step of an outer block; all of the pair's scores are seen


class Sizes(NamedTuple):
  """How queries and keys are cut.

  Attributes:
    length: of the queries.
    keys: their number.
    query: queries of a block.
    key: keys of a block.
  """

  length: int
  keys: int
  query: int
  key: int

  @property
  def blocks(self) -> tuple[int, int]:
    """Of queries and of keys."""
    return math.ceil(self.length / self.query), math.ceil(self.keys / self.key)

  @property
  def padded(self) -> tuple[int, int]:
    """The lengths that whole blocks have."""
    return self.blocks[0] * self.query, self.blocks[1] * self.key


class Visits(NamedTuple):
  """The steps, those of an outer block side by side.

  Attributes:
    batch_T: int32, a step's row of the batch; zeros where all rows take the same steps.
    outer_T: int32, its block on the side whose results add up: of queries, or with `by_key` of keys.
    inner_T: int32, its block on the other side.
    flags_T: int32 of FIRST, LAST, WHOLE.
    steps: their number, which may be less than T: an int, or int32 ().
    kinds: of (WHOLE, not WHOLE), as 1 and 0, those that may occur.
  """

  batch_T: jax.Array | np.ndarray
  outer_T: jax.Array | np.ndarray
  inner_T: jax.Array | np.ndarray
  flags_T: jax.Array | np.ndarray
  steps: jax.Array | int
  kinds: tuple[int, ...]


def distances(how: How) -> tuple[int | None, int | None]:
  """(least, greatest) number of places that a key may stand before its query; None: any."""
  least = 0 if how.causal else 1 - how.window if how.window else None
  return least, how.window - 1 if how.window else None


def by_place(sizes: Sizes, how: How) -> tuple[np.ndarray, np.ndarray]:
  """→ bool (I, J) and (I, J): the pairs in which some key is seen, and those in which all are."""
  first_i1 = (np.arange(sizes.blocks[0]) * sizes.query)[:, None]
  last_i1 = np.minimum(first_i1 + sizes.query, sizes.length) - 1
  first_1j = (np.arange(sizes.blocks[1]) * sizes.key)[None]
  last_1j = np.minimum(first_1j + sizes.key, sizes.keys) - 1
  ahead = sizes.keys - sizes.length  # the last query stands at the last key
  nearest_ij, farthest_ij = first_i1 + ahead - last_1j, last_i1 + ahead - first_1j
  least, greatest = distances(how)
  met_ij, whole_ij = np.ones(sizes.blocks, bool), np.tile(first_1j + sizes.key <= sizes.keys, (sizes.blocks[0], 1))
  if least is not None:
    met_ij, whole_ij = met_ij & (farthest_ij >= least), whole_ij & (nearest_ij >= least)
  if greatest is not None:
    met_ij, whole_ij = met_ij & (nearest_ij <= greatest), whole_ij & (farthest_ij <= greatest)
  return met_ij, whole_ij


def most(sizes: Sizes, how: How, batch: int) -> int:
  """Steps at most, of the grids by query and by key, where `batch` rows take steps of their own."""
  met_ij, _ = by_place(sizes, how)
  return batch * int(max(np.maximum(met_ij.sum(axis=axis), 1).sum() for axis in (0, 1)))


def visits(sizes: Sizes, how: How, segments: tuple[jax.Array, ...] = (), *, by_key: bool = False) -> Visits:
  """The steps of a grid.

  Args:
    sizes: how it is cut.
    how: causal and window.
    segments: () or int32 of (B, length) and (B, keys), of whole blocks.
    by_key: the outer blocks are the keys'.
  """
  met_ij, whole_ij = by_place(sizes, how)
  limit = most(sizes, how, len(segments[0]) if segments else 1)
  met, whole = met_ij[None], whole_ij[None]
  if segments:
    least_Bi, greatest_Bi, alone_Bi = _ranges(segments[0], sizes.query)
    least_Bj, greatest_Bj, alone_Bj = _ranges(segments[1], sizes.key)
    meet_Bij = (greatest_Bi[:, :, None] >= least_Bj[:, None]) & (greatest_Bj[:, None] >= least_Bi[:, :, None])
    same_Bij = alone_Bi[:, :, None] & alone_Bj[:, None] & (least_Bi[:, :, None] == least_Bj[:, None])
    met, whole = met & meet_Bij, whole & same_Bij
  return _listed(*(each.swapaxes(1, 2) if by_key else each for each in (met, whole)), limit)


def _ranges(segments_BL: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of each block: its least and greatest segment (none: a least above the greatest), and whether it holds no other."""
  segments_Bic = segments_BL.reshape(len(segments_BL), -1, size)
  least = jnp.where(segments_Bic < 0, jnp.iinfo(jnp.int32).max, segments_Bic).min(axis=2)
  greatest = segments_Bic.max(axis=2)
  return least, greatest, (segments_Bic.min(axis=2) == greatest) & (greatest >= 0)


def _listed(met_Boi, whole_Boi, limit: int) -> Visits:
  """Bool (B, outer, inner) → its steps; an outer block that meets nothing has one, as it has results.

  Of arrays in numpy the list is as long as it has steps; in jax it is `limit` long, and the steps come first.
  """
  known = isinstance(met_Boi, np.ndarray)
  xp = np if known else jnp
  blind_Boi = ~met_Boi.any(axis=2, keepdims=True) & (np.arange(met_Boi.shape[2]) == 0)[None, None]
  met_Boi, whole_Boi = met_Boi | blind_Boi, whole_Boi & ~blind_Boi
  number_Boi = xp.cumsum(met_Boi, axis=2)
  first_Boi, last_Boi = number_Boi == 1, number_Boi == number_Boi[:, :, -1:]
  flags_Boi = FIRST * first_Boi.astype(np.int32) | LAST * last_Boi.astype(np.int32) | WHOLE * whole_Boi.astype(np.int32)
  if known:
    index_T, steps = np.flatnonzero(met_Boi), int(met_Boi.sum())
    kinds = tuple(sorted({int(each) for each in whole_Boi[met_Boi]}))
  else:
    index_T, steps = jnp.argsort(~met_Boi.reshape(-1), stable=True)[:limit], met_Boi.sum(dtype=jnp.int32)
    kinds = (0, 1)
  places = (*xp.unravel_index(index_T, met_Boi.shape), flags_Boi.reshape(-1)[index_T])
  return Visits(*(each.astype(np.int32) for each in places), steps, kinds)
