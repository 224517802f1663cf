"""What the kernels for TPUs do with a block of queries and a block of keys: forward, to the queries, to the keys.

Scores are kept in units of log 2, as the chip has powers of two and no others. What belongs to a row of scores (its
greatest score, its sum) is repeated over LANES columns, as a register holds it anyway. Blocks of keys are the rows of
the scores where gradients to the keys are made, so that nothing is transposed for a product.

Axes: c a block's rows, n its columns, K head width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from research.kernels.attention.masks import How
from research.kernels.attention.pallas_tpu_visits import FIRST, LANES, LAST, WHOLE, Sizes, distances

LOG2E = math.log2(math.e)


def forward(
  batch, outer, inner, flags, q, k, v, query_segments, key_segments, output, sums, greatest, total, gathered, segments,
  *, how: How, sizes: Sizes, kinds: tuple[int, ...],
):  # fmt: skip
  """A step of softmax(scores) v for a block of queries, kept as greatest score, total and gathered values so far (Dao
  et al. 2022, algorithm 1). Grid: (rows of the batch, heads, steps)."""
  del batch
  step = pl.program_id(2)

  @pl.when(flags[step] & FIRST != 0)
  def _():
    greatest[...] = jnp.full_like(greatest, -jnp.inf)
    total[...] = jnp.zeros_like(total)
    gathered[...] = jnp.zeros_like(gathered)
    if segments is not None:
      segments[...] = _column(query_segments[...])

  def add(masked: bool):
    scores_cn, _ = _scores(q[...], k[...], how)
    if masked:
      ids = None if segments is None else (segments[...], key_segments[...])
      scores_cn = _where_seen(scores_cn, 0, outer[step], inner[step], ids, how, sizes)
    before = greatest[...]
    now = jnp.maximum(before, scores_cn.max(axis=1, keepdims=True))
    safe = jnp.where(now == -jnp.inf, 0.0, now) if masked else now  # a row that has seen nothing yet
    raised_cn = jnp.exp2(scores_cn - _across(safe, scores_cn.shape[1]))
    shrunk = jnp.exp2(before - safe)
    greatest[...] = now
    total[...] = total[...] * shrunk + raised_cn.sum(axis=1, keepdims=True)
    more_cK = _product(raised_cn.astype(v.dtype), v[...], 1, 0)
    gathered[...] = gathered[...] * _across(shrunk, more_cK.shape[1]) + more_cK

  _either(add, flags[step], kinds)

  @pl.when(flags[step] & LAST != 0)
  def _():
    sees = total[...] > 0.0
    some = jnp.where(sees, total[...], 1.0)
    output[...] = (gathered[...] * _across(1.0 / some, gathered.shape[1])).astype(output.dtype)
    sums[...] = _row(jnp.where(sees, jnp.log(some) + greatest[...] * (1.0 / LOG2E), -jnp.inf))


def to_queries(
  batch, outer, inner, flags, q, k, v, query_segments, key_segments, to_output, sums, means, to_q,
  sum_columns, mean_columns, gathered, segments, *, how: How, sizes: Sizes, kinds: tuple[int, ...],
):  # fmt: skip
  """A step of the gradient to a block of queries. Grid: (rows of the batch, heads, steps).

  `sums` are log-sum-exps in units of log 2, ∞ where nothing is seen; `means` what the softmax takes off a row's slopes.
  """
  del batch
  step = pl.program_id(2)

  @pl.when(flags[step] & FIRST != 0)
  def _():
    gathered[...] = jnp.zeros_like(gathered)
    sum_columns[...] = _column(sums[...])
    mean_columns[...] = _column(means[...])
    if segments is not None:
      segments[...] = _column(query_segments[...])

  def add(masked: bool):
    scores_cn, slope_cn = _scores(q[...], k[...], how)
    if masked:
      ids = None if segments is None else (segments[...], key_segments[...])
      scores_cn = _where_seen(scores_cn, 0, outer[step], inner[step], ids, how, sizes)
    width = scores_cn.shape[1]
    weights_cn = jnp.exp2(scores_cn - _across(sum_columns[...], width))
    to_weights_cn = _product(to_output[...], v[...], 1, 1)
    to_scores_cn = weights_cn * (to_weights_cn - _across(mean_columns[...], width))
    if slope_cn is not None:
      to_scores_cn = to_scores_cn * slope_cn
    gathered[...] += _product(to_scores_cn.astype(k.dtype), k[...], 1, 0)

  _either(add, flags[step], kinds)

  @pl.when(flags[step] & LAST != 0)
  def _():
    to_q[...] = (gathered[...] * how.scale).astype(to_q.dtype)


def to_keys(
  batch, outer, inner, flags, q, k, v, query_segments, key_segments, to_output, sums, means, to_k, to_v,
  gathered_k, gathered_v, segments, *, how: How, sizes: Sizes, kinds: tuple[int, ...],
):  # fmt: skip
  """A step of the gradients to a block of keys and values, which all the heads that share them add to. Rows of the
  scores are keys. Grid: (rows of the batch, key heads, steps, heads of a key head)."""
  del batch
  step, head, heads = pl.program_id(2), pl.program_id(3), pl.num_programs(3)

  @pl.when((flags[step] & FIRST != 0) & (head == 0))
  def _():
    gathered_k[...] = jnp.zeros_like(gathered_k)
    gathered_v[...] = jnp.zeros_like(gathered_v)
    if segments is not None:
      segments[...] = _column(key_segments[...])

  def add(masked: bool):
    scores_cn, slope_cn = _scores(k[...], q[...], how)
    if masked:
      ids = None if segments is None else (segments[...], query_segments[...])
      scores_cn = _where_seen(scores_cn, 1, inner[step], outer[step], ids, how, sizes)
    weights_cn = jnp.exp2(scores_cn - sums[...])
    gathered_v[...] += _product(weights_cn.astype(to_output.dtype), to_output[...], 1, 0)
    to_weights_cn = _product(v[...], to_output[...], 1, 1)
    to_scores_cn = weights_cn * (to_weights_cn - means[...])
    if slope_cn is not None:
      to_scores_cn = to_scores_cn * slope_cn
    gathered_k[...] += _product(to_scores_cn.astype(q.dtype), q[...], 1, 0)

  _either(add, flags[step], kinds)

  @pl.when((flags[step] & LAST != 0) & (head == heads - 1))
  def _():
    to_k[...] = (gathered_k[...] * how.scale).astype(to_k.dtype)
    to_v[...] = gathered_v[...].astype(to_v.dtype)


def _either(add, flags: jax.Array, kinds: tuple[int, ...]) -> None:
  """add(masked) as the step's WHOLE says; no code for what does not occur."""
  for whole in kinds:
    pl.when((flags & WHOLE != 0) == bool(whole))(functools.partial(add, not whole))


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
  """Summed over an axis of each, in float32. Of bfloat16 there is one precision; of float32 what jax is set to."""
  precision = None if a.dtype == jnp.float32 else lax.Precision.DEFAULT
  dimensions = (((a_axis,), (b_axis,)), ((), ()))
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _scores(rows_cK: jax.Array, columns_nK: jax.Array, how: How) -> tuple[jax.Array, jax.Array | None]:
  """→ (scores_cn in units of log 2, their slope by the raw ones where there is a soft cap)."""
  raw_cn = _product(rows_cK, columns_nK, 1, 1)
  if not how.softcap:
    return raw_cn * (how.scale * LOG2E), None
  part_cn = jnp.tanh(raw_cn * (how.scale / how.softcap))
  return part_cn * (how.softcap * LOG2E), 1.0 - part_cn * part_cn


def _where_seen(scores_cn, query_axis: int, query_block, key_block, segments, how: How, sizes: Sizes) -> jax.Array:
  """The scores, −∞ where the key is not seen.

  Args:
    scores_cn: queries are its axis `query_axis`.
    query_axis: 0 or 1.
    query_block: which block of queries it is.
    key_block: and of keys.
    segments: None, or ((c, LANES) of the rows, (1, n) of the columns).
    how: causal and window.
    sizes: how queries and keys are cut.
  """
  place = functools.partial(lax.broadcasted_iota, jnp.int32, scores_cn.shape)
  before_cn = place(query_axis) - place(1 - query_axis)  # so far stands the key before its query, and `start` more
  start = query_block * sizes.query + (sizes.keys - sizes.length) - key_block * sizes.key
  least, greatest = distances(how)
  masks = []
  if least is not None:
    masks.append(before_cn >= least - start)
  if greatest is not None:
    masks.append(before_cn <= greatest - start)
  if segments is not None:  # which keys that fill a block up share with nobody
    masks.append(_across(segments[0], scores_cn.shape[1]) == segments[1])
  elif sizes.keys % sizes.key:
    masks.append(place(1 - query_axis) < sizes.keys - key_block * sizes.key)
  return jnp.where(functools.reduce(jnp.logical_and, masks), scores_cn, -jnp.inf)


def _across(column: jax.Array, width: int) -> jax.Array:
  """(c, LANES) of equal columns → (c, width)."""
  return column[:, :width] if width <= LANES else jnp.tile(column, (1, math.ceil(width / LANES)))[:, :width]


def _column(row: jax.Array) -> jax.Array:
  """(1, c) → (c, LANES)."""
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _row(column: jax.Array) -> jax.Array:
  """(c, LANES) of equal columns → (1, c)."""
  return column.T[:1]
