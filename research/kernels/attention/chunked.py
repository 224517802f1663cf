"""A block of queries against a block of keys at a time. Blocks that no query of theirs sees are not computed."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.attention.masks import How, capped, seen
from research.kernels.tuning import Tunable


def _case(length: int, width: int, dtype: Any) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
  """Causal, forward and backward, for the tuner."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, to_output = (jax.random.normal(key, (1, length, 4, width), dtype) for key in keys)
  how = How(True, 0, 0.0, width**-0.5)

  def run(q, k, v, to_output):
    output, sums, _ = forward(q, k, v, how=how)
    gradients = (to_output, jnp.zeros_like(sums))
    return backward(q, k, v, how=how, made=(output, sums, None), gradients=gradients)

  return run, (q, k, v, to_output)


BLOCKS = Tunable(
  "attention",
  "chunked",
  default={"queries": 256, "keys": 512},
  candidates=[{"queries": q, "keys": k} for q in (128, 256, 512) for k in (128, 256, 512, 1024)],
  cases={
    f"{dtype}, {width}": functools.partial(_case, 2048, width, dtype)
    for dtype in ("float32", "bfloat16")
    for width in (32, 64, 128)
  },
)


def forward(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *segments: jax.Array, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, None)."""
  blocks = _Blocks(q_BLHK, k_BMGK, segments, how)
  batch, _, heads, width = q_BLHK.shape
  groups = k_BMGK.shape[2]
  k_BMGK, v_BMGK = blocks.padded_keys(k_BMGK), blocks.padded_keys(v_BMGK)

  def rows(number, q_BcGRK, segment_Bc):
    shape = (batch, groups, heads // groups, blocks.queries)
    start = _varying((jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, width))), q_BLHK)

    def add(block, carry):
      greatest_BGRc, total_BGRc, output_BGRcK = carry
      scores_BGRcn, _ = blocks.scores(number, block, q_BcGRK, k_BMGK, segment_Bc)
      new_BGRc = jnp.maximum(greatest_BGRc, scores_BGRcn.max(axis=-1))
      safe_BGRc = jnp.where(jnp.isfinite(new_BGRc), new_BGRc, 0.0)
      raised_BGRcn = jnp.exp(scores_BGRcn - safe_BGRc[..., None])
      shrunk_BGRc = jnp.exp(greatest_BGRc - safe_BGRc)
      v_BnGK = blocks.keys_of(block, v_BMGK)
      more = jnp.einsum(
        "bgrcn,bngk->bgrck", raised_BGRcn.astype(v_BnGK.dtype), v_BnGK, preferred_element_type=jnp.float32
      )
      total_BGRc = total_BGRc * shrunk_BGRc + raised_BGRcn.sum(axis=-1)
      return new_BGRc, total_BGRc, output_BGRcK * shrunk_BGRc[..., None] + more

    greatest, total, output = lax.fori_loop(*blocks.bounds(number), add, start)
    output = output / jnp.where(total > 0.0, total, 1.0)[..., None]
    log_sum_exp = jnp.where(total > 0.0, jnp.log(total) + greatest, -jnp.inf)
    return output.transpose(0, 3, 1, 2, 4).astype(q_BLHK.dtype), log_sum_exp.transpose(0, 3, 1, 2)

  output, log_sum_exp = lax.map(lambda each: rows(*each), blocks.rows(q_BLHK))
  return blocks.joined(output).reshape(q_BLHK.shape), blocks.joined(log_sum_exp).reshape(q_BLHK.shape[:3]), None


def backward(q_BLHK, k_BMGK, v_BMGK, *segments, how: How, made, gradients):
  """→ gradients to q, k and v."""
  output_BLHK, log_sum_exp_BLH, _ = made
  to_output_BLHK, to_sum_BLH = gradients
  dtype = q_BLHK.dtype
  blocks = _Blocks(q_BLHK, k_BMGK, segments, how)
  k_BMGK, v_BMGK = blocks.padded_keys(k_BMGK), blocks.padded_keys(v_BMGK)
  # What every score of a row has in common: its log-sum-exp, and the mean that the softmax subtracts.
  inner_BLH = (to_output_BLHK.astype(jnp.float32) * output_BLHK.astype(jnp.float32)).sum(axis=-1) - to_sum_BLH
  sum_BLH = jnp.where(jnp.isfinite(log_sum_exp_BLH), log_sum_exp_BLH, jnp.inf)  # no weight where nothing is seen

  def rows(carry, row):
    number, q_BcGRK, segment_Bc, to_output_BcGRK, sum_BcGR, inner_BcGR = row
    sum_BGRc1, inner_BGRc1 = (each.transpose(0, 2, 3, 1)[..., None] for each in (sum_BcGR, inner_BcGR))

    def add(block, carry):
      to_q_BcGRK, to_k_BMGK, to_v_BMGK = carry
      scores_BGRcn, slope_BGRcn = blocks.scores(number, block, q_BcGRK, k_BMGK, segment_Bc)
      weights_BGRcn = jnp.exp(scores_BGRcn - sum_BGRc1)
      k_BnGK, v_BnGK = blocks.keys_of(block, k_BMGK), blocks.keys_of(block, v_BMGK)
      wide = {"preferred_element_type": jnp.float32}
      to_v_BnGK = jnp.einsum("bgrcn,bcgrk->bngk", weights_BGRcn.astype(dtype), to_output_BcGRK, **wide)
      to_weights_BGRcn = jnp.einsum("bcgrk,bngk->bgrcn", to_output_BcGRK, v_BnGK, **wide)
      to_scores_BGRcn = weights_BGRcn * (to_weights_BGRcn - inner_BGRc1)
      if slope_BGRcn is not None:
        to_scores_BGRcn = to_scores_BGRcn * slope_BGRcn
      to_scores_BGRcn = to_scores_BGRcn.astype(dtype)
      to_q_BcGRK = to_q_BcGRK + jnp.einsum("bgrcn,bngk->bcgrk", to_scores_BGRcn, k_BnGK, **wide)
      to_k_BnGK = jnp.einsum("bgrcn,bcgrk->bngk", to_scores_BGRcn, q_BcGRK, **wide)
      return to_q_BcGRK, blocks.added(block, to_k_BMGK, to_k_BnGK), blocks.added(block, to_v_BMGK, to_v_BnGK)

    start = (_varying(jnp.zeros(q_BcGRK.shape, jnp.float32), q_BLHK), *carry)
    to_q_BcGRK, *carry = lax.fori_loop(*blocks.bounds(number), add, start)
    return tuple(carry), to_q_BcGRK

  zeros = _varying(jnp.zeros(k_BMGK.shape, jnp.float32), q_BLHK)
  more = (blocks.cut(to_output_BLHK), blocks.cut(sum_BLH, jnp.inf), blocks.cut(inner_BLH))
  (to_k_BMGK, to_v_BMGK), to_q = lax.scan(rows, (zeros, zeros), (*blocks.rows(q_BLHK), *more))
  to_q_BLHK = blocks.joined(to_q).reshape(q_BLHK.shape) * how.scale
  keys = blocks.count
  return to_q_BLHK.astype(dtype), to_k_BMGK[:, :keys].astype(dtype), to_v_BMGK[:, :keys].astype(dtype)


def _varying(start, array: jax.Array):
  """What a loop begins with differs from device to device as what is added to it: jax.shard_map checks that."""
  axes = tuple(jax.typeof(array).manual_axis_type.varying)
  return jax.tree.map(lambda each: lax.pcast(each, axes, to="varying"), start)


class _Blocks:
  """How queries and keys are cut. The last block of each is filled up: with keys that nobody sees, and queries that are
  thrown away."""

  def __init__(self, q_BLHK, k_BMGK, segments, how: How):
    self.length, self.count, self.how = q_BLHK.shape[1], k_BMGK.shape[1], how
    self.groups = k_BMGK.shape[2]
    near = min((32, 64, 128), key=lambda width: abs(width - q_BLHK.shape[3]))
    blocks = BLOCKS.parameters(f"{q_BLHK.dtype}, {near}")
    self.queries, self.keys = min(blocks["queries"], self.length), min(blocks["keys"], self.count)
    self.query_blocks, self.key_blocks = math.ceil(self.length / self.queries), math.ceil(self.count / self.keys)
    self._segments = segments
    self._key_segments = self.padded_keys(segments[1]) if segments else None

  def padded_keys(self, array: jax.Array) -> jax.Array:
    """(B, M, …) → M a multiple of the block."""
    more = self.key_blocks * self.keys - self.count
    return jnp.pad(array, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 2))

  def cut(self, array: jax.Array, filling: float = 0.0) -> jax.Array:
    """(B, L, H, …) → (blocks, B, c, G, R, …)."""
    more = self.query_blocks * self.queries - self.length
    edges = [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 2)
    array = jnp.pad(array, edges, constant_values=jnp.asarray(filling, array.dtype))
    shape = (array.shape[0], self.query_blocks, self.queries, self.groups, -1, *array.shape[3:])
    return array.reshape(shape).swapaxes(0, 1)

  def joined(self, array: jax.Array) -> jax.Array:
    """(blocks, B, c, …) → (B, L, …)."""
    whole = array.swapaxes(0, 1).reshape(array.shape[1], -1, *array.shape[3:])
    return whole[:, : self.length]

  def rows(self, q_BLHK: jax.Array):
    """What a scan over blocks of queries reads: (their number, scaled queries (B, c, G, R, K), segments (B, c))."""
    numbers = jnp.arange(self.query_blocks, dtype=jnp.int32)
    if not self._segments:
      return numbers, self.cut(q_BLHK * self.how.scale), numbers
    more = self.query_blocks * self.queries - self.length
    segments_BL = jnp.pad(self._segments[0], ((0, 0), (0, more)), constant_values=-1)
    segments_SBc = segments_BL.reshape(-1, self.query_blocks, self.queries).swapaxes(0, 1)
    return numbers, self.cut(q_BLHK * self.how.scale), segments_SBc

  def bounds(self, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The blocks of keys, from and up to, that some query of a block may see."""
    first = number * self.queries + (self.count - self.length)  # its place among the keys
    last = first + self.queries - 1
    low, high = jnp.int32(0), jnp.int32(self.key_blocks)
    if self.how.window:
      low = jnp.maximum(first - self.how.window + 1, 0) // self.keys
    if self.how.causal or self.how.window:
      reach = last if self.how.causal else last + self.how.window - 1
      high = jnp.minimum(jnp.maximum(reach + self.keys, 0) // self.keys, high)
    return jnp.minimum(low, high), high

  def keys_of(self, block: jax.Array, array: jax.Array) -> jax.Array:
    """(B, M, …) → (B, n, …)."""
    return lax.dynamic_slice_in_dim(array, block * self.keys, self.keys, axis=1)

  def added(self, block: jax.Array, array: jax.Array, more: jax.Array) -> jax.Array:
    """(B, M, …) with (B, n, …) added at the block's place."""
    return lax.dynamic_update_slice_in_dim(array, self.keys_of(block, array) + more, block * self.keys, axis=1)

  def scores(self, number, block, q_BcGRK, k_BMGK, segment_Bc) -> tuple[jax.Array, jax.Array | None]:
    """→ (scores_BGRcn, −inf where not seen; their slope by the raw ones where there is a soft cap)."""
    k_BnGK = self.keys_of(block, k_BMGK)
    raw = jnp.einsum("bcgrk,bngk->bgrcn", q_BcGRK, k_BnGK, preferred_element_type=jnp.float32)
    scores = capped(raw, self.how)
    slope = 1.0 - jnp.square(scores / self.how.softcap) if self.how.softcap else None
    query_c = jnp.arange(self.queries, dtype=jnp.int32) + number * self.queries + (self.count - self.length)
    key_n = jnp.arange(self.keys, dtype=jnp.int32) + block * self.keys
    segments = (segment_Bc, self.keys_of(block, self._key_segments)) if self._segments else ()
    mask = seen(query_c, key_n, self.how, segments)
    is_key = (key_n < self.count)[None, None]
    mask = is_key if mask is None else mask & is_key
    return jnp.where(mask[:, None, None], scores, -jnp.inf), slope
