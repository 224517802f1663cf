"""All logits at once, and the gradients left to autodiff's order: what is left to the compiler."""

import jax

from research.kernels.linear_cross_entropy import terms as of
from research.kernels.linear_cross_entropy.terms import Scores, Terms


def scores(x_ND: jax.Array, kernel_DV: jax.Array, labels_N: jax.Array, *bias: jax.Array, terms: Terms) -> Scores:
  """Each token's scores."""
  return of.score(of.logits_of(x_ND, kernel_DV, bias), labels_N, terms)[0]


def scores_and_gradients(
  x_ND: jax.Array, kernel_DV: jax.Array, labels_N: jax.Array, weights_N: jax.Array, *bias: jax.Array, terms: Terms
) -> tuple[Scores, tuple[jax.Array, ...]]:
  """The same, and the total's gradients to x, kernel and bias in their dtypes."""
  found, logits_NV = of.score(of.logits_of(x_ND, kernel_DV, bias), labels_N, terms)
  slope_NV = of.gradient(logits_NV, found.log_normalizer_N, labels_N, weights_N, terms)
  narrow_NV = slope_NV.astype(x_ND.dtype)
  to_x_ND = of.product(narrow_NV, kernel_DV, (1, 1)).astype(x_ND.dtype)
  to_kernel_DV = of.product(x_ND, narrow_NV, (0, 0)).astype(kernel_DV.dtype)
  return found, (to_x_ND, to_kernel_DV, *(slope_NV.sum(axis=0) for _ in bias))
