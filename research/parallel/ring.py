"""Attention on each device's part of batch and heads, and around a ring of devices where the length is cut.

Liu et al. 2023 (Ring Attention with Blockwise Transformers): keys and values travel from device to device, and what
each block of them gives is joined by its log-sum-exp, which is exact. The backward pass goes around once more and makes
each block's scores again, so a device holds its own part of the keys and one that is passing by, whatever the length.

With a causal mask the device at the ring's end would see all keys and the first one only its own. So each device deals
with one half of a part from the text's beginning and one from its end (`_dealt`): of every block of keys that passes
by exactly half is seen, on all of them. Axes as in `kernels.attention`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.attention import attention as kernel
from research.parallel.activations import Cut, spread


def attention(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  *,
  causal: bool,
  segment_ids: jax.Array | None,
  window: int,
  softcap: float,
) -> jax.Array:
  """`kernels.attention` of a text with itself → output_BLHK, by whatever layout it is traced in."""
  heads, groups = q_BLHK.shape[2], k_BLGK.shape[2]
  queries, keys = ("batch", "length", "heads", None), ("batch", "length", "kv_heads", None)

  def run(cut: Cut, q, k, v, segments, positions):
    if "heads" in cut and "kv_heads" not in cut:  # too few to cut: each device takes those of its own queries
      k, v = (_own_groups(x, q.shape[2], heads // groups, cut["heads"]) for x in (k, v))
    how = {"causal": causal, "window": window, "softcap": softcap}
    if "length" not in cut:
      return kernel(q, k, v, segment_ids=segments, **how)[0]
    axis = cut["length"][0]
    if window:
      return by_neighbours(q, k, v, segments, axis, **how)
    return by_ring(q, k, v, segments, positions[0] // q.shape[1], axis, causal, softcap)

  ins = (queries, keys, keys, None if segment_ids is None else ("batch", "length"), ("length",))
  # Where a part is, as an array: what depends on nothing differentiation puts into a shard_map of its own, which has no
  # arguments then, and which jaxlib 0.10.2 does not compile.
  positions_L = jnp.arange(q_BLHK.shape[1], dtype=jnp.int32)
  return spread(run, ins, queries)(q_BLHK, k_BLGK, v_BLGK, segment_ids, positions_L)


def by_ring(q, k, v, segments, here: jax.Array, axis: str, causal: bool, softcap: float) -> jax.Array:
  """Inside a shard_map over `axis`, which cuts the length → the output_BLHK of this part, the `here`-th."""
  order = "whole" if not causal else "causal" if q.shape[1] % 2 else "dealt"
  return _ring(q, k, v, segments, here, axis, order, softcap)


def _dealt(tree: Any, here: jax.Array, axis: str, *, back: bool = False) -> Any:
  """Parts of a length, cut in order, as half-parts device i having the i-th and the i-th from the end; or back."""
  count = lax.axis_size(axis)
  homes = [min(half, 2 * count - 1 - half) for half in range(2 * count)]  # of each half-part of the whole length

  def deal(x: jax.Array) -> jax.Array:
    low, high = jnp.split(x, 2, axis=1)
    ways = [[(place, homes[2 * place + odd]) for place in range(count)] for odd in (0, 1)]
    first = here % 2 == 0  # whether this device's lower half comes of a part's first half
    if back:
      ways = [[(home, place) for place, home in way] for way in ways]
      halves = jnp.where(first, low, high), jnp.where(first, high, low)
      return jnp.concatenate([lax.ppermute(half, axis, way) for half, way in zip(halves, ways, strict=True)], axis=1)
    even, odd = (lax.ppermute(half, axis, way) for half, way in zip((low, high), ways, strict=True))
    return jnp.concatenate([jnp.where(first, even, odd), jnp.where(first, odd, even)], axis=1)

  return jax.tree.map(deal, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _ring(q, k, v, segments, here, axis, order, softcap):
  return _forward(q, k, v, segments, here, axis, order, softcap)[0]


def _forward(q, k, v, segments, here, axis, order, softcap):
  if order == "dealt":
    q, k, v, segments = _dealt((q, k, v, segments), here, axis)
  output, sums = _around(q, k, v, segments, axis, order, softcap)
  there = _dealt(output, here, axis, back=True) if order == "dealt" else output
  return there, (q, k, v, segments, here, output, sums)


def _around(q, k, v, segments, axis, order, softcap) -> tuple[jax.Array, jax.Array]:
  """→ (output_BLHK of q's dtype, log_sum_exp_BLH)."""
  output, sums = kernel(q, k, v, causal=order != "whole", segment_ids=segments, softcap=softcap)
  own = segments

  def turn(step, carry):
    k, v, segments, output, sums = carry
    k, v, segments = _passed((k, v, segments), axis)

    def join(queries, keys, output, sums):
      pair = None if segments is None else (own[:, queries], segments[:, keys])
      more, more_sums = kernel(q[:, queries], k[:, keys], v[:, keys], segment_ids=pair, softcap=softcap)
      before, before_sums = output[:, queries], sums[:, queries]
      joined = jnp.logaddexp(before_sums, more_sums)
      parts = ((before, before_sums), (more, more_sums))
      new = sum(each.astype(jnp.float32) * _share(part, joined)[..., None] for each, part in parts)
      return output.at[:, queries].set(new), sums.at[:, queries].set(joined)

    output, sums = _seen(step, axis, order, q.shape[1], join, output, sums)
    return k, v, segments, output, sums

  start = (k, v, segments, output.astype(jnp.float32), sums)
  *_, output, sums = lax.fori_loop(1, lax.axis_size(axis), turn, start)
  return output.astype(q.dtype), sums


def _backward(axis, order, softcap, saved, to_output):
  q, k, v, own, here, output, sums = saved
  if order == "dealt":
    to_output = _dealt(to_output, here, axis)
  # What a score's gradient subtracts, which is the whole row's: d·(o_block − o) below.
  whole = (to_output.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1)

  def slopes(queries, keys, k, v, segments, diagonal=False):
    """Gradients to those of q, k and v by a block of queries and keys."""

    def block(q, k, v):
      pair = None if segments is None else (own[:, queries], segments[:, keys])
      return kernel(q, k, v, causal=diagonal, segment_ids=pair, softcap=softcap)

    (part, part_sums), pull = jax.vjp(block, q[:, queries], k[:, keys], v[:, keys])
    share, slope = _share(part_sums, sums[:, queries]), to_output[:, queries].astype(jnp.float32)
    to_part = (slope * share[..., None]).astype(part.dtype)
    inner = (slope * part.astype(jnp.float32)).sum(axis=-1)
    return tuple(x.astype(jnp.float32) for x in pull((to_part, share * (inner - whole[:, queries]))))

  to_q, to_k, to_v = slopes(slice(None), slice(None), k, v, own, order != "whole")

  def turn(step, carry):
    k, v, segments, to_q, to_k, to_v = carry
    k, v, segments, to_k, to_v = _passed((k, v, segments, to_k, to_v), axis)

    def add(queries, keys, to_q, to_k, to_v):
      more_q, more_k, more_v = slopes(queries, keys, k, v, segments)
      return to_q.at[:, queries].add(more_q), to_k.at[:, keys].add(more_k), to_v.at[:, keys].add(more_v)

    to_q, to_k, to_v = _seen(step, axis, order, q.shape[1], add, to_q, to_k, to_v)
    return k, v, segments, to_q, to_k, to_v

  *_, to_q, to_k, to_v = lax.fori_loop(1, lax.axis_size(axis), turn, (k, v, own, to_q, to_k, to_v))
  to_k, to_v = _passed((to_k, to_v), axis)  # home, where the keys began
  found = to_q.astype(q.dtype), to_k.astype(k.dtype), to_v.astype(v.dtype)
  return (*(_dealt(found, here, axis, back=True) if order == "dealt" else found), None, None)


_ring.defvjp(_forward, _backward)


def by_neighbours(q, k, v, segments, axis: str, *, causal: bool, window: int, softcap: float) -> jax.Array:
  """The same where a position sees a window: the parts that it reaches into are brought here, before and behind."""
  count, length = lax.axis_size(axis), q.shape[1]
  reach = min(-(-(window - 1) // length), count - 1)
  own = jnp.zeros(q.shape[:2], jnp.int32) if segments is None else segments
  sides = range(-reach, 1 if causal else reach + 1)
  parts = [_from(lax.axis_index(axis) + side, side, (k, v, own), axis) for side in sides]
  k, v, segments = (jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True))
  behind = 0 if causal else reach * length
  # The kernel has the last query at the last key: queries that nobody reads stand where the keys behind do.
  q = jnp.pad(q, ((0, 0), (0, behind), (0, 0), (0, 0)))
  own = jnp.pad(own, ((0, 0), (0, behind)), constant_values=-1)
  return kernel(q, k, v, causal=causal, window=window, softcap=softcap, segment_ids=(own, segments))[0][:, :length]


def _from(place: jax.Array, side: int, arrays: tuple[jax.Array, ...], axis: str) -> tuple[jax.Array, ...]:
  """(k, v, segments) of the device `side` places further; −1 for segments beyond the ends, which nobody sees."""
  count = lax.axis_size(axis)
  pairs = [((here + side) % count, here) for here in range(count)]
  k, v, segments = (x if side == 0 else lax.ppermute(x, axis, pairs) for x in arrays)
  return k, v, jnp.where((place >= 0) & (place < count), segments, -1)


def _passed(tree: Any, axis: str) -> Any:
  """Each device has what the one before it had."""
  count = lax.axis_size(axis)
  return lax.ppermute(tree, axis, [(here, (here + 1) % count) for here in range(count)])


def _seen(step, axis: str, order: str, length: int, function, *arrays):
  """function(queries, keys, *arrays), slices of what is seen of the block that came `step` places; else the arrays.

  With a causal mask that is all of a block from before. Dealt, all queries see the lower half of one that comes from a
  device before, and the upper half's queries all of one from behind.
  """
  everything = slice(None)
  if order == "whole":
    return function(everything, everything, *arrays)
  lower, upper = slice(0, length // 2), slice(length // 2, length)
  if order == "causal":
    before, behind = functools.partial(function, everything, everything), lambda *arrays: arrays
  else:
    before, behind = functools.partial(function, everything, lower), functools.partial(function, upper, everything)
  return lax.cond(lax.axis_index(axis) >= step, before, behind, *arrays)


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
  """exp(part − whole), 0 where the whole sees nothing."""
  return jnp.where(jnp.isfinite(whole), jnp.exp(part - whole), 0.0)


def _own_groups(x_BLGK: jax.Array, own_heads: int, shared: int, axes: tuple[str, ...]) -> jax.Array:
  """Of all key or value heads, one for each of this device's query heads."""
  heads = lax.axis_index(axes) * own_heads + jnp.arange(own_heads)
  return jnp.take(x_BLGK, heads // shared, axis=2)
