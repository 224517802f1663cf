"""On a CPU in C++ (`kernels/native`): a row is read once in each direction."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels import native
from research.kernels.norm import how as of
from research.kernels.norm.how import How

LEAST = 2**15  # numbers; XLA joins a smaller norm with what is around it, and needs no call

missing = native.missing


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How) -> str | None:
  """Why it cannot run on these, or None."""
  del platform
  if others := {str(jnp.dtype(dtype)) for dtype in (*dtypes, how.dtype)} - {"float32"}:
    return f"it takes float32, not {' and '.join(sorted(others))}"
  return "there are no rows" if 0 in shapes[0] else None


def worth(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How) -> bool:
  """Whether the table takes it: many numbers, on one device."""
  del dtypes, platform, how
  return native.whole() and math.prod(shapes[0]) >= LEAST


def forward(*arrays: jax.Array, how: How) -> tuple[jax.Array, ...]:
  """`Forward` → (y, x + residual where there is one, the mean if there is one, the inverse deviation)."""
  x = arrays[0]
  results = [x.shape] * (1 + how.residual) + [x.shape[:-1]] * how.statistics
  return _call("norm", results, arrays, how, residual=how.residual)


def backward(*arrays: jax.Array, how: How) -> tuple[jax.Array, ...]:
  """`Backward` → gradients to x, and to scale and bias where there are any."""
  x, total = arrays[0], of.backward(arrays, how).to_total is not None
  results = [x.shape] + [x.shape[-1:]] * (how.scale + how.bias)
  return _call("norm_gradients", results, arrays, how, total=total)


def _call(name: str, results: list[tuple[int, ...]], arrays: Sequence[jax.Array], how: How, **more: bool):
  *leading, width = arrays[0].shape
  parts = {"layer": how.kind == "layer", "scale": how.scale, "bias": how.bias, **more}
  size = {"rows": math.prod(leading), "width": width}
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]
  return tuple(native.call(name, shapes, *arrays, **size, **parts, epsilon=how.epsilon))
