"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019) in float32, with what is added before them in one.

What is kept for the backward pass is what was normalised, which something else keeps anyway, and two numbers a row.
Forward and backward pass choose their forms apart. Every derivative is there in every form: the derivatives of
derivatives are those of the formulas (`formulas.py`).

Axes: D width; any others before it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from research.kernels import choice, sums
from research.kernels.choice import Form, Op
from research.kernels.norm import cpu, formulas, mosaic_gpu, native, xla
from research.kernels.norm.how import DTYPES, KINDS, Backward, How

_NATIVE = {"platforms": ("cpu",), "limits": native.limits, "worth": native.worth, "missing": native.missing}
_FORWARD, _BACKWARD = (
  Op(
    name,
    forms={
      "native": Form(in_cpp, **_NATIVE),
      "cpu": Form(by_products, worth=cpu.worth),
      "mosaic_gpu": on_gpu,
      "xla": Form(by_xla),
    },
    table={"cpu": ("native", "cpu"), "cuda": ("mosaic_gpu",)},
  )
  for name, in_cpp, by_products, on_gpu, by_xla in (
    ("norm", native.forward, cpu.forward, mosaic_gpu.FORWARD, xla.forward),
    ("norm.gradients", native.backward, cpu.backward, mosaic_gpu.BACKWARD, xla.backward),
  )
)
_SUMS = formulas.Sums(sums.row_sum, sums.column_sum)


def norm(
  x: jax.Array,
  scale_D: jax.Array | None = None,
  bias_D: jax.Array | None = None,
  *,
  kind: str,
  epsilon: float,
  residual: jax.Array | None = None,
  dtype: jax.typing.DTypeLike | None = None,
  form: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """The rows of x (or of x + residual), normalised over the last axis, times the scale, plus the bias.

  Statistics are float32, the variance taken around the mean. Differentiates in reverse mode, any number of times.

  Args:
    x: (…, D) float32 or bfloat16.
    scale_D: what the normalised values are multiplied by, in float32; None: nothing.
    bias_D: what is added, in float32; None: nothing.
    kind: "layer": (row − mean) / √(variance + ε); "rms": row / √(mean of squares + ε).
    epsilon: ε.
    residual: of x's shape and dtype. x + residual, rounded to that dtype, is normalised.
    dtype: of the normalised values, float32 or bfloat16; None: x's.
    form: "native", "cpu", "mosaic_gpu" or "xla", for both directions, instead of the choice.

  Returns: the normalised values (…, D); with a residual the pair of them and x + residual, both with gradients: what a
    block of a network reads, and what it adds to.

  Raises:
    ValueError: another kind or dtype, or shapes that do not belong together.
  """
  dtype = jnp.dtype(x.dtype if dtype is None else dtype)
  if kind not in KINDS or not {x.dtype.name, dtype.name} <= {*DTYPES}:
    raise ValueError(f"norm: kind {kind!r} of {x.dtype} to {dtype}; kinds are {KINDS}, dtypes {DTYPES}")
  parameters = [each for each in (scale_D, bias_D) if each is not None]
  fits = x.ndim > 0 and all(each.shape == x.shape[-1:] for each in parameters)
  if not fits or (residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype)):
    given = [None if each is None else f"{each.dtype}{[*each.shape]}" for each in (x, scale_D, bias_D, residual)]
    raise ValueError(f"norm: x, scale, bias, residual of {given}")
  how = How(kind, float(epsilon), dtype.name, residual is not None, scale_D is not None, bias_D is not None)
  residuals = () if residual is None else (residual,)
  arrays = choice.together(x, *residuals, *(each.astype(jnp.float32) for each in parameters))
  found = _norm(arrays, how, form)
  return found[0] if residual is None else found[:2]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _norm(arrays: tuple[jax.Array, ...], how: How, form: str | None) -> tuple[jax.Array, ...]:
  """`Forward` → (y, x + residual where there is one, the numbers of each row)."""
  return tuple(_FORWARD(*arrays, how=how, form=form))


def _forward(arrays, how, form):
  arrays = tuple(each.value for each in arrays)
  found = _norm(arrays, how, form)  # itself, so that it differentiates once more
  x, *statistics = (found[1] if how.residual else arrays[0], *found[-how.statistics :])
  scale = arrays[1 + how.residual : 1 + how.residual + how.scale]
  return found, (x, *statistics, *scale)


def _backward(how, form, saved, slopes):
  to_y, *others = slopes
  *to_total, to_statistics = (*others[: how.residual], others[how.residual :])
  if isinstance(to_y, SymbolicZero):
    to_y = jnp.zeros(to_y.shape, to_y.dtype)
  to_total = [each for each in to_total if not isinstance(each, SymbolicZero)]
  to_x, *to_parameters = _gradients((*saved, to_y, *to_total), how, form)
  needed = [None if isinstance(each, SymbolicZero) else each for each in to_statistics]
  if any(each is not None for each in needed):  # in derivatives of derivatives alone
    given = Backward(saved[0], *([None] * (2 - how.statistics)), *saved[1 : 1 + how.statistics], None, None, None)
    more = formulas.from_statistics(given, *([None] * (2 - how.statistics)), *needed)
    to_x = (to_x.astype(jnp.float32) + more).astype(to_x.dtype)
  return ((to_x, *([to_x] if how.residual else []), *to_parameters),)


_norm.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gradients(arrays: tuple[jax.Array, ...], how: How, form: str | None) -> tuple[jax.Array, ...]:
  """`Backward` → gradients to x, and to scale and bias where there are any."""
  return tuple(_BACKWARD(*arrays, how=how, form=form))


def _gradients_backward(how, form, arrays, slopes):
  del form
  return (jax.vjp(functools.partial(formulas.backward, how=how, sums=_SUMS), *arrays)[1](slopes),)


_gradients.defvjp(
  lambda arrays, how, form: (_gradients(arrays, how, form), arrays),
  _gradients_backward,
)
