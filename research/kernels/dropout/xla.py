"""What is left to the compiler: the words of `jax.random.bits`, and what they decide."""

from typing import Any

import jax
import jax.numpy as jnp


def draw(key_data: jax.Array, *, rows: int, words: int, dropped: int, generator: Any) -> jax.Array:
  """→ uint8 (rows, words)."""
  key = jax.random.wrap_key_data(key_data, impl=generator)
  return decided(jax.random.bits(key, (rows, words), jnp.uint32), dropped)


def decided(words: jax.Array, dropped: int) -> jax.Array:
  """Random uint32 words → uint8: bit i is set where byte i, the lowest first, is at least `dropped`."""
  bits = jnp.zeros_like(words)
  for i in range(4):
    byte = (words >> jnp.uint32(8 * i)) & jnp.uint32(255)
    bits |= (byte >= jnp.uint32(dropped)).astype(jnp.uint32) << jnp.uint32(i)
  return bits.astype(jnp.uint8)
