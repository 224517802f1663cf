"""Device meshes from their written form, such as "data:8". Every process has an equal part of a mesh."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from research.errors import UserError

AXES = ("data", "model", "sequence", "stage", "expert")


def make_mesh(text: str, rows: int = 0, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """"data:4,model:2" → a mesh of eight devices; "" → as many on the data axis as divide `rows` evenly.

  They are the first ones, or where there are several processes the first of each.

  Args:
    text: axes and sizes, or "".
    rows: what each update divides over the data axis (a micro-batch); 0 for whatever.
    devices: to choose from; None: all of this job.

  Raises:
    UserError: an unknown axis, a size that is no positive number, more devices than there are, or fewer than give each
      process one: it would wait for a step that it has no part in.
  """
  devices = jax.devices() if devices is None else devices
  hosts = len({device.process_index for device in devices})
  sizes = {"data": max((n for n in range(hosts, len(devices) + 1, hosts) if rows % n == 0 or not rows), default=0)}
  if not text and not sizes["data"]:
    raise UserError(
      f"parallel: {rows} examples do not divide over {hosts} processes with at least a device each;"
      f" {-(-rows // hosts) * hosts} would"
    )
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
  shape, chosen = tuple(sizes.values()), _first(devices, count, hosts, text)
  if devices[0].platform == "tpu" and count == len(devices):  # neighbours in the mesh are neighbours on the board
    if sizes["data"] == count:  # jax lays 8 and 16 chips in a ring, where `gathering` would find no rows and columns
      chosen = sorted(devices, key=lambda device: (*device.coords, device.core_on_chip))
      return Mesh(np.asarray(chosen).reshape(shape), tuple(sizes))
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), tuple(sizes))
  return Mesh(np.asarray(chosen).reshape(shape), tuple(sizes))


def _first(devices: Sequence[jax.Device], count: int, hosts: int, text: str) -> list[jax.Device]:
  """As many of each process, which has all of its own side by side."""
  each, rest = divmod(count, hosts)
  chosen: dict[int, list[jax.Device]] = {}
  for device in devices:
    chosen.setdefault(device.process_index, []).append(device)
  if rest or min(map(len, chosen.values())) < each:
    raise UserError(f"parallel: --parallel.mesh={text} wants {count} devices, and {hosts} processes share them evenly")
  return [device for mine in chosen.values() for device in mine[:each]]
