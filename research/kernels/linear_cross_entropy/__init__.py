"""A dense layer and the cross-entropy of its logits in one, which never holds all the logits.

For a vocabulary of 50,000 the logits of a batch, their probabilities and their gradients take more memory than the rest
of a small language model. Here some tokens at a time are scored, and what their losses say of the inputs and the kernel
is computed in the same pass, for the logits are at hand then (as in Hsu et al. 2024, Liger Kernel, section 3.2). So the
weight of each token's loss has to be known beforehand, and only their weighted sum has a gradient.

Axes: N tokens, D width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.kernels.choice import Form, Op
from research.kernels.linear_cross_entropy import chunked, xla
from research.kernels.linear_cross_entropy.terms import Scores, Terms

_TABLE = dict.fromkeys(("cpu", "cuda", "tpu"), ("chunked",))
_SCORES = Op(
  "linear_cross_entropy", forms={"chunked": Form(chunked.scores), "xla": Form(xla.scores)}, table=_TABLE
)
_GRADIENTS = Op(
  "linear_cross_entropy.gradients",
  forms={"chunked": Form(chunked.scores_and_gradients), "xla": Form(xla.scores_and_gradients)},
  table=_TABLE,
)


class Result(NamedTuple):
  """What `linear_cross_entropy` gives.

  Attributes:
    total: Σ_n weight_n · (loss_n + z_loss · log_normalizer_n²), float32 (); the only one with a gradient.
    loss_N: each token's cross-entropy, float32; 0 where it is ignored.
    log_normalizer_N: log Σ_v exp(logit_v), float32.
    guess_N: the likeliest token, of equals the first, int32.
  """

  total: jax.Array
  loss_N: jax.Array
  log_normalizer_N: jax.Array
  guess_N: jax.Array


def linear_cross_entropy(
  x_ND: jax.Array,
  kernel_DV: jax.Array,
  labels_N: jax.Array,
  weights_N: jax.Array,
  bias_V: jax.Array | None = None,
  *,
  ignore: int = -1,
  z_loss: float = 0.0,
  softcap: float = 0.0,
  smoothing: float = 0.0,
  form: str | None = None,
) -> Result:
  """Cross-entropies of softmax(x · kernel + bias) against labels, with gradients to x, kernel and bias.

  Products are in x's dtype with sums in float32; all that follows is float32. Differentiates in reverse mode only.

  Args:
    x_ND: float32 or bfloat16.
    kernel_DV: of the same dtype.
    labels_N: int32 in [0, V), or `ignore`.
    weights_N: float32, what each token's loss counts in the total: 1 / count for a mean. It has no gradient.
    bias_V: float32.
    ignore: the label of tokens that have no loss, whatever their weight.
    z_loss: weight of the squared log-normaliser (Chowdhery et al. 2022, section 5).
    softcap: s in logits ← s·tanh(logits / s); 0: none.
    smoothing: a in q ← (1−a)·q + a/V (Szegedy et al. 2016, section 7).
    form: "chunked" or "xla", instead of the choice.

  Raises:
    ValueError: shapes that do not belong together.
  """
  count, width = x_ND.shape
  fits = kernel_DV.shape[0] == width and labels_N.shape == weights_N.shape == (count,)
  if not fits or (bias_V is not None and bias_V.shape != kernel_DV.shape[1:]):
    shapes = [None if array is None else array.shape for array in (x_ND, kernel_DV, labels_N, weights_N, bias_V)]
    raise ValueError(f"linear_cross_entropy: x, kernel, labels, weights, bias of shapes {shapes}")
  terms = Terms(ignore, z_loss, softcap, smoothing)
  weights_N = jnp.where(labels_N == ignore, 0.0, weights_N.astype(jnp.float32))
  bias = () if bias_V is None else (bias_V.astype(jnp.float32),)
  total, scores = _weighted(x_ND, kernel_DV, bias, labels_N, weights_N, terms, form)
  return Result(total, *scores)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _weighted(x_ND, kernel_DV, bias, labels_N, weights_N, terms: Terms, form: str | None):
  """→ (the total, `Scores`)."""
  scores = _SCORES(x_ND, kernel_DV, labels_N, *bias, terms=terms, form=form)
  return _total(scores, weights_N, terms), scores


def _total(scores: Scores, weights_N: jax.Array, terms: Terms) -> jax.Array:
  return (weights_N * (scores.loss_N + terms.z_loss * jnp.square(scores.log_normalizer_N))).sum()


def _forward(x_ND, kernel_DV, bias, labels_N, weights_N, terms, form):
  scores, gradients = _GRADIENTS(x_ND, kernel_DV, labels_N, weights_N, *bias, terms=terms, form=form)
  return (_total(scores, weights_N, terms), scores), gradients


def _backward(terms, form, gradients, cotangents):
  del terms, form
  x_ND, kernel_DV, *bias = (scaled(each, cotangents[0]) for each in gradients)
  return x_ND, kernel_DV, tuple(bias), None, None


def scaled(gradient: jax.Array, by: jax.Array) -> jax.Array:
  """The gradient times a float32 scalar, in its own dtype."""
  return (gradient.astype(jnp.float32) * by).astype(gradient.dtype)


_weighted.defvjp(_forward, _backward)
