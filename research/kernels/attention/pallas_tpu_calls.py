"""The three kernels for TPUs as functions of arrays: how these are laid out, filled up and cut into blocks.

A block's last two axes are what a register holds, so heads go before lengths, and what a query has one of (log-sum-exp,
mean, segment) lies along the last axis: (…, 1, L).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from research.kernels.attention import pallas_tpu_kernels as kernels
from research.kernels.attention.masks import How
from research.kernels.attention.pallas_tpu_visits import LANES, Sizes, visits

Segments = tuple[jax.Array, ...]


def forward(q_BLHK, k_BMGK, v_BMGK, segments: Segments, how: How, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
  """→ (output_BLHK, log_sum_exp_BLH)."""
  column, width = (sizes.query, LANES), q_BLHK.shape[3]
  output, sums = _call(
    kernels.forward, (q_BLHK, k_BMGK, v_BMGK), segments, {}, how, sizes,
    results=("queries", "rows"), scratch=(column, column, (sizes.query, width)),
  )  # fmt: skip
  length = q_BLHK.shape[1]
  return output[:, :, :length].transpose(0, 2, 1, 3), sums[:, :, 0, :length].transpose(0, 2, 1)


def to_queries(
  q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, sum_BLH, mean_BLH, segments: Segments, how: How, sizes: Sizes
) -> jax.Array:
  """→ to_q_BLHK. `sum_BLH` is the log-sum-exp, +∞ where nothing is seen."""
  column, width = (sizes.query, LANES), q_BLHK.shape[3]
  more = _of_queries(to_output_BLHK, sum_BLH, mean_BLH, sizes)
  (to_q,) = _call(
    kernels.to_queries, (q_BLHK, k_BMGK, v_BMGK), segments, more, how, sizes,
    results=("queries",), scratch=(column, column, (sizes.query, width)),
  )  # fmt: skip
  return to_q[:, :, : q_BLHK.shape[1]].transpose(0, 2, 1, 3)


def to_keys(
  q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, sum_BLH, mean_BLH, segments: Segments, how: How, sizes: Sizes
) -> tuple[jax.Array, jax.Array]:
  """→ (to_k_BMGK, to_v_BMGK)."""
  more = _of_queries(to_output_BLHK, sum_BLH, mean_BLH, sizes)
  found = _call(
    kernels.to_keys, (q_BLHK, k_BMGK, v_BMGK), segments, more, how, sizes,
    results=("keys", "keys"), scratch=((sizes.key, q_BLHK.shape[3]),) * 2, by_key=True,
  )  # fmt: skip
  return tuple(each[:, :, : k_BMGK.shape[1]].transpose(0, 2, 1, 3) for each in found)


def _of_queries(to_output_BLHK, sum_BLH, mean_BLH, sizes: Sizes) -> dict[str, list[jax.Array]]:
  """{layout: arrays}; a query that fills a block up has no gradients, so it adds nothing to a key."""
  length = sizes.padded[0]
  rows = [_rows(sum_BLH * kernels.LOG2E, length), _rows(mean_BLH, length)]
  return {"queries": [_heads(to_output_BLHK, length)], "rows": rows}


def _call(
  kernel: Callable[..., None],
  arrays: tuple[jax.Array, jax.Array, jax.Array],
  segments: Segments,
  more: dict[str, list[jax.Array]],
  how: How,
  sizes: Sizes,
  *,
  results: tuple[str, ...],
  scratch: tuple[tuple[int, int], ...],
  by_key: bool = False,
) -> list[jax.Array]:
  """A kernel over all its steps.

  Args:
    kernel: of `kernels`.
    arrays: q_BLHK, k_BMGK, v_BMGK.
    segments: () or of queries and of keys.
    more: what it reads after these, by layout.
    how: the masks.
    sizes: the blocks.
    results: their layouts: "queries" and "keys" of q's dtype, "rows" float32.
    scratch: shapes, float32; where there are segments, one more for those of a block's rows.
    by_key: the grid's outer blocks are keys.
  """
  (batch, _, heads, width), groups, dtype = arrays[0].shape, arrays[1].shape[2], arrays[0].dtype
  queries, keys = sizes.padded
  names = ["queries", "keys", "keys"]
  operands = [_heads(each, length) for each, length in zip(arrays, (queries, keys, keys), strict=True)]
  if segments:  # then equal ones see each other, and no more is to be asked of them
    segments = (_ids(segments[0], queries, -1), _ids(segments[1], keys, -2))
  found = visits(sizes, how, segments, by_key=by_key)
  operands += [each[:, None] for each in segments] if segments else [None, None]
  names += ["query segments", "key segments"] if segments else [None, None]
  for name, each in more.items():
    operands, names = operands + each, names + [name] * len(each)
  specs = {**_specs(sizes, width, heads // groups, by_key), None: None}
  made = {
    "queries": ((batch, heads, queries, width), dtype),
    "keys": ((batch, groups, keys, width), dtype),
    "rows": ((batch, heads, 1, queries), jnp.float32),
  }
  rows = 1 if segments else batch
  grid = (rows, groups, found.steps, heads // groups) if by_key else (rows, heads, found.steps)
  varying = jax.typeof(arrays[0]).manual_axis_type  # as jax.shard_map checks it
  return pl.pallas_call(
    functools.partial(kernel, how=how, sizes=sizes, kinds=found.kinds),
    out_shape=[jax.ShapeDtypeStruct(*made[name], manual_axis_type=varying) for name in results],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=4,
      grid=grid,
      in_specs=[specs[name] for name in names],
      out_specs=[specs[name] for name in results],
      scratch_shapes=[
        *(pltpu.VMEM(shape, jnp.float32) for shape in scratch),
        pltpu.VMEM((sizes.key if by_key else sizes.query, LANES), jnp.int32) if segments else None,
      ],
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", *["arbitrary"] * (len(grid) - 2))
    ),
    name=f"attention_{kernel.__name__}",
  )(found.batch_T, found.outer_T, found.inner_T, found.flags_T, *operands)


def _specs(sizes: Sizes, width: int, shared: int, by_key: bool) -> dict[str, pl.BlockSpec]:
  """{layout: its block at a step}; `shared` heads have one key head."""

  def place(*given):
    """Of the grid's numbers and the lists of steps → row of the batch, head, key head, block of queries, of keys."""
    if by_key:
      row, group, step, head, batch, outer, inner, _ = given
      return row + batch[step], group * shared + head, group, inner[step], outer[step]
    row, head, step, batch, outer, inner, _ = given
    return row + batch[step], head, lax.div(head, shared) if shared > 1 else head, outer[step], inner[step]

  def spec(shape, index):
    return pl.BlockSpec(shape, lambda *given: index(*place(*given)))

  return {
    "queries": spec((None, None, sizes.query, width), lambda row, head, group, query, key: (row, head, query, 0)),
    "keys": spec((None, None, sizes.key, width), lambda row, head, group, query, key: (row, group, key, 0)),
    "rows": spec((None, None, 1, sizes.query), lambda row, head, group, query, key: (row, head, 0, query)),
    "query segments": spec((None, 1, sizes.query), lambda row, head, group, query, key: (row, 0, query)),
    "key segments": spec((None, 1, sizes.key), lambda row, head, group, query, key: (row, 0, key)),
  }


def _heads(x_BLHK: jax.Array, length: int) -> jax.Array:
  """→ (B, H, length, K)."""
  return jnp.pad(x_BLHK, ((0, 0), (0, length - x_BLHK.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def _rows(x_BLH: jax.Array, length: int) -> jax.Array:
  """→ (B, H, 1, length)."""
  return jnp.pad(x_BLH, ((0, 0), (0, length - x_BLH.shape[1]), (0, 0))).transpose(0, 2, 1)[:, :, None]


def _ids(segments_BL: jax.Array, length: int, nobody: int) -> jax.Array:
  """→ (B, length), `nobody` for negative ones and where it is filled up."""
  more = ((0, 0), (0, length - segments_BL.shape[1]))
  return jnp.pad(jnp.where(segments_BL < 0, nobody, segments_BL), more, constant_values=nobody)
