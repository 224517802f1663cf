"""Attention on each device's part of batch and heads, and around a ring of devices where the length is cut.

Liu et al. 2023 (Ring Attention with Blockwise Transformers): keys and values travel from device to device, and what
each block of them gives is joined by its log-sum-exp, which is exact. The backward pass goes around once more and makes
each block's scores again, so a device holds its own part of the keys and one that is passing by, whatever the length.

With a causal mask the device at the ring's end sees all keys and the first one only its own: half of the time is
waited, as no part of the text is moved to even it out. Axes as in `kernels.attention`.
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

  def run(cut: Cut, q, k, v, segments):
    if "heads" in cut and "kv_heads" not in cut:  # too few to cut: each device takes those of its own queries
      k, v = (_own_groups(x, q.shape[2], heads // groups, cut["heads"]) for x in (k, v))
    how = {"causal": causal, "window": window, "softcap": softcap}
    if "length" not in cut:
      return kernel(q, k, v, segment_ids=segments, **how)[0]
    axis = cut["length"][0]
    if window:
      return by_neighbours(q, k, v, segments, axis, **how)
    return by_ring(q, k, v, segments, axis, causal, softcap)

  ins = (queries, keys, keys, None if segment_ids is None else ("batch", "length"))
  return spread(run, ins, queries)(q_BLHK, k_BLGK, v_BLGK, segment_ids)


def by_ring(q, k, v, segments, axis: str, causal: bool, softcap: float) -> jax.Array:
  """Inside a shard_map over `axis`, which cuts the length → this part's output_BLHK."""
  return _ring(q, k, v, segments, axis, causal, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _ring(q, k, v, segments, axis, causal, softcap):
  return _around(q, k, v, segments, axis, causal, softcap)[0]


def _forward(q, k, v, segments, axis, causal, softcap):
  output, sums = _around(q, k, v, segments, axis, causal, softcap)
  return output, (q, k, v, segments, output, sums)


def _around(q, k, v, segments, axis, causal, softcap) -> tuple[jax.Array, jax.Array]:
  """→ (output_BLHK of q's dtype, log_sum_exp_BLH)."""
  output, sums = kernel(q, k, v, causal=causal, segment_ids=segments, softcap=softcap)
  own = segments

  def turn(step, carry):
    k, v, segments, output, sums = carry
    k, v, segments = _passed((k, v, segments), axis)

    def join(output, sums):
      more, more_sums = kernel(q, k, v, segment_ids=None if segments is None else (own, segments), softcap=softcap)
      joined = jnp.logaddexp(sums, more_sums)
      return sum(
        each.astype(jnp.float32) * _share(part, joined)[..., None] for each, part in ((output, sums), (more, more_sums))
      ), joined

    output, sums = _if_seen(step, axis, causal, join, output, sums)
    return k, v, segments, output, sums

  start = (k, v, segments, output.astype(jnp.float32), sums)
  *_, output, sums = lax.fori_loop(1, lax.axis_size(axis), turn, start)
  return output.astype(q.dtype), sums


def _backward(axis, causal, softcap, saved, to_output):
  q, k, v, own, output, sums = saved
  # What a score's gradient subtracts, which is the whole row's: d·(o_block − o) below.
  whole = (to_output.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1)

  def slopes(k, v, segments, diagonal):
    """Gradients to q, k and v by one block of keys."""

    def block(q, k, v):
      pair = None if segments is None else (own, segments)
      return kernel(q, k, v, causal=diagonal, segment_ids=pair, softcap=softcap)

    (part, part_sums), pull = jax.vjp(block, q, k, v)
    share = _share(part_sums, sums)
    to_part = (to_output.astype(jnp.float32) * share[..., None]).astype(part.dtype)
    inner = (to_output.astype(jnp.float32) * part.astype(jnp.float32)).sum(axis=-1)
    return tuple(x.astype(jnp.float32) for x in pull((to_part, share * (inner - whole))))

  to_q, to_k, to_v = slopes(k, v, own, causal)

  def turn(step, carry):
    k, v, segments, to_q, to_k, to_v = carry
    k, v, segments, to_k, to_v = _passed((k, v, segments, to_k, to_v), axis)

    def add(*before):
      return tuple(map(jnp.add, before, slopes(k, v, segments, False)))

    to_q, to_k, to_v = _if_seen(step, axis, causal, add, to_q, to_k, to_v)
    return k, v, segments, to_q, to_k, to_v

  *_, to_q, to_k, to_v = lax.fori_loop(1, lax.axis_size(axis), turn, (k, v, own, to_q, to_k, to_v))
  to_k, to_v = _passed((to_k, to_v), axis)  # home, where the keys began
  return to_q.astype(q.dtype), to_k.astype(k.dtype), to_v.astype(v.dtype), None


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


def _if_seen(step, axis: str, causal: bool, function, *arrays):
  """function(*arrays) where the block that came `step` places is seen: with a causal mask only those from before."""
  if not causal:
    return function(*arrays)
  return lax.cond(lax.axis_index(axis) >= step, function, lambda *arrays: arrays, *arrays)


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
  """exp(part − whole), 0 where the whole sees nothing."""
  return jnp.where(jnp.isfinite(whole), jnp.exp(part - whole), 0.0)


def _own_groups(x_BLGK: jax.Array, own_heads: int, shared: int, axes: tuple[str, ...]) -> jax.Array:
  """Of all key or value heads, one for each of this device's query heads."""
  heads = lax.axis_index(axes) * own_heads + jnp.arange(own_heads)
  return jnp.take(x_BLGK, heads // shared, axis=2)
