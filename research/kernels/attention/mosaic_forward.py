"""The forward kernel for Hopper: two warpgroups, each with 64 queries, go through the blocks of keys.

As FlashAttention-3 (Shah et al. 2024, section 3): a warpgroup has the scores of the next block and the output of this
one multiplied at once (algorithm 2), and does the next block's softmax while the second product goes on. The two take
turns, so that one's softmax falls into the other's products (section 3.1). Powers are of two.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from research.kernels import mosaic
from research.kernels.attention import ranges
from research.kernels.attention.masks import How

ROWS = 64  # what a warpgroup multiplies at once
GROUPS = 2
TILE = GROUPS * ROWS  # queries of a block of threads
LOG2E = 1.4426950408889634


class Plan(NamedTuple):
  """What a kernel is made for.

  Attributes:
    how: as in `attention`; its scale is positive.
    length: queries that are no padding.
    keys: keys that are none.
    block: of keys, or of queries, that a step reads.
    buffers: how many of them there are at once.
    turns: whether the warpgroups take turns; the backward kernels do not.
  """

  how: How
  length: int
  keys: int
  block: int
  buffers: int
  turns: bool = False

  @property
  def offset(self) -> int:
    """The first query's place among the keys."""
    return self.keys - self.length

  def keys_of(self, bounds: Any, batch: jax.Array, tile: jax.Array) -> ranges.Range:
    """The blocks of keys that a tile of queries reads; `bounds` has them where segments decide, and else is None."""
    if bounds is not None:
      return ranges.Range(*(bounds[batch, tile, i] for i in range(4)))
    place = tile * TILE + self.offset
    return ranges.blocks(place, place + TILE - 1, *ranges.reach(self.how), self.keys, self.block)

  def queries_of(self, bounds: Any, batch: jax.Array, tile: jax.Array) -> ranges.Range:
    """The blocks of queries that a tile of keys reads."""
    if bounds is not None:
      return ranges.Range(*(bounds[batch, tile, i] for i in range(4)))
    place = tile * TILE - self.offset
    return ranges.blocks(place, place + TILE - 1, *ranges.reach(self.how)[::-1], self.length, self.block)


def scores(raw: jax.Array, how: How) -> tuple[jax.Array, float]:
  """(x, c) with c · x the exponents of two: products with the scale, or the soft cap's tanh, which x then is."""
  if not how.softcap:
    return raw, how.scale * LOG2E
  # The hardware's tanh is good to 11 bits, and a cap of 50 would make that an error of 0.02 in a score.
  raised = jnp.exp2(raw * (2.0 * how.scale / how.softcap * LOG2E))
  return 1.0 - 2.0 / (raised + 1.0), how.softcap * LOG2E


def seen(shape, plan: Plan, query, key, segments, queries_axis: int) -> jax.Array | None:
  """Bool of a block, or None where all is seen.

  Args:
    shape: of the block.
    plan: causal, window, and how many keys there are.
    query: int32, the first query's place.
    key: int32, the first key's.
    segments: () or (of the queries, of the keys), vectors.
    queries_axis: which axis of the block they are on.
  """
  lies, keys_axis = (mosaic.ROWS, mosaic.COLUMNS), 1 - queries_axis
  before, after = ranges.reach(plan.how)
  behind = plan.keys % TILE and after != 0  # what is causal does not see what is behind the last key
  place = None
  if behind or before is not None or after is not None:
    place = mosaic.along(mosaic.places(shape[keys_axis], lies[keys_axis]), shape, keys_axis)
  masks = []
  if before is not None or after is not None:
    first = mosaic.places(shape[queries_axis], lies[queries_axis]) + (query - key)
    if after is not None:
      masks.append(place <= mosaic.along(first + after, shape, queries_axis))
    if before is not None:
      masks.append(place >= mosaic.along(first - before, shape, queries_axis))
  if segments:
    queries, keys = mosaic.along(segments[0], shape, queries_axis), mosaic.along(segments[1], shape, keys_axis)
    masks.append((queries == keys) & (keys >= 0))
  if behind:
    masks.append(place < plan.keys - key)
  return functools.reduce(jnp.logical_and, masks) if masks else None


def forward(q_BLHK, k_BMGK, v_BMGK, segments, bounds_BT4, plan: Plan) -> list[jax.Array]:
  """→ [output_BLHK, log_sum_exp_BHL], queries padded to `TILE` and keys to the plan's block.

  Args:
    q_BLHK: bfloat16 or float16, K of 64 or 128.
    k_BMGK: of its dtype.
    v_BMGK: of k's shape and dtype.
    segments: () or int32 (B, L) of the queries and (B, M) of the keys.
    bounds_BT4: None, or with segments a `Range` for each tile of queries, stacked.
    plan: with blocks of 64 or 128 keys.
  """
  (batch, length, heads, width), groups = q_BLHK.shape, k_BMGK.shape[2]
  how, block, buffers, turns = plan.how, plan.block, plan.buffers, plan.turns
  dtype, tiles, shared = q_BLHK.dtype, length // TILE, heads // groups
  masked = how.causal or how.window or segments or plan.keys % block

  def body(q, k, v, *rest, q_tiles, k_tiles, v_tiles, sums, k_segments, q_ready, k_ring, v_ring, turn):
    query_segments, key_segments, bounds, output, log_sum_exp = rest if segments else (None,) * 3 + rest
    b, h, t, group = (lax.axis_index(axis) for axis in ("batch", "head", "tile", mosaic.GROUP))
    tile = tiles - 1 - t if how.causal else t  # the longest first
    row = tile * TILE + group * ROWS
    low, full_low, full_high, high = plan.keys_of(bounds, b, tile)
    mine = pl.ds(row, ROWS)

    def copy_keys(buffer, step):
      there = pl.ds((low + step) * block, block)
      plgpu.copy_gmem_to_smem(k.at[b, there, h // shared], k_tiles.at[buffer], k_ring[0].at[buffer])
      if segments:
        plgpu.copy_gmem_to_smem(key_segments.at[b, there], k_segments.at[buffer], k_ring[0].at[buffer])

    def copy_values(buffer, step):
      there = pl.ds((low + step) * block, block)
      plgpu.copy_gmem_to_smem(v.at[b, there, h // shared], v_tiles.at[buffer], v_ring[0].at[buffer])

    keys = mosaic.Ring(buffers, *k_ring, copy_keys, high - low, GROUPS)
    values = mosaic.Ring(buffers, *v_ring, copy_values, high - low, GROUPS)
    keys.fill()
    values.fill()
    plgpu.copy_gmem_to_smem(q.at[b, mine, h], q_tiles.at[group], q_ready.at[group])
    mine_segments = mosaic.load(query_segments.at[b, mine], mosaic.ROWS) if segments else None

    def wait_turn():
      if turns:
        plgpu.barrier_wait(turn.at[group])

    def pass_turn():
      if turns:
        plgpu.barrier_arrive(turn.at[1 - group])

    if turns:
      pl.when(group == 1)(lambda: plgpu.barrier_arrive(turn.at[0]))

    def softmax(raw, step, greatest, total, partly):
      """(the exponents, the greatest so far, the total so far, what that of before shrinks by)."""
      x, factor = scores(raw, how)
      mask = None
      if partly:
        there = (mine_segments, mosaic.load(k_segments.at[keys.buffer(step)], mosaic.COLUMNS)) if segments else ()
        mask = seen(x.shape, plan, row + plan.offset, (low + step) * block, there, 0)
      if mask is not None:
        x = jnp.where(mask, x, -jnp.inf)
      new = jnp.maximum(greatest, x.max(axis=1) * factor)
      safe = new if mask is None else jnp.where(new == -jnp.inf, 0.0, new)
      raised = jnp.exp2(x * factor - mosaic.along(safe, x.shape, 0))
      shrunk = jnp.exp2(greatest - safe)
      return raised, new, total * shrunk + raised.sum(axis=1), shrunk

    def run(o):
      def products(s, step, raised, partly, greatest, total):
        """The scores of a step, and the output of the one before."""
        buffer = keys.wait(step)
        wait_turn()
        mosaic.wgmma(s, q_tiles.at[group], k_tiles.at[buffer], transposed=True)
        if raised is not None:
          mosaic.wgmma(o, raised, v_tiles.at[values.wait(step - 1)])
        pass_turn()
        raw = plgpu.wgmma_accumulator_load(s, wait_n=0 if raised is None else 1)
        if not (partly and segments):
          keys.release(step)  # the next copy begins before this softmax
          return softmax(raw, step, greatest, total, partly)
        made = softmax(raw, step, greatest, total, partly)
        plgpu.commit_smem()  # the segments are read before they are copied over
        keys.release(step)
        return made

      def block_of(step, carry, partly):
        raised, greatest, total = carry
        make = functools.partial(products, step=step, raised=raised, partly=partly, greatest=greatest, total=total)
        raised, greatest, total, shrunk = pl.run_scoped(make, plgpu.ACC((ROWS, block), jnp.float32))
        output = o[...]  # waits for it
        values.release(step - 1)
        mosaic.put(o, output * mosaic.along(shrunk, output.shape, 0))
        return raised.astype(dtype), greatest, total

      first = functools.partial(
        products, step=jnp.int32(0), raised=None, partly=True,
        greatest=mosaic.full((ROWS,), -jnp.inf, mosaic.ROWS), total=mosaic.full((ROWS,), 0.0, mosaic.ROWS),
      )
      raised, *state, _ = pl.run_scoped(first, plgpu.ACC((ROWS, block), jnp.float32))
      carry, at = (raised.astype(dtype), *state), jnp.int32(1)
      parts = [(high - low, False)]
      if masked:
        parts = [(full_high - low, False), (high - low, True)]
        if how.window or segments:
          parts.insert(0, (full_low - low, True))
      for end, partly in parts:
        end = jnp.maximum(at, end)
        carry = lax.fori_loop(at, end, functools.partial(block_of, partly=partly), carry)
        at = end
      raised, greatest, total = carry
      buffer = values.wait(at - 1)
      wait_turn()
      mosaic.wgmma(o, raised, v_tiles.at[buffer])
      pl.when(group == 0)(pass_turn)  # nobody waits for the other's last
      output = o[...]
      values.release(at - 1)
      return output, greatest, total

    plgpu.barrier_wait(q_ready.at[group])
    made, greatest, total = pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
    some = total > 0.0
    total = jnp.where(some, total, 1.0)
    q_tiles.at[group][...] = (made * mosaic.along(1.0 / total, made.shape, 0)).astype(dtype)
    sums.at[group][...] = jnp.where(some, (greatest + jnp.log2(total)) * (1.0 / LOG2E), -jnp.inf)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_tiles.at[group], output.at[b, mine, h])
    plgpu.copy_smem_to_gmem(sums.at[group], log_sum_exp.at[b, h, mine])
    plgpu.wait_smem_to_gmem(0)

  scratch = {
    "q_tiles": mosaic.tiles((GROUPS, ROWS, width), dtype),
    "k_tiles": mosaic.tiles((buffers, block, width), dtype),
    "v_tiles": mosaic.tiles((buffers, block, width), dtype),
    "sums": plgpu.SMEM((GROUPS, ROWS), jnp.float32),
    "k_segments": plgpu.SMEM((buffers, block), jnp.int32) if segments else None,
    "q_ready": plgpu.Barrier(num_barriers=GROUPS),
    "k_ring": mosaic.Ring.barriers(buffers, 2 if segments else 1, GROUPS),
    "v_ring": mosaic.Ring.barriers(buffers, 1, GROUPS),
    "turn": plgpu.Barrier(num_barriers=GROUPS) if turns else None,
  }
  outputs = [jax.ShapeDtypeStruct(q_BLHK.shape, dtype), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)]
  grid = {"batch": batch, "head": heads, "tile": tiles}
  run = mosaic.kernel(body, outputs, scratch, grid, "attention", GROUPS)
  return run(q_BLHK, k_BMGK, v_BMGK, *segments, *((bounds_BT4,) if segments else ()))
