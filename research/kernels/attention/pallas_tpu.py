"""Attention of TPUs: blocks of queries against blocks of keys in three Pallas kernels, without the scores in memory.

The forward pass keeps a softmax so far for a block of queries; the backward pass makes the scores again, once for the
queries' gradient and once for the keys' and values' (Dao et al. 2022, FlashAttention, algorithms 1 and 4). A kernel's
grid walks over the pairs of blocks that see each other (`pallas_tpu_visits`), as in jax's splash attention, and
here documents are passed over as well. Key and value heads are read where they are by every head that shares them.

XLA cannot divide a kernel over devices: of a jitted function for several, lowering raises NotImplementedError ("Mosaic
kernels cannot be automatically partitioned"). Under `jax.shard_map` over all axes each device has its own part and
the kernel runs on that; batch and heads may be divided so, lengths may not. The table takes the kernel only there and
in processes of one device.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels import choice
from research.kernels.attention import pallas_tpu_visits as of
from research.kernels.attention.masks import How
from research.kernels.tuning import Tunable

WIDEST = 256  # head: what a step's blocks of the default size take of a core's vector memory grows with it
LEAST = 512  # keys from which the table takes it; reasoned, not measured
SCALARS = 3 * 2**18  # bytes of a core's megabyte of scalar memory for the list of steps
KERNELS = ("forward", "to queries", "to keys")


def _case(kernel: str, width: int, dtype: Any) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
  """One kernel, causal, for the tuner."""
  keys = jax.random.split(jax.random.key(0), 4)
  arrays = tuple(jax.random.normal(key, (1, 4096, 8, width), dtype) for key in keys)
  how = How(True, 0, 0.0, width**-0.5)

  def run(q, k, v, to_output):
    from research.kernels.attention import pallas_tpu_calls as calls

    if kernel == "forward":
      return forward(q, k, v, how=how)[:2]
    rows_BLH = jnp.full(q.shape[:3], 9.0)
    gradient = calls.to_queries if kernel == "to queries" else calls.to_keys
    return gradient(q, k, v, to_output, rows_BLH, rows_BLH, (), how, _sizes(kernel, q, k))

  return run, arrays


BLOCKS = Tunable(
  "attention",
  "pallas_tpu",
  default={"queries": 512, "keys": 512},
  candidates=[{"queries": q, "keys": k} for q in (256, 512, 1024) for k in (256, 512, 1024, 2048)],
  cases={
    f"{kernel}, {dtype}, {width}": functools.partial(_case, kernel, width, dtype)
    for kernel in KERNELS
    for dtype in ("float32", "bfloat16")
    for width in (64, 128, 256)
  },
)


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How, **options: Any) -> str | None:
  """Why it cannot run, or None."""
  del platform, options
  batch, _, _, width = shapes[0]
  names = sorted({jnp.dtype(each).name for each in dtypes[:3]})
  if len(names) > 1 or names[0] not in ("float32", "bfloat16"):
    return f"it has float32 or bfloat16, and this is {' and '.join(names)}"
  if width > WIDEST:
    return f"heads of {width} are wider than {WIDEST}"
  if 0 in (*shapes[0], *shapes[1]):
    return "there is nothing in it"
  mesh = jax.sharding.get_abstract_mesh()
  if divided := [name for name in mesh.axis_names if mesh.shape[name] > 1 and name not in mesh.manual_axes]:
    return f"XLA cannot divide it over the mesh's {' and '.join(divided)}; jax.shard_map can"
  q, k = (jax.ShapeDtypeStruct(*each) for each in zip(shapes[:2], dtypes[:2], strict=True))
  rows = batch if len(shapes) > 3 else 1
  steps = max(of.most(_sizes(kernel, q, k), how, rows) for kernel in KERNELS)
  if 16 * steps > SCALARS:
    return f"its list of {steps} steps does not fit the scalar memory, which has room for {SCALARS // 16}"
  return None


def worth(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> bool:
  """Whether the table takes it: from `LEAST` keys and a block's worth of queries on, where nothing is to be divided."""
  del dtypes, options
  alone = platform != choice.platform() or jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)
  return shapes[0][1] >= of.LANES and shapes[1][1] >= LEAST and alone


def forward(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *segments: jax.Array, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, None)."""
  from research.kernels.attention import pallas_tpu_calls as calls

  return *calls.forward(q_BLHK, k_BMGK, v_BMGK, segments, how, _sizes("forward", q_BLHK, k_BMGK)), None


def backward(q_BLHK, k_BMGK, v_BMGK, *segments, how: How, made, gradients):
  """→ gradients to q, k and v."""
  from research.kernels.attention import pallas_tpu_calls as calls

  output_BLHK, log_sum_exp_BLH, _ = made
  to_output_BLHK, to_sum_BLH = gradients
  # What every score of a row has in common: its log-sum-exp, and the mean that the softmax subtracts.
  mean_BLH = (to_output_BLHK.astype(jnp.float32) * output_BLHK.astype(jnp.float32)).sum(axis=-1) - to_sum_BLH
  sum_BLH = jnp.where(jnp.isfinite(log_sum_exp_BLH), log_sum_exp_BLH, jnp.inf)  # no weight where nothing is seen
  given = (q_BLHK, k_BMGK, v_BMGK, to_output_BLHK, sum_BLH, mean_BLH, segments, how)
  return (
    calls.to_queries(*given, _sizes("to queries", q_BLHK, k_BMGK)),
    *calls.to_keys(*given, _sizes("to keys", q_BLHK, k_BMGK)),
  )


def _sizes(kernel: str, q_BLHK: Any, k_BMGK: Any) -> of.Sizes:
  """As many blocks as the kernel's parameters say at least, and these no larger than they need be: whole registers."""
  near = min((64, 128, 256), key=lambda width: abs(width - q_BLHK.shape[3]))
  blocks = BLOCKS.parameters(f"{kernel}, {q_BLHK.dtype}, {near}")

  def size(length: int, largest: int) -> int:
    unit = min(of.LANES, largest)
    return unit * math.ceil(length / math.ceil(length / largest) / unit)

  length, keys = q_BLHK.shape[1], k_BMGK.shape[1]
  return of.Sizes(length, keys, size(length, blocks["queries"]), size(keys, blocks["keys"]))
