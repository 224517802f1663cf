"""Which blocks of keys a tile of queries has to read, and which blocks of queries a tile of keys: the rest is skipped.

Outside of `full` a block has entries that are not seen. Places are counted as keys are: a query's is its row and how
many more keys than queries there are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.attention.masks import How


class Range(NamedTuple):
  """Blocks [low, high), those in [full_low, full_high) seen wholly; low < high always, all int32 of one shape."""

  low: Any
  full_low: Any
  full_high: Any
  high: Any


def reach(how: How) -> tuple[int | None, int | None]:
  """(how many places before its own, how many after it) a query sees; None: all."""
  most = how.window - 1 if how.window else None
  return most, 0 if how.causal else most


def blocks(first: Any, last: Any, before: int | None, after: int | None, count: int, size: int) -> Range:
  """Of `count` places in blocks of `size`, those that some, and that all, of the places first … last reach.

  Args:
    first: int32 scalar or array; may be negative.
    last: of first's shape.
    before: how far one reaches back; None: to the first place.
    after: how far one reaches ahead; None: to the last.
    count: of places that there are; the last block may have fewer.
    size: of a block.
  """
  there = -(-count // size)
  zero = first * 0
  down = lambda place: lax.div(jnp.maximum(place, 0), zero + size)  # noqa: E731
  low = zero if before is None else down(first - before)
  full_low = zero if before is None else down(last - before + size - 1)
  high = zero + there if after is None else down(last + after + size)
  full_high = zero + count // size if after is None else jnp.minimum(down(first + after + 1), count // size)
  return _ordered(Range(low, full_low, full_high, high), there)


def with_segments(given: Range, tiles_BTc: jax.Array, blocks_BJn: jax.Array) -> Range:
  """The range of each tile, narrowed to blocks that may have one of its segments.

  Args:
    given: of shape (T,).
    tiles_BTc: int32 segments of tiles; negative ones see nothing and are not seen.
    blocks_BJn: of the blocks.

  Returns:
    A `Range` of shape (B, T).
  """
  there = blocks_BJn.shape[1]
  least_BT, most_BT, one_BT = _span(tiles_BTc)
  least_BJ, most_BJ, one_BJ = _span(blocks_BJn)
  meets_BTJ = (least_BT[:, :, None] <= most_BJ[:, None]) & (most_BT[:, :, None] >= least_BJ[:, None])
  same_BTJ = (least_BT[:, :, None] == least_BJ[:, None]) & one_BT[:, :, None] & one_BJ[:, None]
  low, high = _ends(meets_BTJ)
  full_low, full_high = _ends(same_BTJ)
  whole = full_high - full_low == same_BTJ.sum(axis=-1, dtype=jnp.int32)  # nothing between: ids need not be sorted
  full_high = jnp.where(whole, full_high, full_low)
  narrowed = Range(
    jnp.maximum(given.low[None], low),
    jnp.maximum(given.full_low[None], full_low),
    jnp.minimum(given.full_high[None], full_high),
    jnp.minimum(given.high[None], high),
  )
  return _ordered(narrowed, there)


def _ordered(given: Range, there: int) -> Range:
  """With low < high, so that who adds up over the blocks has one to begin with, and full within it."""
  low = jnp.minimum(given.low, there - 1)
  high = jnp.minimum(jnp.maximum(given.high, low + 1), there)
  full_low = jnp.minimum(jnp.maximum(given.full_low, low), high)
  full_high = jnp.minimum(jnp.maximum(given.full_high, full_low), high)
  return Range(low, full_low, full_high, high)


def _span(segments_BTc: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(the least, the greatest, whether all are one) of a tile's segments, of those that are not negative."""
  least, most = segments_BTc.min(axis=-1), segments_BTc.max(axis=-1)
  seen = jnp.where(segments_BTc < 0, jnp.iinfo(jnp.int32).max, segments_BTc).min(axis=-1)
  return seen, most, (least == most) & (least >= 0)


def _ends(found_BTJ: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[from, up to) of the first and the last; (0, 0) where there is none."""
  there = found_BTJ.shape[-1]
  some = found_BTJ.any(axis=-1)
  low = jnp.argmax(found_BTJ, axis=-1).astype(jnp.int32)
  high = there - jnp.argmax(found_BTJ[..., ::-1], axis=-1).astype(jnp.int32)
  return jnp.where(some, low, 0), jnp.where(some, high, 0)
