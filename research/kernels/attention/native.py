"""On a CPU in C++ (`kernels/native`): a block of scores for each thread at a time, and no transposed copies."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels import native
from research.kernels.attention import xla
from research.kernels.attention.masks import How

missing = native.missing


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> str | None:
  """Why it cannot run on these, or None."""
  del platform, options
  if others := {str(jnp.dtype(dtype)) for dtype in dtypes[:3]} - {"float32"}:
    return f"it takes float32, not {' and '.join(sorted(others))}"
  return "an operand is empty" if any(0 in shape for shape in shapes) else None


def worth(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> bool:
  """Whether the table takes it: only on one device."""
  del shapes, dtypes, platform, options
  return native.whole()


def forward(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *segments: jax.Array, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, None)."""
  return *_values((q_BLHK, k_BMGK, v_BMGK), segments, how), None


def backward(q_BLHK, k_BMGK, v_BMGK, *segments, how: How, made, gradients):
  """→ gradients to q, k and v, which can be differentiated once more: by XLA's form."""
  return _gradients((q_BLHK, k_BMGK, v_BMGK), segments, tuple(made[:2]), tuple(gradients), how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _values(arrays, segments, how: How):
  shape = arrays[0].shape
  return tuple(_call("attention", [shape, shape[:3]], arrays, segments, (), how))


def _values_forward(arrays, segments, how):
  made = _values(arrays, segments, how)
  return made, (arrays, segments, made)


def _values_backward(how, saved, slopes):
  arrays, segments, made = saved
  return _gradients(arrays, segments, made, slopes, how), jax.tree.map(lambda _: None, segments)


_values.defvjp(_values_forward, _values_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _gradients(arrays, segments, made, gradients, how: How):
  return tuple(_call("attention_gradients", [x.shape for x in arrays], arrays, segments, (*made, *gradients), how))


def _gradients_forward(arrays, segments, made, gradients, how):
  return _gradients(arrays, segments, made, gradients, how), (arrays, segments, made, gradients)


def _gradients_backward(how, saved, slopes):
  arrays, segments, made, gradients = saved

  def by_xla(arrays, gradients):  # of the arrays alone: it makes anew what the forward pass made
    return xla.backward(*arrays, *segments, how=how, made=(None, None, None), gradients=gradients)

  to_arrays, to_gradients = jax.vjp(by_xla, arrays, gradients)[1](slopes)
  return to_arrays, jax.tree.map(lambda _: None, segments), jax.tree.map(jnp.zeros_like, made), to_gradients


_gradients.defvjp(_gradients_forward, _gradients_backward)


def _call(name: str, shapes: list[tuple[int, ...]], arrays, segments, more, how: How):
  (batch, length, heads, width), (keys, groups) = arrays[0].shape, arrays[1].shape[1:3]
  return native.call(
    name,
    [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
    *arrays,
    *segments,
    *more,
    sizes=(batch, length, keys, heads, groups, width),
    causal=how.causal,
    window=how.window,
    segments=bool(segments),
    softcap=float(how.softcap),
    scale=float(how.scale),
  )
