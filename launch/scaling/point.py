"""One point of a scaling study, in a process of its own: an experiment's step on some devices, compiled and timed.

  python -m launch.scaling.point --experiment=gpt --devices=4 --config=stdlib --parallel.mesh=data:4

It prints one line of JSON. The data lie on the device before the clock starts: a feed is not what is measured here.
"""

import dataclasses
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import command, flags
from experiments.schema import flag
from research.errors import UserError
from research.parallel.threads import make_room

if TYPE_CHECKING:
  from experiments.job import Job

_HOST = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Measure:
  """How a point is measured"""

  experiment: str = flag("", "whose step: a folder of experiments/")
  devices: int = flag(1, "of a CPU, how many virtual devices it is to be", low=1)
  groups: int = flag(5, "timed groups of updates", low=1)
  seconds: float = flag(5.0, "of timing at least, in all groups together", low=0.0)

  def check(self) -> None:
    """No combination of these is impossible."""


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints what was measured; returns the exit code, 2 after one line where the flags do not fit together."""
  rest, own = command.split_off(Measure, list(sys.argv[1:] if arguments is None else arguments))
  try:
    asked, _ = flags.parse(Measure, own)
    make_devices(asked.devices)
    print(json.dumps(measure(asked, rest)), flush=True)
  except UserError as error:
    print(" ".join(str(error).split("\n")), file=sys.stderr)
    return 2
  return 0


def make_devices(count: int) -> None:
  """Before the first device is asked for: a CPU is `count` of them. Of accelerators a mesh takes the first ones."""
  others = re.sub(rf"{_HOST}=\d+", "", os.environ.get("XLA_FLAGS", ""))
  os.environ["XLA_FLAGS"] = f"{others} {_HOST}={count}".strip()
  os.environ.pop("NPROC", None)
  make_room()


def measure(asked: Measure, rest: Sequence[str]) -> dict[str, Any]:
  """The point's facts and times, as numbers in bytes, FLOPs and seconds."""
  import jax

  from experiments import preflight
  from experiments.job import make_job
  from launch.experiment import find
  from research.allocator import keep_freed_memory
  from research.kernels import choice

  definition = find(asked.experiment)
  request = command.read(definition, [*rest, "--workdir=none"])
  if jax.default_backend() == "cpu":
    keep_freed_memory()
  with tempfile.TemporaryDirectory() as cache, choice.configured(request.config.kernels):
    # The program is compiled for its facts, with a clock, and found again when it is run. Nothing older is found.
    if jax.default_backend() != "cpu" or jax.device_count() == 1:  # several CPU devices do not run what was kept
      jax.config.update("jax_compilation_cache_dir", cache)
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    job = make_job(definition, request.config, lambda line: print(line, file=sys.stderr))
    facts = preflight.facts(job)
    busy = Busy()
    seconds = list(timed(one_call(job), asked.groups, asked.seconds, jax.block_until_ready))
    others = busy.others()
  facts.pop("parameters")
  seconds = [each / job.plan.steps_per_call for each in seconds]
  return {"facts": facts, "seconds": seconds, "others": others, **_memory(jax)}


def one_call(job: "Job") -> Callable[[], Any]:
  """() → the metrics of one more call of the training program, as soon as it is dispatched."""
  call, inputs, count = job.training_call(), job.data.train.inputs(0), job.plan.steps_per_call
  state = job.initial_state()

  def once() -> Any:
    nonlocal state
    state, metrics = call(state, inputs, count)
    return metrics

  return once


def timed(
  call: Callable[[], Any],
  groups: int,
  seconds: float,
  wait: Callable[[Any], Any],
  clock: Callable[[], float] = time.perf_counter,
) -> Iterator[float]:
  """Seconds a call, of each group of calls, after two calls that do not count and two that say how long a group is.

  As in the loop, a call is dispatched before the one before it has ended, and no more than two are under way.
  """
  for _ in range(2):
    wait(call())
  began = clock()
  for _ in range(2):
    wait(call())
  each = max(1, math.ceil(seconds / groups / max((clock() - began) / 2, 1e-9)))
  for _ in range(groups):
    began, before = clock(), None
    for _ in range(each):
      now = call()
      if before is not None:
        wait(before)
      before = now
    wait(before)
    yield (clock() - began) / each


class Busy:
  """How many of this machine's cores other processes had since it was made: what makes times doubtful."""

  def __init__(self) -> None:
    self._began = self._now()

  def others(self) -> float | None:
    """Cores, on average; None where the system does not say."""
    now = self._now()
    if now is None or self._began is None:
      return None
    wall, everyone, own = (after - before for after, before in zip(now, self._began, strict=True))
    return max(0.0, (everyone - own) / max(wall, 1e-9))

  @staticmethod
  def _now() -> tuple[float, float, float] | None:
    """Seconds: of the clock, of all processes on all cores, and of this process."""
    try:
      with open("/proc/stat", encoding="ascii") as file:
        user, nice, system = (int(each) for each in file.readline().split()[1:4])
    except (OSError, ValueError):
      return None
    return time.monotonic(), (user + nice + system) / os.sysconf("SC_CLK_TCK"), time.process_time()


def _memory(jax: Any) -> Mapping[str, int]:
  """The most that the first device had in use, where it counts that."""
  peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return {} if peak is None else {"peak": int(peak)}


if __name__ == "__main__":
  sys.exit(main())
