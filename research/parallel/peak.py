"""FLOP/s of one device of this process at its best: from the makers' tables, or measured once on this machine and kept.

What is kept is a plain number for each processor, how many cores of it may be used, and version of jax; deleting the
file measures anew.
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
from research.report.atomic import write_atomically

DTYPES = ("float32", "bfloat16")


def peak_flops(devices: int, dtype: str, quiet: Callable[[], object] = lambda: None) -> float:
  """Of products of "float32" or "bfloat16" operands on one device of a mesh of `devices`.

  The virtual devices of a CPU share what it has. `quiet` is called before something is measured, which takes a second
  and wants the machine for itself: it waits for what else goes on.
  """
  device = jax.local_devices()[0]
  if device.device_kind in roofline.NAMES:
    return CHIPS[roofline.NAMES[device.device_kind]].peak(dtype)
  sharing = max(1, devices // jax.process_count()) if device.platform == "cpu" else 1
  name = " ".join([_processor(device), f"jax {jax.__version__}"])
  known = _kept()
  if name not in known:
    quiet()
    chip = roofline.measured(1)
    known[name] = {each: chip.peak(each) for each in DTYPES}
    with contextlib.suppress(OSError, UserError):  # then it is measured at each start
      path().parent.mkdir(parents=True, exist_ok=True)
      write_atomically(path(), json.dumps(known, indent=1) + "\n")
  return known[name]["bfloat16" if dtype == "bfloat16" else "float32"] / sharing


def path() -> Path:
  """Where measured figures are kept."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flagship" / "peaks.json"


def _kept() -> dict[str, dict[str, float]]:
  """{} where there is none, or one that does not hold what it should."""
  try:
    found = json.loads(path().read_text(encoding="utf-8"))
    rates = [float(each[dtype]) for each in found.values() for dtype in DTYPES]
  except (OSError, ValueError, LookupError, AttributeError, TypeError):
    return {}
  return found if all(math.isfinite(rate) and rate > 0 for rate in rates) else {}


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
