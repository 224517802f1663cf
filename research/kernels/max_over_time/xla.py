"""What is left to the compiler: the gradient of all the convolution's values, zero but at one place, and its own."""

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels.conv import xla


def convolution(x_BLD: jax.Array, kernel_KDF: jax.Array) -> jax.Array:
  """(B, L, D) with (K, D, F) → (B, L, F), as long as x."""
  return xla.convolution(x_BLD[:, None], kernel_KDF[None], (1, 1), _pads(kernel_KDF.shape[0]), None)[:, 0]


def input_gradient(g_BF: jax.Array, kernel_KDF: jax.Array, place_BF: jax.Array, length: int) -> jax.Array:
  """(B, F), (K, D, F) → (B, L, D)."""
  pads = _pads(kernel_KDF.shape[0])
  return xla.input_gradient(_spread(g_BF, place_BF, length), kernel_KDF[None], (1, length), (1, 1), pads, None)[:, 0]


def weight_gradient(x_BLD: jax.Array, g_BF: jax.Array, place_BF: jax.Array, window: int) -> jax.Array:
  """(B, L, D), (B, F) → (K, D, F)."""
  g_B1LF = _spread(g_BF, place_BF, x_BLD.shape[1])
  return xla.weight_gradient(x_BLD[:, None], g_B1LF, (1, window), (1, 1), _pads(window), None)[0]


def is_place(place_BF: jax.Array, length: int) -> jax.Array:
  """(B, F) → (B, L, F) bool."""
  shape = (place_BF.shape[0], length, place_BF.shape[1])
  return lax.broadcasted_iota(jnp.int32, shape, 1) == place_BF[:, None]


def _spread(g_BF: jax.Array, place_BF: jax.Array, length: int) -> jax.Array:
  return jnp.where(is_place(place_BF, length), g_BF[:, None], jnp.zeros((), g_BF.dtype))[:, None]


def _pads(window: int) -> tuple[tuple[int, int], tuple[int, int]]:
  return (0, 0), ((window - 1) // 2, window // 2)
