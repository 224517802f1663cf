"""Attention on NVIDIA's Hopper by kernels of our own: what they can, their block sizes, and arrays as they want them.

`mosaic_forward.py` and `mosaic_backward.py` have the kernels. Backward is two kernels whose bits do not change from run
to run. Lengths that no block divides are padded here, and widths that are no multiple of 64.

XLA cannot divide a kernel: under a plain jit a sharded batch is gathered on every device, which then does all of it;
inside `jax.shard_map` each does its own part.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels.attention import ranges
from research.kernels.attention.masks import How
from research.kernels.tuning import Tunable

WIDTHS = (64, 128)
DTYPES = ("bfloat16", "float16")
TILE = 128  # queries, or keys, of a block of threads
SHARED = 227 * 1024  # bytes that one may have
REST = 3 * 1024  # of them, for barriers and log-sum-exps, and because an array begins at a multiple of 1,024
HOPPER = "9.0"


def _case(direction: str, width: int, causal: bool) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
  """One direction on 2 × 8,192 tokens and 16 heads of 64 or 8 of 128, for the tuner."""
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (2, 8192, 1024 // width, width)
  q, k, v, to_output = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
  how = How(causal, 0, 0.0, width**-0.5)
  if direction == "forward":
    return lambda q, k, v: forward(q, k, v, how=how)[:2], (q, k, v)
  made = jax.jit(lambda q, k, v: forward(q, k, v, how=how)[:2])(q, k, v)

  def run(q, k, v, to_output, output, sums):
    gradients = (to_output, jnp.zeros_like(sums))
    return backward(q, k, v, how=how, made=(output, sums, None), gradients=gradients)

  return run, (q, k, v, to_output, *made)


BLOCKS = Tunable(
  "attention",
  "mosaic_gpu",
  # Forward: keys a block, how many blocks of them are there at once, whether the warpgroups take turns. Backward: the
  # same of the kernel that goes through the keys, and of the one that goes through the queries.
  default={"keys": 128, "buffers": 3, "turns": 1, "dq_keys": 64, "dq_buffers": 4, "dkv_queries": 64, "dkv_buffers": 4},
  candidates=[
    *({"keys": keys, "buffers": many, "turns": turns} for keys in (64, 128) for many in (2, 3) for turns in (0, 1)),
    *({"dq_keys": keys, "dq_buffers": buffers} for keys in (64, 128) for buffers in (2, 3, 4)),
    *({"dkv_buffers": buffers} for buffers in (2, 3)),
  ],
  cases={
    f"{direction}, {width}, {'causal' if causal else 'all'}": functools.partial(_case, direction, width, causal)
    for direction in ("forward", "backward")
    for width in WIDTHS
    for causal in (False, True)
  },
)


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How, **options: Any) -> str | None:
  """Why it cannot run, or None. Where this process has no GPU, what is compiled for one is taken to be for a Hopper."""
  del platform, options
  if str(dtypes[0]) not in DTYPES:
    return f"it takes {' and '.join(DTYPES)}, and this is {dtypes[0]}"
  if shapes[0][3] > max(WIDTHS):
    return f"it takes heads up to {max(WIDTHS)} wide, and this one is {shapes[0][3]}"
  if how.scale <= 0:
    return f"it takes a positive scale, and this is {how.scale}"
  if (found := capability()) not in (None, HOPPER):
    return f"it is written for compute capability {HOPPER}, and this device has {found}"
  return None


def worth(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> bool:
  """Whether what is multiplied is not mostly padding."""
  del dtypes, platform, options
  return shapes[0][1] >= TILE // 2 and shapes[1][1] >= TILE // 2


def capability() -> str | None:
  """The compute capability of this process' first device, such as "9.0", or None where that is no NVIDIA GPU."""
  return getattr(jax.devices()[0], "compute_capability", None) if jax.default_backend() == "gpu" else None


def forward(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *segments: jax.Array, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, None)."""
  from research.kernels.attention import mosaic_forward

  length, width = q_BLHK.shape[1], q_BLHK.shape[3]
  block, buffers, turns = (_parameters("forward", width, how)[name] for name in ("keys", "buffers", "turns"))
  q, k, v = _padded(q_BLHK, TILE), _padded(k_BMGK, block), _padded(v_BMGK, block)
  buffers = _fitting(buffers, 1, q.shape[3], block, bool(segments))
  plan = mosaic_forward.Plan(how, length, k_BMGK.shape[1], block, buffers, bool(turns))
  segments = _segments(segments, q.shape[1], k.shape[1])
  output_BLHK, log_sum_exp_BHL = mosaic_forward.forward(q, k, v, segments, _of_queries(segments, plan), plan)
  return output_BLHK[:, :length, :, :width], log_sum_exp_BHL[..., :length].transpose(0, 2, 1), None


def backward(q_BLHK, k_BMGK, v_BMGK, *segments, how: How, made, gradients):
  """→ gradients to q, k and v."""
  from research.kernels.attention import mosaic_backward, mosaic_forward

  output_BLHK, log_sum_exp_BLH, _ = made
  to_output_BLHK, to_sum_BLH = gradients
  (length, _, width), keys = q_BLHK.shape[1:], k_BMGK.shape[1]
  # What every score of a row has in common: its log-sum-exp, and the mean that the softmax subtracts.
  inner_BLH = (to_output_BLHK.astype(jnp.float32) * output_BLHK.astype(jnp.float32)).sum(axis=-1) - to_sum_BLH
  seen_BLH = jnp.isfinite(log_sum_exp_BLH)
  sums_BLH = jnp.where(seen_BLH, log_sum_exp_BLH * mosaic_forward.LOG2E, jnp.inf)  # no weight where nothing is seen
  q, k, v, to_output = (_padded(each, TILE) for each in (q_BLHK, k_BMGK, v_BMGK, to_output_BLHK.astype(q_BLHK.dtype)))
  more = [(0, 0), (0, 0), (0, q.shape[1] - length)]
  terms_BH2L = jnp.stack(
    [
      jnp.pad(sums_BLH.transpose(0, 2, 1), more, constant_values=jnp.inf),
      jnp.pad(jnp.where(seen_BLH, inner_BLH, 0.0).transpose(0, 2, 1), more),
    ],
    axis=2,
  )
  segments = _segments(segments, q.shape[1], k.shape[1])
  arrays, parameters = (q, k, v, to_output, terms_BH2L, segments), _parameters("backward", width, how)
  fitting = lambda name, block: _fitting(parameters[name], 2, q.shape[3], block, bool(segments))  # noqa: E731
  block = parameters["dq_keys"]
  plan = mosaic_forward.Plan(how, length, keys, block, fitting("dq_buffers", block))
  to_q = mosaic_backward.to_queries(*arrays, _of_queries(segments, plan), plan)
  block = parameters["dkv_queries"]
  plan = plan._replace(block=block, buffers=fitting("dkv_buffers", block))
  to_k, to_v = mosaic_backward.to_keys(*arrays, _of_keys(segments, plan), plan)
  return to_q[:, :length, :, :width], to_k[:, :keys, :, :width], to_v[:, :keys, :, :width]


def _parameters(direction: str, width: int, how: How) -> dict[str, int]:
  near = min(each for each in WIDTHS if each >= width)
  return BLOCKS.parameters(f"{direction}, {near}, {'causal' if how.causal else 'all'}")


def _fitting(buffers: int, tiles: int, width: int, block: int, segments: bool) -> int:
  """As many of them as shared memory holds beside so many tiles, all of 16 bits: what was measured may have had more.

  A buffer is two blocks, their rows' segments, and two float32 for each of them at most.
  """
  row = 2 * 2 * width + (4 if segments else 0) + (8 if tiles == 2 else 0)
  return min(buffers, (SHARED - REST - 2 * TILE * width * tiles) // (block * row))


def _padded(array_BLHK: jax.Array, size: int) -> jax.Array:
  """With zeros up to a multiple of the size in its length, and up to one of `WIDTHS` in its width."""
  _, length, _, width = array_BLHK.shape
  wide = min(each for each in WIDTHS if each >= width)
  return jnp.pad(array_BLHK, ((0, 0), (0, -length % size), (0, 0), (0, wide - width)))


def _segments(segments: Sequence[jax.Array], length: int, keys: int) -> tuple[jax.Array, ...]:
  """With −1 where there is padding."""
  to = (length, keys)
  return tuple(
    jnp.pad(each, ((0, 0), (0, size - each.shape[1])), constant_values=-1)
    for each, size in zip(segments, to[: len(segments)], strict=True)
  )


def _of_queries(segments: Sequence[jax.Array], plan: Any) -> jax.Array | None:
  """(B, tiles, 4): the `Range` of each tile of queries, where segments decide it; else the kernel knows it itself."""
  return _narrowed(*segments, plan.keys_of, plan.block) if segments else None


def _of_keys(segments: Sequence[jax.Array], plan: Any) -> jax.Array | None:
  """(B, tiles, 4): the `Range` of blocks of queries of each tile of keys."""
  return _narrowed(*segments[::-1], plan.queries_of, plan.block) if segments else None


def _narrowed(tiles_BL: jax.Array, blocks_BM: jax.Array, of: Callable[..., ranges.Range], block: int) -> jax.Array:
  batch, length = tiles_BL.shape
  found = of(None, None, jnp.arange(length // TILE, dtype=jnp.int32))
  found = ranges.with_segments(found, tiles_BL.reshape(batch, -1, TILE), blocks_BM.reshape(batch, -1, block))
  return jnp.stack(found, axis=-1)
