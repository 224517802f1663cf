"""Each kernel beside what XLA makes of the operation as one would write it, in turn: how fast, and in how much memory.

  python -m benchmarks.kernels
  python -m benchmarks.kernels attention --rounds=40

An operation with its gradients, jitted, on sizes from the experiments. A round runs every form once, so that a ratio
compares times of the same moment. Temporaries are those of the compiled program (`memory_analysis`).
"""

import argparse
import dataclasses
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from research.allocator import keep_freed_memory
from research.kernels import choice
from research.kernels.attention import attention
from research.kernels.bias_act import bias_act
from research.kernels.conv import convolution
from research.kernels.conv_transpose import conv_transpose
from research.kernels.dense import product
from research.kernels.depthwise_conv import depthwise_conv
from research.kernels.dropout import dropout
from research.kernels.linear_cross_entropy import linear_cross_entropy
from research.kernels.max_over_time import greatest
from research.kernels.max_pool import max_pool
from research.kernels.norm import norm
from research.kernels.upfirdn2d import upfirdn2d

SAME = ((1, 1), (1, 1))
BLUR = (0.125, 0.375, 0.375, 0.125)


@dataclasses.dataclass(frozen=True)
class Case:
  """An operation on arrays of a size.

  Attributes:
    what: the size, in words.
    kernel: (*arrays) → an array; what is timed are it and its gradients to all floating arrays, of random cotangents.
    plain: the same, as a script has it.
    shapes: of the arrays: normal ones, and then for an entry (function) what it gives.
    form: of the kernel.
    dtype: of the arrays.
  """

  what: str
  kernel: Callable[..., jax.Array]
  plain: Callable[..., jax.Array]
  shapes: tuple[Any, ...]
  form: str = "cpu"
  dtype: str = "float32"


def labels(count: int, below: int) -> Callable[[], np.ndarray]:
  return lambda: np.random.default_rng(7).integers(0, below, count).astype(np.int32)


def scored(x, kernel, labels_N):
  return linear_cross_entropy(x, kernel, labels_N, jnp.full(len(x), 1.0 / len(x))).total


def all_logits(x, kernel, labels_N):
  return optax.softmax_cross_entropy_with_integer_labels(x @ kernel, labels_N).mean()


def all_scores(q, k, v, window: int = 0):
  """Causal attention with its L² scores, and a window."""
  places = jnp.arange(q.shape[1])
  mask_LL = places[None, :] <= places[:, None]
  if window:
    mask_LL &= places[None, :] > places[:, None] - window
  return jax.nn.dot_product_attention(q, k, v, mask=mask_LL[None, None])


def normalised(x, scale, bias):
  centred = x - x.mean(axis=-1, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
  return centred / deviation * scale[None, None] + bias[None, None]


def dropped(x):
  """A tenth of the values, by the bytes of jax's words."""
  words = jax.random.bits(jax.random.key(0), (x.shape[0], x[0].size // 4), jnp.uint32)
  return jnp.where(lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape) >= 26, x * (256 / 230), 0.0)


def by_channel(x, kernel, strides=(1, 1), pads=SAME, **options):
  """A convolution of each channel with (h, w, C)."""
  kernel_HW1C = kernel[:, :, None]
  groups = {"feature_group_count": x.shape[3], "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  return lax.conv_general_dilated(x, kernel_HW1C, strides, pads, **groups, **options)


def blurred(x, pads, down=1, up=1):
  kernel_HWC = jnp.asarray(np.broadcast_to(np.outer(BLUR, BLUR)[..., None], (4, 4, x.shape[3])), x.dtype)
  return by_channel(x, kernel_HWC, (down, down), pads, lhs_dilation=(up, up))


def activated(x, bias):
  return jnp.clip(jax.nn.leaky_relu(x + bias[None, None, None], 0.2) * jnp.asarray(2**0.5, x.dtype), -256, 256)


CASES = {
  "conv": Case(
    "3×3, 64 to 64 channels, 64 images of 16×16",
    lambda x, kernel: convolution(x, kernel, (1, 1), SAME, None),
    lambda x, kernel: lax.conv_general_dilated(x, kernel, (1, 1), SAME, dimension_numbers=("NHWC", "HWIO", "NHWC")),
    ((64, 16, 16, 64), (3, 3, 64, 64)),
  ),
  "conv_transpose": Case(
    "DCGAN's 4×4, 128 to 64 channels, 64 images of 7×7 to 14×14",
    lambda x, kernel: conv_transpose(x, kernel, (2, 2), "SAME"),
    lambda x, kernel: lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    ((64, 7, 7, 128), (4, 4, 128, 64)),
  ),
  "dense": Case(
    "12 texts of 64 tokens, 128 to 512",
    lambda x, kernel: product(x, kernel, None),
    lambda x, kernel: x @ kernel,
    ((12, 64, 128), (128, 512)),
  ),
  "norm": Case(
    "64 images of 64 patches, width 192",
    lambda x, scale, bias: norm(x, scale, bias, kind="layer", epsilon=1e-5),
    normalised,
    ((64, 64, 192), (192,), (192,)),
  ),
  "max_over_time": Case(
    "64 texts of 100 words, width 128, 100 filters over 5 words",
    lambda x, kernel: greatest(x, kernel, jnp.ones(x.shape[:2], bool)),
    lambda x, kernel: lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")).max(1),
    ((64, 100, 128), (5, 128, 100)),
  ),
  "linear_cross_entropy": Case(
    "4,096 tokens, width 256, 16,384 words",
    scored,
    all_logits,
    ((4096, 256), (256, 16_384), labels(4096, 16_384)),
    form="chunked",
  ),
  "attention": Case(
    "causal, 1 text of 4,096 tokens, 4 heads of 64",
    lambda q, k, v: attention(q, k, v, causal=True)[0],
    all_scores,
    ((1, 4096, 4, 64),) * 3,
    form="chunked",
  ),
  "attention, a window": Case(
    "of 256, 1 text of 4,096 tokens, 4 heads of 64",
    lambda q, k, v: attention(q, k, v, causal=True, window=256)[0],
    functools.partial(all_scores, window=256),
    ((1, 4096, 4, 64),) * 3,
    form="chunked",
  ),
  "dropout": Case(
    "a tenth, 64 texts of 64 tokens, width 768",
    lambda x: dropout(x, jax.random.key(0), 0.1),
    dropped,
    ((64, 64, 768),),
  ),
  "depthwise_conv": Case(
    "3×3, 128 channels, 32 images of 28×28",
    lambda x, kernel: depthwise_conv(x, kernel, (1, 1), SAME, None),
    by_channel,
    ((32, 28, 28, 128), (3, 3, 128)),
  ),
  "depthwise_conv, halving": Case(
    "3×3, 128 channels, 32 images of 28×28",
    lambda x, kernel: depthwise_conv(x, kernel, (2, 2), SAME, None),
    functools.partial(by_channel, strides=(2, 2)),
    ((32, 28, 28, 128), (3, 3, 128)),
  ),
  **{
    f"max_pool, {side}×{side}{', bfloat16' if dtype == 'bfloat16' else ''}": Case(
      "halving 256 images of 28×28, 32 channels",
      functools.partial(max_pool, window=(side, side), strides=(2, 2), pads=pads),
      functools.partial(nn.max_pool, window_shape=(side, side), strides=(2, 2), padding=pads),
      ((256, 28, 28, 32),),
      dtype=dtype,
    )
    for side, pads in ((2, ((0, 0), (0, 0))), (3, SAME))
    for dtype in ("float32", "bfloat16")
  },
  "upfirdn2d, doubling": Case(
    "a blur of 4×4, 16 images of 32×32, 64 channels",
    lambda x: upfirdn2d(x, BLUR, (2, 2), (1, 1), ((2, 1), (2, 1))),
    functools.partial(blurred, up=2, pads=((2, 2), (2, 2))),
    ((16, 32, 32, 64),),
  ),
  "upfirdn2d, halving": Case(
    "a blur of 4×4, 16 images of 64×64, 64 channels",
    lambda x: upfirdn2d(x, BLUR, (1, 1), (2, 2), SAME),
    functools.partial(blurred, down=2, pads=SAME),
    ((16, 64, 64, 64),),
  ),
  **{
    f"bias_act{', bfloat16' if dtype == 'bfloat16' else ''}": Case(
      "leaky ReLU and a clamp, 16 images of 64×64, 64 channels",
      lambda x, bias: bias_act(x, bias, "leaky_relu", 2**0.5, 256.0),
      activated,
      ((16, 64, 64, 64), (64,)),
      dtype=dtype,
    )
    for dtype in ("float32", "bfloat16")
  },
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("operations", nargs="*", help=f"of {', '.join(CASES)}; none: all")
  parser.add_argument("--rounds", type=int, default=20)
  arguments = parser.parse_args()
  if unknown := set(arguments.operations) - CASES.keys():
    parser.error(f"no operation {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
  keep_freed_memory()
  print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, jax {version('jax')}, {jax.devices()[0].device_kind}")
  print("| with gradients | size | form | ms | plain | speed ÷ plain's, median (quartiles) | temporaries, MB | n |")
  print("| --- | --- | --- | --- | --- | --- | --- | --- |")
  for name in arguments.operations or CASES:
    print(row(name, CASES[name], arguments.rounds), flush=True)


def row(name: str, case: Case, rounds: int) -> str:
  """The table's line of a case."""
  arrays = [
    jnp.asarray(shape() if callable(shape) else np.random.default_rng(i).normal(size=shape).astype(case.dtype))
    for i, shape in enumerate(case.shapes)
  ]
  floating = sum(jnp.issubdtype(array.dtype, jnp.floating) for array in arrays)
  shape = jax.eval_shape(case.plain, *arrays).shape
  arrays.append(jnp.asarray(np.random.default_rng(9).normal(size=shape), case.dtype))

  def compiled(run: Callable[..., jax.Array]) -> jax.stages.Compiled:
    def value_and_gradients(*given: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
      *given, cotangent = given
      value, slope = jax.vjp(lambda *first: run(*first, *given[floating:]), *given[:floating])
      return value, slope(cotangent)

    return jax.jit(value_and_gradients).lower(*arrays).compile()

  with choice.use(**{op.name: case.form for op in choice.OPS.values() if case.form in op.forms}):
    programs = {"kernel": compiled(case.kernel)}
  programs["plain"] = compiled(case.plain)
  took = {side: [] for side in programs}
  for program in programs.values():
    jax.block_until_ready(program(*arrays))
  for number in range(rounds):
    for side in list(programs) if number % 2 else list(programs)[::-1]:
      began = time.perf_counter()
      jax.block_until_ready(programs[side](*arrays))
      took[side].append(time.perf_counter() - began)
  ratios = [theirs / ours for ours, theirs in zip(took["kernel"], took["plain"], strict=True)]
  low, median, high = statistics.quantiles(ratios, n=4)
  megabytes = [programs[side].memory_analysis().temp_size_in_bytes / 1e6 for side in programs]
  milliseconds = [f"{1000 * statistics.median(took[side]):.3g}" for side in programs]
  return (
    f"| {name} | {case.what} | {case.form} | {' | '.join(milliseconds)} | {median:.2f} ({low:.2f} – {high:.2f})"
    f" | {megabytes[0]:.3g} ÷ {megabytes[1]:.3g} | {rounds} |"
  )


if __name__ == "__main__":
  main()
