"""Device meshes from their written form, such as "data:8"."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from research.errors import UserError

AXES = ("data", "model", "sequence", "stage", "expert")


def make_mesh(text: str, rows: int = 0) -> Mesh:
  """"data:4,model:2" → a mesh of the first eight devices; "" → as many on the data axis as divide `rows` evenly.

  Args:
    text: axes and sizes, or "".
    rows: what each update divides over the data axis (a micro-batch); 0 for whatever.

  Raises:
    UserError: an unknown axis, a size that is no positive number, or more devices than there are.
  """
  devices = jax.devices()
  sizes = {"data": max(n for n in range(1, len(devices) + 1) if rows % n == 0 or not rows)}
  if text:
    pairs = [part.partition(":") for part in text.split(",")]
    if not all(size.isascii() and size.isdigit() and int(size) for _, _, size in pairs):
      raise UserError(f"parallel: --parallel.mesh={text} is not axis:size, such as data:{len(devices)}")
    sizes = {"data": 1} | {axis: int(size) for axis, _, size in pairs}
    if len({axis for axis, *_ in pairs}) < len(pairs):
      raise UserError(f"parallel: --parallel.mesh={text} names an axis twice")
    if unknown := sorted(sizes.keys() - set(AXES)):
      raise UserError(f"parallel: --parallel.mesh={text} has no axis {unknown[0]!r}; the axes are {', '.join(AXES)}")
  count = math.prod(sizes.values())
  if count > len(devices):
    raise UserError(f"parallel: --parallel.mesh={text} wants {count} devices and there are {len(devices)}")
  return Mesh(np.asarray(devices[:count]).reshape(tuple(sizes.values())), tuple(sizes))
