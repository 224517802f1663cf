"""On a CPU: the same words by Threefry with its rounds written out.

`jax.random` runs them as a loop there, to compile faster, and every turn of it reads and writes all words; written out,
a word stays in its register. It compiles no slower, being one fusion (0.1 s against 0.2).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.kernels import once
from research.kernels.dropout.xla import decided

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # Salmon et al. 2011, "Parallel random numbers", table 2: 2×32
PARITY = 0x1BD11BDA  # of the key's words: section 3.2's, in 32 bits


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, **options: Any) -> str | None:
  """What it does not draw."""
  del shapes, dtypes, platform
  if options["generator"] != "threefry2x32":
    return f"it draws by threefry2x32, and the key is for {options['generator']}"
  if not jax.config.jax_threefry_partitionable:
    return "jax_threefry_partitionable is off, which numbers the words in another way"
  if options["rows"] * options["words"] >= 2**32:
    return f"{options['rows']}×{options['words']} words are more than 32 bits count"
  return None


def draw(key_data: jax.Array, *, rows: int, words: int, dropped: int, generator: Any) -> jax.Array:
  """→ uint8 (rows, words). Word n, counted row by row, is the two words of Threefry's block n, exclusive-ored."""
  del generator

  def of_rows(row_B: jax.Array) -> jax.Array:
    count_BW = row_B[:, None] * jnp.uint32(words) + lax.broadcasted_iota(jnp.uint32, (len(row_B), words), 1)
    high, low = threefry(key_data, jnp.zeros_like(count_BW), count_BW)
    return decided(high ^ low, dropped)

  return once.computed(of_rows, lax.iota(jnp.uint32, rows))


def threefry(key_data: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Threefry-2×32 with 20 rounds (Salmon et al. 2011) of the counters (high, low), by a key (2,); all uint32."""
  keys = (key_data[0], key_data[1], key_data[0] ^ key_data[1] ^ jnp.uint32(PARITY))
  high, low = high + keys[0], low + keys[1]
  for injection in range(1, 6):
    for rotation in ROTATIONS[(injection - 1) % 2]:
      high = high + low
      low = high ^ ((low << jnp.uint32(rotation)) | (low >> jnp.uint32(32 - rotation)))
    high = high + keys[injection % 3]
    low = low + keys[(injection + 1) % 3] + jnp.uint32(injection)
  return high, low
