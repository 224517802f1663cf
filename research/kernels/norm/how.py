"""What is normalised how: the options that every form is told, and which arrays stand at which place."""

from typing import Any, NamedTuple

import jax

KINDS = ("layer", "rms")
DTYPES = ("float32", "bfloat16")


class How(NamedTuple):
  """Of one call.

  Attributes:
    kind: "layer" or "rms".
    epsilon: added to the variance, or to the mean of squares.
    dtype: of the normalised values.
    residual: whether there is a residual.
    scale: whether there is a scale.
    bias: whether there is a bias.
  """

  kind: str
  epsilon: float
  dtype: str
  residual: bool
  scale: bool
  bias: bool

  @property
  def statistics(self) -> int:
    """How many numbers a row has: its mean and its inverse deviation, or the latter alone."""
    return 2 if self.kind == "layer" else 1


class Forward(NamedTuple):
  """What the forward pass reads; of one that is not there, None.

  Attributes:
    x: (…, D) float32 or bfloat16.
    residual: of x's shape and dtype.
    scale_D: float32.
    bias_D: float32.
  """

  x: Any
  residual: Any
  scale_D: Any
  bias_D: Any


class Backward(NamedTuple):
  """What the backward pass reads; of one that is not there, None.

  Attributes:
    x: (…, D), with the residual in it.
    mean: (…) float32.
    inverse: (…) float32, 1 / √(variance + ε).
    scale_D: float32.
    to_y: the gradient to the normalised values, in their dtype.
    to_total: the gradient to x, from elsewhere, in x's dtype.
  """

  x: Any
  mean: Any
  inverse: Any
  scale_D: Any
  to_y: Any
  to_total: Any


def forward(arrays: tuple[jax.Array, ...], how: How) -> Forward:
  """The arrays of a forward pass by name."""
  return Forward(*_placed(arrays, (True, how.residual, how.scale, how.bias)))


def backward(arrays: tuple[jax.Array, ...], how: How) -> Backward:
  """The arrays of a backward pass by name; the last may be there or not."""
  there = [True, how.kind == "layer", True, how.scale, True]
  return Backward(*_placed(arrays, (*there, len(arrays) > sum(there))))


def _placed(arrays: tuple[jax.Array, ...], there: tuple[bool, ...]) -> list[jax.Array | None]:
  left = iter(arrays)
  placed = [next(left) if each else None for each in there]
  if next(left, None) is not None:
    raise ValueError(f"norm: {len(arrays)} arrays, for {sum(there)} places")
  return placed
