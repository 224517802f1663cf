"""FLOP/s of one device of this process at its best: from the makers' tables, or the best that was measured here so far.

A busy machine measures too little, so each start tries a few products and the greatest figure of all starts is kept, a
plain number for each processor, how many cores of it may be used, dtype and version of jax.
"""

import contextlib
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

import jax

from research.errors import UserError
from research.parallel import roofline
from research.parallel.chips import CHIPS
from research.parsing import parse_json
from research.report.atomic import write_atomically

FIRST, AGAIN = 20, 3  # products that are tried where nothing is known yet, and at each start after that


def peak_flops(devices: int, dtype: str, quiet: Callable[[], object] = lambda: None) -> float:
  """Of products of "float32" or "bfloat16" operands on one device of a mesh of `devices`.

  The virtual devices of a CPU share what it has. `quiet` is called before something is measured, which takes tenths of
  a second and wants the machine for itself: it waits for what else goes on.
  """
  device = jax.local_devices()[0]
  if device.device_kind in roofline.NAMES:
    return CHIPS[roofline.NAMES[device.device_kind]].peak(dtype)
  sharing = max(1, devices // jax.process_count()) if device.platform == "cpu" else 1
  known, name = _kept(), f"{dtype} on {_processor(device)}, jax {jax.__version__}"
  quiet()
  found = roofline.product_flops(device, dtype, AGAIN if name in known else FIRST)
  if found > known.get(name, 0.0):
    known[name] = found
    with contextlib.suppress(OSError, UserError):  # then nothing is known at the next start
      path().parent.mkdir(parents=True, exist_ok=True)
      write_atomically(path(), json.dumps(known, indent=1) + "\n")
  return known[name] / sharing


def path() -> Path:
  """Where measured figures are kept."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flagship" / "peaks.json"


def _kept() -> dict[str, float]:
  """{} where there is none, or one that does not hold what it should."""
  try:
    found = parse_json(path().read_text(encoding="utf-8"))
    whole = all(math.isfinite(rate) and rate > 0 for rate in found.values())
  except (OSError, ValueError, AttributeError, TypeError):
    return {}
  return found if whole else {}


def _processor(device: jax.Device) -> str:
  """A CPU by its maker's name and the cores that this process may use; jax calls every one of them "cpu"."""
  if device.platform != "cpu":
    return device.device_kind
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return f"{cores} × {_model_name()}"


def _model_name() -> str:
  with contextlib.suppress(OSError):
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()
