"""Attention of many heads that need not hold its scores, with its gradients.

softmax(q·k · scale) v (Vaswani et al. 2017, equation 1) over the keys that a query may see. The form `chunked` keeps a
block of scores at a time, and what the softmax of a row adds up to, from which the backward pass makes them again (Dao
et al. 2022, FlashAttention, algorithms 1 and 4): memory grows with the length, not its square. `cudnn`, `mosaic_gpu`
and `pallas_tpu` do so in kernels: the library's for NVIDIA's GPUs where it can, and one of our own with documents and
soft caps, and one for TPUs. `xla` holds all scores and is the faster one while they are few.

Axes: B batch, L queries, M keys, H heads, G key and value heads, R = H / G heads that share one of them, K head width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from research.kernels import choice
from research.kernels.attention import chunked, cudnn, mosaic_gpu, native, pallas_tpu, xla
from research.kernels.attention.masks import How
from research.kernels.choice import Form, Op

MOST_SCORES = 2**25  # that are held at once where nobody says otherwise: 128 MB of float32


def _many(shapes: Any, dtypes: Any, platform: str, **options: Any) -> bool:
  """Whether the scores of all rows are too many to hold."""
  del dtypes, platform, options
  (batch, length, heads, _), keys = shapes[0], shapes[1][1]
  return batch * length * heads * keys > MOST_SCORES


_CPU, _CUDA, _TPU = ("cpu",), ("cuda",), ("tpu",)
_TABLE = {
  "cpu": ("native", "chunked"),
  "cuda": ("cudnn", "mosaic_gpu", "chunked"),
  "tpu": ("pallas_tpu", "chunked"),
}
_FORWARD = Op(
  "attention",
  forms={
    "chunked": Form(chunked.forward, worth=_many),
    "cudnn": Form(cudnn.forward, _CUDA, cudnn.limits),
    "mosaic_gpu": Form(mosaic_gpu.forward, _CUDA, mosaic_gpu.limits, mosaic_gpu.worth),
    "native": Form(native.forward, _CPU, native.limits, native.worth, missing=native.missing),
    "pallas_tpu": Form(pallas_tpu.forward, _TPU, pallas_tpu.limits, pallas_tpu.worth),
    "xla": Form(xla.forward, alone=xla.forward_and_weights),
  },
  table=_TABLE,
)
_BACKWARD = Op(
  "attention.gradients",
  forms={
    "chunked": Form(chunked.backward, worth=_many),
    "cudnn": Form(cudnn.backward, _CUDA, cudnn.limits),
    "mosaic_gpu": Form(mosaic_gpu.backward, _CUDA, mosaic_gpu.limits, mosaic_gpu.worth),
    "native": Form(native.backward, _CPU, native.limits, native.worth, missing=native.missing),
    "pallas_tpu": Form(pallas_tpu.backward, _TPU, pallas_tpu.limits, pallas_tpu.worth),
    "xla": Form(xla.backward),
  },
  table=_TABLE,
)


def attention(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  *,
  causal: bool = False,
  segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None,
  window: int = 0,
  softcap: float = 0.0,
  scale: float | None = None,
  form: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(output_BLHK of q's dtype, log_sum_exp_BLH float32), both with gradients; head h reads key head h // (H / G).

  Scores and softmax are float32. A row that sees no key gives zeros, and −inf. Differentiates in reverse mode, `xla`
  and `native` any number of times and the others once.

  Args:
    q_BLHK: float32 or bfloat16.
    k_BMGK: of the same dtype; G divides H.
    v_BMGK: of k's shape and dtype.
    causal: a query sees no later keys; the last query stands at the last key.
    segment_ids: integers (B, L) of the queries and (B, M) of the keys, or one for both: a query sees the keys of its
      own segment alone, and nobody sees those of a negative one.
    window: a query sees this many keys, itself and those before it; with causal=False as many after it; 0: all.
    softcap: s in scores ← s·tanh(scores / s); 0: none.
    scale: of the scores; None: 1 / √K.
    form: "native", "chunked", "cudnn", "mosaic_gpu", "pallas_tpu" or "xla", for both directions, instead of the choice.

  Raises:
    ValueError: shapes that do not belong together, segments that are no integers, or a negative window or softcap.
  """
  batch, length, heads, width = q_BLHK.shape
  keys, groups = k_BMGK.shape[1:3]
  segments = segment_ids if isinstance(segment_ids, tuple) else () if segment_ids is None else (segment_ids,) * 2
  sizes = [(batch, length), (batch, keys)]
  fits = k_BMGK.shape == v_BMGK.shape == (batch, keys, groups, width) and width > 0 < groups and heads % groups == 0
  if not fits or (segments and [each.shape for each in segments] != sizes):
    shapes = [each.shape for each in (q_BLHK, k_BMGK, v_BMGK, *segments)]
    raise ValueError(f"attention: queries, keys, values, segments of shapes {shapes}")
  if window < 0 or softcap < 0:
    raise ValueError(f"attention: a window of {window}, a softcap of {softcap}; 0 is none")
  if not all(jnp.issubdtype(each.dtype, jnp.integer) for each in segments):
    raise ValueError(f"attention: segments of {[each.dtype.name for each in segments]}; they are numbers of documents")
  segments = tuple(each.astype(jnp.int32) for each in segments)
  window = min(window, length + keys)  # as many see as without one, and places are counted in int32
  how = How(causal, window, softcap, width**-0.5 if scale is None else scale)
  q_BLHK, k_BMGK, v_BMGK, *segments = choice.together(q_BLHK, k_BMGK, v_BMGK, *segments)
  segments = tuple(segments)
  return _attention(q_BLHK, k_BMGK, v_BMGK, segments, how, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, segments, how: How, form: str | None):
  return _FORWARD(q, k, v, *segments, how=how, form=form)[:2]


def _forward(q, k, v, segments, how, form):
  given = (q, k, v, segments)  # each with whether it is differentiated by, which is not asked here
  q, k, v, segments = jax.tree.map(lambda x: x.value, given, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
  output, log_sum_exp, weights = _FORWARD(q, k, v, *segments, how=how, form=form)
  return (output, log_sum_exp), (q, k, v, segments, output, log_sum_exp, weights)


def _backward(how, form, saved, gradients):
  q, k, v, segments, output, log_sum_exp, weights = saved
  how = how._replace(sums=not isinstance(gradients[1], SymbolicZero))
  gradients = [jnp.zeros(each.shape, each.dtype) if isinstance(each, SymbolicZero) else each for each in gradients]
  slopes = _BACKWARD(
    q, k, v, *segments, how=how, form=form, made=(output, log_sum_exp, weights), gradients=gradients
  )
  return *slopes, jax.tree.map(lambda _: None, segments)


_attention.defvjp(_forward, _backward, symbolic_zeros=True)  # zeros that are known: cuDNN has no other gradient of sums
