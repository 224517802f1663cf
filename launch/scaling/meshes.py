"""Which mesh a strategy has on a number of devices, where nobody says another; and how many a topology's name means."""

import math
from typing import Any

from research.errors import UserError
from research.parallel.tables import STRATEGIES

_BOTH = 2  # of fsdp_tp's devices, how many divide layers; the others divide the rest


def automatic(strategy: str, devices: int, config: Any) -> str:
  """All devices on `data` for dp and fsdp. Other strategies have an axis of their own, which gets as many devices as
  divide evenly what it cuts, and `data` the rest: `model` heads or an MLP's widths, `stage` layers, `expert` experts.

  Args:
    strategy: one of STRATEGIES.
    devices: how many there are.
    config: the experiment's, whose model says how many heads, layers and experts there are.
  """
  own = [axis for axis in STRATEGIES[strategy].mesh_axes if axis != "data"]
  if not own:
    return f"data:{devices}"
  wanted = math.gcd(devices, _BOTH) if "fsdp" in strategy else devices
  size = math.gcd(wanted, _divisible(own[0], config))
  return f"data:{devices // size},{own[0]}:{size}"


def _divisible(axis: str, config: Any) -> int:
  """What the axis cuts, where the config says; 0, which everything divides, where it does not."""
  model = getattr(config, "model", None)
  if axis == "model":
    return math.gcd(getattr(model, "heads", 0), getattr(model, "kv_heads", 0), *getattr(model, "widths", ()))
  return getattr(model, {"stage": "layers", "expert": "experts"}.get(axis, ""), 0)


def size(mesh: str) -> int:
  """Devices of a mesh as it is written. Raises UserError where it is not axis:size."""
  sizes = [part.partition(":")[2] for part in mesh.split(",")]
  if not all(each.isascii() and each.isdigit() for each in sizes):
    raise UserError(f"scaling: --meshes={mesh} is not axis:size,…, with ; between meshes, as in data:8;data:4,model:2")
  return math.prod(map(int, sizes))


def chips(topology: str) -> int:
  """Chips of a topology, such as v5e:4x4. Raises UserError for what is no topology."""
  name, _, sides = topology.partition(":")
  parts = sides.split("x")
  if not name or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
    raise UserError(f"scaling: --topology={topology} is not chip:sides, such as v5e:4x4")
  return math.prod(map(int, parts))
