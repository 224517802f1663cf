"""On a CPU: each text reads, or adds to, the one window of each filter; L times less to multiply, and no matrix of it.

Texts come one after the other, so that what they add to stays in the cache. With several devices the batch is first
cut into as many groups that go side by side: a batch sharded over them then stays where it is. Sums are float32.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


def input_gradient(g_BF: jax.Array, kernel_KDF: jax.Array, place_BF: jax.Array, length: int) -> jax.Array:
  """(B, F), (K, D, F) → (B, L, D)."""
  window, width, _ = kernel_KDF.shape
  kernel_KFD = kernel_KDF.transpose(0, 2, 1).astype(jnp.float32)

  def of_text(g_F: jax.Array, place_F: jax.Array) -> jax.Array:
    zeros = jnp.zeros((length + window - 1, width), jnp.float32)
    padded_LD = zeros.at[_reads(place_F, window)].add(g_F[None, :, None] * kernel_KFD, mode="promise_in_bounds")
    return lax.slice_in_dim(padded_LD, (window - 1) // 2, (window - 1) // 2 + length)

  x_SGLD = lax.map(lambda texts: jax.vmap(of_text)(*texts), (_cut(g_BF.astype(jnp.float32)), _cut(place_BF)))
  return x_SGLD.swapaxes(0, 1).reshape(-1, length, width).astype(kernel_KDF.dtype)


def weight_gradient(x_BLD: jax.Array, g_BF: jax.Array, place_BF: jax.Array, window: int) -> jax.Array:
  """(B, L, D), (B, F) → (K, D, F)."""
  padded_BLD = jnp.pad(x_BLD, ((0, 0), ((window - 1) // 2, window // 2), (0, 0)))

  def of_text(x_LD: jax.Array, g_F: jax.Array, place_F: jax.Array) -> jax.Array:
    read_KFD = x_LD.at[_reads(place_F, window)].get(mode="promise_in_bounds")
    return g_F[None, :, None] * read_KFD.astype(jnp.float32)

  def add(total_GKFD, texts):
    return total_GKFD + jax.vmap(of_text)(*texts), None

  texts = (_cut(padded_BLD), _cut(g_BF.astype(jnp.float32)), _cut(place_BF))
  zeros = jnp.zeros((texts[0].shape[1], window, g_BF.shape[1], x_BLD.shape[2]), jnp.float32)
  total_GKFD, _ = lax.scan(add, zeros, texts)
  return total_GKFD.sum(axis=0).transpose(0, 2, 1).astype(x_BLD.dtype)


def _reads(place_F: jax.Array, window: int) -> jax.Array:
  """(F,) → (K, F): which rows of the padded text stand in the windows."""
  return place_F[None] + jnp.arange(window, dtype=jnp.int32)[:, None]


def _cut(x: jax.Array) -> jax.Array:
  """(B, …) → (texts of a group S, groups G, …)."""
  groups = math.gcd(x.shape[0], jax.device_count())
  return x.reshape(groups, -1, *x.shape[1:]).swapaxes(0, 1)
