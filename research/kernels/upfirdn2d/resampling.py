"""The numbers of an upfirdn2d, all static: its size, its gradient's, and which pixels meet which numbers of the filter
when no zeros are laid between pixels."""

import math
from typing import NamedTuple

import numpy as np


class Phases(NamedTuple):
  """What meets along one axis.

  Outputs P apart, P = up / gcd(up, down), lie at the same distance from the pixels around them, and so meet the same
  numbers of the filter; from one to the next the pixels move on by Q = down / gcd(up, down). So the outputs are P
  interleaved convolutions of stride Q, each with its own part of the filter.

  Attributes:
    phases: P.
    stride: Q.
    first: the pixel that tap 0 of the first output reads; negative: before the image.
    numbers: (taps, P): the entry of the filter that a tap multiplies in a phase, or −1 for none.
  """

  phases: int
  stride: int
  first: int
  numbers: np.ndarray

  @property
  def taps(self) -> int:
    return len(self.numbers)


class Resampling(NamedTuple):
  """As the arguments of `upfirdn2d`; the filter is a tuple of numbers or of rows."""

  image: tuple[int, int]
  filter: tuple
  up: tuple[int, int]
  down: tuple[int, int]
  pads: tuple[tuple[int, int], tuple[int, int]]

  @property
  def taps(self) -> np.ndarray:
    """The filter, (h, w)."""
    numbers = np.asarray(self.filter)
    return np.outer(numbers, numbers) if numbers.ndim == 1 else numbers

  @property
  def outputs(self) -> tuple[int, int]:
    """(H', W')."""
    axes = zip(self.image, self.taps.shape, self.up, self.down, self.pads, strict=True)
    rows, columns = ((size * up + low + high - k) // down + 1 for size, k, up, down, (low, high) in axes)
    return rows, columns

  @property
  def gradient(self) -> "Resampling":
    """What takes the gradient by the outputs to the one by the image."""
    numbers = np.asarray(self.filter)
    turned = tuple(numbers[::-1].tolist()) if numbers.ndim == 1 else tuple(map(tuple, numbers[::-1, ::-1].tolist()))
    axes = zip(self.image, self.outputs, self.taps.shape, self.up, self.down, self.pads, strict=True)
    pads = tuple((k - 1 - low, size * u - out * d + low - u + 1) for size, out, k, u, d, (low, _) in axes)
    return Resampling(self.outputs, turned, self.down, self.up, pads)

  @property
  def passes(self) -> tuple["Resampling", ...]:
    """The same, one after the other: rows and columns apart where the filter is an outer product, else itself."""
    if isinstance(self.filter[0], tuple):
      return (self,)
    column, row = tuple((number,) for number in self.filter), (self.filter,)
    rows = Resampling(self.image, column, (self.up[0], 1), (self.down[0], 1), (self.pads[0], (0, 0)))
    return rows, Resampling(rows.outputs, row, (1, self.up[1]), (1, self.down[1]), ((0, 0), self.pads[1]))

  @property
  def phases(self) -> tuple[Phases, Phases]:
    """Of rows and of columns."""
    rows, columns = map(_phases, self.taps.shape, self.up, self.down, self.pads)
    return rows, columns


def _phases(length: int, up: int, down: int, pads: tuple[int, int]) -> Phases:
  """Output o is Σ over k of padded[o · down + k] · filter[length − 1 − k], zeros between pixels included."""
  common = math.gcd(up, down)
  phases, stride = up // common, down // common
  places = [(r, k, r * down + k - pads[0]) for r in range(phases) for k in range(length)]
  meets = [(r, place // up, length - 1 - k) for r, k, place in places if place % up == 0]
  first = min((pixel for _, pixel, _ in meets), default=0)
  last = max((pixel for _, pixel, _ in meets), default=0)
  numbers = np.full((last - first + 1, phases), -1)
  for r, pixel, number in meets:
    numbers[pixel - first, r] = number
  return Phases(phases, stride, first, numbers)
