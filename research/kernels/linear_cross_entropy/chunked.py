"""Some tokens at a time, in a scan: what is alive at once is their logits, and the sum of the kernel's gradient.

With several devices the tokens are first cut into as many groups that go side by side, each with a sum of its own: a
batch that is sharded over them then stays where it is, and only the sums travel. Inside `jax.shard_map` the tokens are
one device's already.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.linear_cross_entropy import terms as of
from research.kernels.linear_cross_entropy.terms import Scores, Terms

LOGITS_BYTES = 2**26  # of float32 logits that are alive at once on a device, give or take a factor of two


def scores(x_ND: jax.Array, kernel_DV: jax.Array, labels_N: jax.Array, *bias: jax.Array, terms: Terms) -> Scores:
  """Each token's scores."""
  size, x_SGnD, labels_SGn = _cut(kernel_DV.shape[1], terms.ignore, x_ND, labels_N)

  def one(chunk):
    x_GnD, labels_Gn = chunk
    return of.score(of.logits_of(x_GnD, kernel_DV, bias), labels_Gn, terms)[0]

  return _joined(lax.map(one, (x_SGnD, labels_SGn)), size)


def scores_and_gradients(
  x_ND: jax.Array, kernel_DV: jax.Array, labels_N: jax.Array, weights_N: jax.Array, *bias: jax.Array, terms: Terms
) -> tuple[Scores, tuple[jax.Array, ...]]:
  """The same, and the total's gradients to x, kernel and bias in their dtypes."""
  width, vocabulary = kernel_DV.shape
  size, x_SGnD, labels_SGn, weights_SGn = _cut(vocabulary, terms.ignore, x_ND, labels_N, weights_N)
  groups = x_SGnD.shape[1]

  def one(totals, chunk):
    x_GnD, labels_Gn, weights_Gn = chunk
    found, logits_GnV = of.score(of.logits_of(x_GnD, kernel_DV, bias), labels_Gn, terms)
    slope_GnV = of.gradient(logits_GnV, found.log_normalizer_N, labels_Gn, weights_Gn, terms)
    narrow_GnV = slope_GnV.astype(x_ND.dtype)
    if groups == 1:  # XLA's CPU backend hands products of two matrices alone to its library
      to_kernel_GDV = of.product(x_GnD[0], narrow_GnV[0], (0, 0))[None]
    else:
      to_kernel_GDV = of.product(x_GnD, narrow_GnV, (1, 1), batched=True)
    to_x_GnD = of.product(narrow_GnV, kernel_DV, (2, 1)).astype(x_ND.dtype)
    more = (to_kernel_GDV, *(slope_GnV.sum(axis=1) for _ in bias))
    return tuple(total + each for total, each in zip(totals, more, strict=True)), (found, to_x_GnD)

  zeros = [jnp.zeros((groups, width, vocabulary), jnp.float32), *(jnp.zeros((groups, vocabulary)) for _ in bias)]
  (to_kernel_GDV, *to_bias_GV), (found, to_x_SGnD) = lax.scan(
    one, tuple(zeros), (x_SGnD, labels_SGn, weights_SGn)
  )
  to_kernel_DV = to_kernel_GDV.sum(axis=0).astype(kernel_DV.dtype)
  return _joined(found, size), (_join(to_x_SGnD, size), to_kernel_DV, *(each.sum(axis=0) for each in to_bias_GV))


def _cut(vocabulary: int, ignore: int, x_ND: jax.Array, labels_N: jax.Array, *weights: jax.Array):
  """→ (N of a group, arrays of (chunks S, groups G, tokens n, …)); tokens that fill a last chunk are ignored."""
  count = x_ND.shape[0]
  groups = 1 if jax.sharding.get_abstract_mesh().manual_axes else math.gcd(count, jax.device_count())
  size = count // groups
  chunks = _chunks(size, size * vocabulary * 4)
  piece = math.ceil(size / chunks)

  def cut(array: jax.Array, filling) -> jax.Array:
    grouped = array.reshape(groups, size, *array.shape[1:])
    edges = [(0, 0), (0, chunks * piece - size)] + [(0, 0)] * (array.ndim - 1)
    filled = jnp.pad(grouped, edges, constant_values=filling)
    return filled.reshape(groups, chunks, piece, *array.shape[1:]).swapaxes(0, 1)

  return size, cut(x_ND, 0), cut(labels_N, ignore), *(cut(each, 0) for each in weights)


def _chunks(size: int, logits_bytes: int) -> int:
  """How many to cut so many tokens into: where it can be without a remainder, which all arrays would be copied for."""
  wanted = max(1, math.ceil(logits_bytes / LOGITS_BYTES))
  even = [each for each in range(math.ceil(wanted / 2), min(2 * wanted, size) + 1) if size % each == 0]
  return min(even, key=lambda each: max(each / wanted, wanted / each), default=wanted)


def _join(array: jax.Array, size: int) -> jax.Array:
  """(S, G, n, …) → (N, …)."""
  grouped = array.swapaxes(0, 1).reshape(array.shape[1], -1, *array.shape[3:])
  return grouped[:, :size].reshape(-1, *array.shape[3:])


def _joined(found: Scores, size: int) -> Scores:
  return Scores(*(_join(each, size) for each in found))
