"""Contract 2: which examples a batch holds is a function of (seed, step), the same on the host and in a compiled step.

The stream of examples is one keyed permutation of the data after another, cut into batches; a batch may span two
epochs, so that no example is dropped and none is seen twice in an epoch. No iterator state exists. The permutation is a
generalised Feistel cipher (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method 3 with
cycle-walking), so an index costs O(1) time and memory however large the data are.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 10
MAX_SIZE = 2**31 - 1  # examples: offsets and their doubles stay inside uint32


def epoch_and_offset(step, batch_size: int, size: int):
  """Splits the stream's position `step * batch_size` into (epoch, offset), without ever holding it in 32 bits.

  Args:
    step: finished updates: a Python int, or a traced () int32.
    batch_size: examples a batch, at most `size`.
    size: examples in the data.

  Returns:
    (epoch, offset): Python ints, or () uint32.
  """
  if isinstance(step, int | np.integer):
    epoch, offset = divmod(int(step) * batch_size, size)
    return epoch % 2**32, offset
  step = step.astype(jnp.uint32)
  quotient, remainder = jnp.uint32(0), jnp.uint32(0)
  whole, rest = (jnp.uint32(part) for part in divmod(batch_size, size))
  divisor, width = jnp.uint32(size), 32 - size.bit_length()  # size << width stays inside uint32
  for shift in reversed(range(0, 31, width)):  # schoolbook long division, `width` bits of the step at a time
    digit = (step >> shift) & jnp.uint32(2**width - 1)
    shifted, more = remainder << width, digit * rest
    quotient = (quotient << width) + digit * whole + shifted // divisor + more // divisor
    remainder = shifted % divisor + more % divisor  # < 2 * size
    quotient, remainder = quotient + remainder // divisor, remainder % divisor
  return quotient, remainder


def batch_indices(seed: int, step, batch_size: int, size: int):
  """The examples of the batch that follows `step` finished updates.

  Args:
    seed: any non-negative int below 2**63.
    step: Python int (numpy is used) or traced () int32 (jax.numpy is used); both give the same bits.
    batch_size: examples a batch.
    size: examples in the data.

  Returns:
    indices_B, int32.
  """
  if not 0 < batch_size <= size <= MAX_SIZE:
    raise ValueError(f"a batch of {batch_size} from {size} examples")
  xp = np if isinstance(step, int | np.integer) else jnp
  epoch, offset = epoch_and_offset(step, batch_size, size)
  position_B = xp.arange(batch_size, dtype=xp.uint32) + xp.asarray(offset, dtype=xp.uint32)
  wrapped_B = (position_B >= size).astype(xp.uint32)
  epoch_B = xp.asarray(epoch, dtype=xp.uint32) + wrapped_B
  return permuted(seed, epoch_B, position_B - wrapped_B * xp.uint32(size), size).astype(xp.int32)


def permuted(seed: int, epoch_B, position_B, size: int):
  """Where each epoch's keyed permutation of range(size) sends a position; uint32 in and out, bijective per epoch."""
  xp = np if isinstance(position_B, np.ndarray) else jnp
  key_B = _mix(xp, epoch_B ^ _seed_word(xp, seed, 0))
  key_B = _mix(xp, key_B + _seed_word(xp, seed, 1))
  key_RB = [_mix(xp, key_B + xp.uint32(number)) for number in range(_ROUNDS)]
  index_B = _encrypt(xp, key_RB, position_B, size)
  if xp is np:
    while (outside_B := index_B >= size).any():
      index_B = np.where(outside_B, _encrypt(np, key_RB, index_B, size), index_B)
    return index_B
  return jax.lax.while_loop(
    lambda index_B: (index_B >= size).any(),
    lambda index_B: jnp.where(index_B >= size, _encrypt(jnp, key_RB, index_B, size), index_B),
    index_B,
  )


def _encrypt(xp, key_RB, index_B, size: int):
  """A permutation of range(rows * columns), the smallest near-square domain that holds `size`; a key a round."""
  rows = int(np.ceil(np.sqrt(size)))
  rows, columns = xp.uint32(rows), xp.uint32(-(-size // rows))
  left_B, right_B = index_B // columns, index_B % columns
  for number in range(0, _ROUNDS, 2):
    left_B = (left_B + _mix(xp, key_RB[number] ^ right_B) % rows) % rows
    right_B = (right_B + _mix(xp, key_RB[number + 1] ^ left_B) % columns) % columns
  return left_B * columns + right_B


def _mix(xp, word_B):
  """The 32-bit finalizer of MurmurHash3 (Appleby 2011): every input bit changes each output bit half of the time."""
  word_B = (word_B ^ (word_B >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
  word_B = (word_B ^ (word_B >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
  return word_B ^ (word_B >> xp.uint32(16))


def _seed_word(xp, seed: int, word: int):
  # An array rather than a scalar: numpy warns when a scalar wraps around, and wrapping is what a hash does.
  return xp.asarray([(seed >> (32 * word)) & 0xFFFFFFFF], dtype=xp.uint32)
