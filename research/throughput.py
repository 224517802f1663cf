"""How fast a run is and what memory it takes: the one place that defines these numbers and their names.

A speed is of finished updates alone: compiling, evaluating and saving are not in the seconds. It measures no time
itself, and knows no family of models.
"""

import dataclasses
import os
import resource
import sys

_SPEEDS = ("examples_per_second", "tokens_per_second")
_MEMORY = ("device_memory", "host_memory")
NAMES = (  # in the order in which a person asks for them
  *_SPEEDS,
  *(f"{speed}_per_device" for speed in _SPEEDS),
  "mfu",
  *(f"{memory}_bytes" for memory in _MEMORY),
  *(f"{memory}_peak_bytes" for memory in _MEMORY),
)


@dataclasses.dataclass(frozen=True)
class Update:
  """What one update is worth, over all devices.

  Attributes:
    examples: of a batch.
    devices: that share it.
    tokens: of a batch of text, padding included; 0: it is no text.
    flops: model FLOPs (research.flops): products of the forward and the backward pass, recomputation left out; 0: not
      known.
    peak: FLOP/s of one device in products of the run's dtype; 0: not known.
  """

  examples: int
  devices: int = 1
  tokens: int = 0
  flops: float = 0.0
  peak: float = 0.0

  def speeds(self, updates: int, seconds: float) -> dict[str, float]:
    """{"train/NAME": value} of `updates` finished ones that took `seconds`.

    `mfu` is the model FLOPs utilisation (Chowdhery et al. 2022, appendix B): model FLOPs a second of a device over its
    peak. It is left out where FLOPs or peak are not known, tokens where there are none.
    """
    rate = updates / seconds
    totals = {"examples_per_second": rate * self.examples, "tokens_per_second": rate * self.tokens}
    totals = {name: total for name, total in totals.items() if total}
    found = {**totals, **{f"{name}_per_device": total / self.devices for name, total in totals.items()}}
    if self.flops and self.peak:
      found["mfu"] = rate * self.flops / self.devices / self.peak
    return {f"train/{name}": value for name, value in found.items()}


def is_one(name: str) -> bool:
  """Whether a metric, "mfu" or "train/mfu", is one of these: another run of the same flags has another value."""
  return name.rpartition("/")[2] in NAMES


def memory() -> dict[str, float]:
  """{"train/NAME": bytes} in use and at most so far: of this process' fullest device, or of the process itself where
  devices have no memory of their own to tell of, as a CPU."""
  in_use, peak = _of_devices() or (None, None)
  kind = "host" if peak is None else "device"
  if peak is None:
    in_use, peak = _of_process()
  found = {f"train/{kind}_memory_bytes": in_use, f"train/{kind}_memory_peak_bytes": peak}
  return {name: float(value) for name, value in found.items() if value is not None}


def peak_memory() -> float:
  """The most bytes in use so far, as `memory` has it."""
  return next(value for name, value in memory().items() if name.endswith("_peak_bytes"))


def _of_devices() -> tuple[int, int] | None:
  """(in use, most in use) of the device of this process that had most in use; None where none tells."""
  jax = sys.modules.get("jax")  # a report without jax must not import it
  told = [device.memory_stats() or {} for device in jax.local_devices()] if jax is not None else []
  pairs = [(each["bytes_in_use"], each["peak_bytes_in_use"]) for each in told if "peak_bytes_in_use" in each]
  return max(pairs, key=lambda pair: pair[1], default=None)


def _of_process() -> tuple[int | None, int]:
  unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there and KiB here
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  try:
    with open("/proc/self/statm", "rb") as statm:
      in_use = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  except OSError:  # only Linux tells
    return None, peak
  return in_use, max(peak, in_use)
