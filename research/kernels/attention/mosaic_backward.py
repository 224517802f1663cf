"""The backward kernels for Hopper: one goes through the keys for the queries' gradients, one the other way round.

Each adds its own up in registers and writes it once, so that the sums have one order: what adds the queries' gradients
up in memory from the keys' side (FlashAttention-3's way) takes five products where these two take seven, but its bits
change from run to run, or its blocks wait for each other.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from research.kernels import mosaic
from research.kernels.attention.mosaic_forward import GROUPS, ROWS, TILE, Plan, scores, seen


def to_queries(
  q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, terms_BH2L, segments, bounds_BT4, plan: Plan
) -> jax.Array:
  """The queries' gradients, of their shape and dtype. Arguments as `forward` has them, and

  Args:
    to_output_BLHK: the output's gradient, 0 where there is padding.
    terms_BH2L: float32, of each query its log-sum-exp in powers of two, and what the softmax subtracts from the
      gradients to its weights; (+inf, 0) where it sees nothing or is padding.
  """
  (batch, length, heads, width), groups = q_BLHK.shape, k_BMGK.shape[2]
  how, block, buffers = plan.how, plan.block, plan.buffers
  dtype, tiles, shared = q_BLHK.dtype, length // TILE, heads // groups
  masked = how.causal or how.window or segments or plan.keys % block

  def body(q, k, v, to_output, terms, *rest, q_tiles, o_tiles, k_tiles, v_tiles, k_segments, ready, k_ring, v_ring):
    query_segments, key_segments, bounds, to_q = rest if segments else (None,) * 3 + rest
    b, h, t, group = (lax.axis_index(axis) for axis in ("batch", "head", "tile", mosaic.GROUP))
    tile = tiles - 1 - t if how.causal else t
    row = tile * TILE + group * ROWS
    low, full_low, full_high, high = plan.keys_of(bounds, b, tile)
    mine = pl.ds(row, ROWS)

    def copy_keys(buffer, step):
      there = pl.ds((low + step) * block, block)
      plgpu.copy_gmem_to_smem(k.at[b, there, h // shared], k_tiles.at[buffer], k_ring[0].at[buffer])

    def copy_values(buffer, step):
      there = pl.ds((low + step) * block, block)
      plgpu.copy_gmem_to_smem(v.at[b, there, h // shared], v_tiles.at[buffer], v_ring[0].at[buffer])
      if segments:
        plgpu.copy_gmem_to_smem(key_segments.at[b, there], k_segments.at[buffer], v_ring[0].at[buffer])

    keys = mosaic.Ring(buffers, *k_ring, copy_keys, high - low, GROUPS)
    values = mosaic.Ring(buffers, *v_ring, copy_values, high - low, GROUPS)
    keys.fill()
    values.fill()
    plgpu.copy_gmem_to_smem(q.at[b, mine, h], q_tiles.at[group], ready.at[group])
    plgpu.copy_gmem_to_smem(to_output.at[b, mine, h], o_tiles.at[group], ready.at[group])
    sums = mosaic.load(terms.at[b, h, 0, mine], mosaic.ROWS)
    inner = mosaic.load(terms.at[b, h, 1, mine], mosaic.ROWS)
    mine_segments = mosaic.load(query_segments.at[b, mine], mosaic.ROWS) if segments else None
    plgpu.barrier_wait(ready.at[group])

    def run(made):
      def products(s, w, step, to_scores):
        """A step's gradients to the scores, while those of the one before are multiplied with its keys."""
        buffer = keys.wait(step)
        mosaic.wgmma(s, q_tiles.at[group], k_tiles.at[buffer], transposed=True)
        buffer = values.wait(step)
        mosaic.wgmma(w, o_tiles.at[group], v_tiles.at[buffer], transposed=True)
        if to_scores is not None:
          mosaic.wgmma(made, to_scores, k_tiles.at[keys.buffer(step - 1)])
        raw = plgpu.wgmma_accumulator_load(s, wait_n=0 if to_scores is None else 1)
        to_weights = plgpu.wgmma_accumulator_load(w, wait_n=None)
        there = ()
        if segments:
          there = (mine_segments, mosaic.load(k_segments.at[buffer], mosaic.COLUMNS))
          plgpu.commit_smem()  # the segments are read before they are copied over
        values.release(step)
        x, factor = scores(raw, how)

        def slopes(partly):
          exponents = x * factor - mosaic.along(sums, x.shape, 0)
          mask = seen(x.shape, plan, row + plan.offset, (low + step) * block, there, 0) if partly else None
          weights = jnp.exp2(exponents if mask is None else jnp.where(mask, exponents, -jnp.inf))
          found = weights * (to_weights - mosaic.along(inner, x.shape, 0))
          return (found * (1.0 - x * x) if how.softcap else found).astype(dtype)

        if not masked:
          return slopes(False)
        whole = (low + step >= full_low) & (low + step < full_high)
        return lax.cond(whole, lambda: slopes(False), lambda: slopes(True))

      accumulators = [plgpu.ACC((ROWS, block), jnp.float32)] * 2

      def block_of(step, to_scores):
        found = pl.run_scoped(functools.partial(products, step=step, to_scores=to_scores), *accumulators)
        plgpu.wgmma_wait(0)
        keys.release(step - 1)
        return found

      to_scores = pl.run_scoped(functools.partial(products, step=jnp.int32(0), to_scores=None), *accumulators)
      to_scores = lax.fori_loop(1, high - low, block_of, to_scores)
      mosaic.wgmma(made, to_scores, k_tiles.at[keys.buffer(high - low - 1)])
      found = made[...]
      keys.release(high - low - 1)
      return found

    found = pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
    q_tiles.at[group][...] = (found * how.scale).astype(dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_tiles.at[group], to_q.at[b, mine, h])
    plgpu.wait_smem_to_gmem(0)

  scratch = {
    "q_tiles": mosaic.tiles((GROUPS, ROWS, width), dtype),
    "o_tiles": mosaic.tiles((GROUPS, ROWS, width), dtype),
    "k_tiles": mosaic.tiles((buffers, block, width), dtype),
    "v_tiles": mosaic.tiles((buffers, block, width), dtype),
    "k_segments": plgpu.SMEM((buffers, block), jnp.int32) if segments else None,
    "ready": plgpu.Barrier(num_barriers=GROUPS, num_arrivals=2),
    "k_ring": mosaic.Ring.barriers(buffers, 1, GROUPS),
    "v_ring": mosaic.Ring.barriers(buffers, 2 if segments else 1, GROUPS),
  }
  grid = {"batch": batch, "head": heads, "tile": tiles}
  outputs = [jax.ShapeDtypeStruct(q_BLHK.shape, dtype)]
  run = mosaic.kernel(body, outputs, scratch, grid, "attention_to_queries", GROUPS)
  return run(q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, terms_BH2L, *segments, *((bounds_BT4,) if segments else ()))[0]


def to_keys(
  q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, terms_BH2L, segments, bounds_BT4, plan: Plan
) -> tuple[jax.Array, jax.Array]:
  """The keys' and the values' gradients. Arguments as `to_queries` has them, but keys padded to `TILE` and queries to
  the plan's block, and bounds for each tile of keys. A step is a block of the queries of one of the heads that share
  the keys.
  """
  (batch, _, heads, width), (keys, groups) = q_BLHK.shape, k_BMGK.shape[1:3]
  how, block, buffers = plan.how, plan.block, plan.buffers
  dtype, shared, tiles = q_BLHK.dtype, heads // groups, keys // TILE

  def body(q, k, v, to_output, terms, *rest, q_tiles, o_tiles, k_tiles, v_tiles, pairs, q_segments, ready, barriers):
    query_segments, key_segments, bounds, to_k, to_v = rest if segments else (None,) * 3 + rest
    b, g, t, group = (lax.axis_index(axis) for axis in ("batch", "head", "tile", mosaic.GROUP))
    row = t * TILE + group * ROWS
    low, full_low, full_high, high = plan.queries_of(bounds, b, t)
    mine = pl.ds(row, ROWS)
    steps = (high - low) * shared

    def of(step):
      """(the head, the block of queries) of a step."""
      if shared == 1:
        return g, low + step
      return g * shared + lax.div(step, high - low), low + lax.rem(step, high - low)

    def copy(buffer, step):
      head, block_of = of(step)
      there = pl.ds(block_of * block, block)
      plgpu.copy_gmem_to_smem(q.at[b, there, head], q_tiles.at[buffer], barriers[0].at[buffer])
      plgpu.copy_gmem_to_smem(to_output.at[b, there, head], o_tiles.at[buffer], barriers[0].at[buffer])
      plgpu.copy_gmem_to_smem(terms.at[b, head, :, there], pairs.at[buffer], barriers[0].at[buffer])
      if segments:
        plgpu.copy_gmem_to_smem(query_segments.at[b, there], q_segments.at[buffer], barriers[0].at[buffer])

    ring = mosaic.Ring(buffers, *barriers, copy, steps, GROUPS)
    ring.fill()
    plgpu.copy_gmem_to_smem(k.at[b, mine, g], k_tiles.at[group], ready.at[group])
    plgpu.copy_gmem_to_smem(v.at[b, mine, g], v_tiles.at[group], ready.at[group])
    mine_segments = mosaic.load(key_segments.at[b, mine], mosaic.ROWS) if segments else None
    plgpu.barrier_wait(ready.at[group])

    def run(made_k, made_v):
      def start(s):
        mosaic.wgmma(s, k_tiles.at[group], q_tiles.at[ring.wait(jnp.int32(0))], transposed=True)
        return s[...]

      def block_of(step, raw):
        buffer = ring.buffer(step)
        sums = mosaic.load(pairs.at[buffer, 0], mosaic.COLUMNS)
        there = (mosaic.load(q_segments.at[buffer], mosaic.COLUMNS), mine_segments) if segments else ()
        x, factor = scores(raw, how)

        def weights_of(masked):
          exponents = x * factor - mosaic.along(sums, x.shape, 1)
          mask = None
          if masked:
            mask = seen(x.shape, plan, of(step)[1] * block + plan.offset, row, there, 1)
          return jnp.exp2(exponents if mask is None else jnp.where(mask, exponents, -jnp.inf))

        if how.causal or how.window or segments:
          whole = (of(step)[1] >= full_low) & (of(step)[1] < full_high)
          weights = lax.cond(whole, lambda: weights_of(False), lambda: weights_of(True))
        else:
          weights = weights_of(False)
        # In 16 bits from here on, as XLA's form has them: the registers would else not do.
        slope_of = (weights * (1.0 - x * x)).astype(dtype) if how.softcap else None
        weights = weights.astype(dtype)
        slope_of = weights if slope_of is None else slope_of

        def slope(w):
          mosaic.wgmma(w, v_tiles.at[group], o_tiles.at[buffer], transposed=True)
          mosaic.wgmma(made_v, weights, o_tiles.at[buffer])
          to_weights = plgpu.wgmma_accumulator_load(w, wait_n=1)
          inner = mosaic.load(pairs.at[buffer, 1], mosaic.COLUMNS)
          plgpu.commit_smem()  # sums, inner terms and segments are read before they are copied over
          return (slope_of.astype(jnp.float32) * (to_weights - mosaic.along(inner, x.shape, 1))).astype(dtype)

        to_scores = pl.run_scoped(slope, plgpu.ACC((ROWS, block), jnp.float32))

        def following(s):
          """The next step's scores, while this one's gradients are multiplied."""
          mosaic.wgmma(made_k, to_scores, q_tiles.at[buffer])
          more = step + 1 < steps
          at = jnp.where(more, step + 1, step)
          pl.when(more)(lambda: plgpu.barrier_wait(barriers[0].at[ring.buffer(at)]))
          mosaic.wgmma(s, k_tiles.at[group], q_tiles.at[ring.buffer(at)], transposed=True)
          plgpu.wgmma_wait(1)
          raw = s[...]
          ring.release(step)
          return raw

        return pl.run_scoped(following, plgpu.ACC((ROWS, block), jnp.float32))

      raw = pl.run_scoped(start, plgpu.ACC((ROWS, block), jnp.float32))
      lax.fori_loop(0, steps, block_of, raw)
      return made_k[...], made_v[...]

    found_k, found_v = pl.run_scoped(run, *[plgpu.ACC((ROWS, width), jnp.float32)] * 2)
    k_tiles.at[group][...] = (found_k * how.scale).astype(dtype)
    v_tiles.at[group][...] = found_v.astype(dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(k_tiles.at[group], to_k.at[b, mine, g])
    plgpu.copy_smem_to_gmem(v_tiles.at[group], to_v.at[b, mine, g])
    plgpu.wait_smem_to_gmem(0)

  scratch = {
    "q_tiles": mosaic.tiles((buffers, block, width), dtype),
    "o_tiles": mosaic.tiles((buffers, block, width), dtype),
    "k_tiles": mosaic.tiles((GROUPS, ROWS, width), dtype),
    "v_tiles": mosaic.tiles((GROUPS, ROWS, width), dtype),
    "pairs": plgpu.SMEM((buffers, 2, block), jnp.float32),
    "q_segments": plgpu.SMEM((buffers, block), jnp.int32) if segments else None,
    "ready": plgpu.Barrier(num_barriers=GROUPS, num_arrivals=2),
    "barriers": mosaic.Ring.barriers(buffers, 4 if segments else 3, GROUPS),
  }
  grid = {"batch": batch, "head": groups, "tile": tiles}
  outputs = [jax.ShapeDtypeStruct(k_BMGK.shape, dtype)] * 2
  run = mosaic.kernel(body, outputs, scratch, grid, "attention_to_keys", GROUPS)
  return tuple(run(q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, terms_BH2L, *segments, *((bounds_BT4,) if segments else ())))
