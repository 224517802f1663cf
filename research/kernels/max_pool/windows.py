"""How windows lie on images, and how a place in a window is written as a byte."""

import math
from typing import NamedTuple


class Windows(NamedTuple):
  """Static numbers of a pooling, rows before columns.

  A place (p, q) of a window is the code p · (w rounded up to the stride) + q: the code of a pixel in its square of
  stride × stride, and the one of the square in the window, then simply add up.
  """

  image: tuple[int, int]
  window: tuple[int, int]
  strides: tuple[int, int]
  pads: tuple[tuple[int, int], tuple[int, int]]

  @property
  def outputs(self) -> tuple[int, int]:
    """Windows over rows and over columns."""
    rows, columns = (
      (size + low + high - k) // s + 1
      for size, (low, high), k, s in zip(self.image, self.pads, self.window, self.strides, strict=True)
    )
    return rows, columns

  @property
  def taps(self) -> tuple[int, int]:
    """The most windows that a pixel lies in."""
    rows, columns = (math.ceil(k / s) for k, s in zip(self.window, self.strides, strict=True))
    return rows, columns

  def code(self, p: int, q: int) -> int:
    """The byte of a place."""
    return p * self.taps[1] * self.strides[1] + q

  @property
  def codes(self) -> int:
    """How many bytes mean something, or could."""
    return math.prod(self.taps) * math.prod(self.strides)
