"""Several processes of a command on this machine, which find each other as hosts do.

It is how a run on several hosts is rehearsed on one; it reaches no other machine, and divides no TPU.
"""

import dataclasses
import glob
import itertools
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.schema import flag
from launch import engine
from launch.lines import silence
from launch.together import Ending, Signals, Together
from research.errors import UserError
from research.streams import say_what_can_be_said

NAME, EXAMPLE = "local", "--processes=2"
RESTARTS = 10  # what --restart stands for without a number
LONGEST_PAUSE = 30.0  # seconds
LOST = 77  # a host is dead
_COUNT = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Local:
  """What launch.local is told."""

  processes: int = flag(2, "processes to start", low=1, high=512)
  devices_per_process: int = flag(0, "devices of each; 0: its share of the GPUs, or one CPU device", low=0, high=512)
  platform: str = flag("auto", "GPUs where there are any, or as named", choices=("auto", "cpu", "cuda"))
  grace: float = flag(30.0, "seconds that the others have to stop when one has died", low=0.0, high=86400.0)
  restart: int = flag(0, f"times to run again after code 75 or 77; --restart alone: {RESTARTS}", low=0, high=1000)

  def check(self) -> None:
    """The devices at hand are asked about in `environments`."""


def environments(local: Local, outer: Mapping[str, str], port: int, gpus: Sequence[str]) -> list[dict[str, str]]:
  """The environment of each process.

  Args:
    outer: the launcher's own.
    port: free, for the coordinator, which is process 0.
    gpus: as CUDA_VISIBLE_DEVICES names them.

  Raises:
    UserError: fewer GPUs than are asked for, or some left over.
  """
  platform = local.platform
  if platform == "auto":
    platform = "cuda" if gpus and outer.get("JAX_PLATFORMS") != "cpu" else "cpu"
  each = local.devices_per_process
  if platform == "cuda":
    if (each or 1) * local.processes > len(gpus) or (not each and len(gpus) % local.processes):
      wanted = f"{local.processes} processes" + (f" of {each}" if each else "")
      raise UserError(
        f"launch: {len(gpus)} GPU{'s' * (len(gpus) != 1)} cannot be divided over {wanted}; CPU devices can be made:"
        " --platform=cpu"
      )
    each = each or len(gpus) // local.processes
  made = []
  for rank in range(local.processes):
    own = {
      **outer,
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": str(local.processes),
      "JAX_PROCESS_ID": str(rank),
      "PYTHONUNBUFFERED": "1",  # a pipe's buffer would hold lines back
      # `python` is the one that runs this, whether or not its environment is activated.
      "PATH": os.pathsep.join([str(Path(sys.executable).parent), outer.get("PATH", os.defpath)]),
    }
    if platform == "cuda":
      own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[rank * each : (rank + 1) * each])
    else:
      own["JAX_PLATFORMS"] = "cpu"
      if each:
        kept = [word for word in outer.get("XLA_FLAGS", "").split() if not word.startswith(_COUNT)]
        own["XLA_FLAGS"] = " ".join([*kept, f"{_COUNT}={each}"])
    made.append(own)
  return made


def gpus_here(outer: Mapping[str, str]) -> list[str]:
  """Those of NVIDIA that a process may use, as CUDA_VISIBLE_DEVICES names them; [] where there are none."""
  found = [str(each) for each in range(len(glob.glob("/dev/nvidia[0-9]*")))]
  chosen = outer.get("CUDA_VISIBLE_DEVICES")
  return found if chosen is None or not found else [each.strip() for each in chosen.split(",") if each.strip()]


def free_port() -> int:
  """One that nobody listens on now."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code of the process that was the first to end badly (SIGKILL: 77), or 0; 2 for wrong flags."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  say_what_can_be_said(sys.stdout, sys.stderr)
  try:
    if engine.asks_for_help(arguments):
      print(engine.help_text(NAME, __doc__, Local, EXAMPLE))
      return 0
    own, command = engine.split(arguments)
    own = [f"--restart={RESTARTS}" if each in ("--restart", "-restart") else each for each in own]
    local, command = engine.read(NAME, Local, [*own, "--", *command], EXAMPLE)
    found = environments(local, os.environ, 0, gpus_here(os.environ))
    if shutil.which(command[0], path=found[0]["PATH"]) is None:
      raise UserError(f"launch: there is no program {command[0]!r}; a command is {engine.EXAMPLE}")
    with Signals() as signals:
      return supervise(local, command, signals)
  except UserError as error:
    print(" ".join(str(error).split("\n")), file=sys.stderr)
    return 2


def supervise(local: Local, command: Sequence[str], signals: Signals) -> int:
  """Runs the command, again after 75 and 77 as often as `local.restart` says; returns the last exit code, 77 for a
  process of several that SIGKILL has ended."""
  for restart in itertools.count(1):
    started = environments(local, os.environ, free_port(), gpus_here(os.environ))  # a port may linger
    ending = Together(command, started, local.grace).run(signals)
    if ending.rank is not None:
      _say(f"process {ending.rank} {_words(ending)}; all have ended")
    code = LOST if _lost_a_host(local, ending, signals) else ending.code
    if code not in engine.AGAIN or signals.asked or restart > local.restart:
      return code
    pause = min(2.0 ** (restart - 1), LONGEST_PAUSE)
    _say(f"starting again in {pause:.0f} s ({restart} of {local.restart})")
    if signals.wait(pause):
      return code
  raise AssertionError


def _lost_a_host(local: Local, ending: Ending, signals: Signals) -> bool:
  """SIGKILL comes from outside, as where memory is short or a machine is taken away. Of several processes one that it
  ends is a host that is lost, of which a cluster sees only that the others end with 77. A crash has other signals.
  """
  return ending.code == 128 + signal.SIGKILL and local.processes > 1 and not signals.asked


def _words(ending: Ending) -> str:
  if ending.code > 128:
    try:
      return f"was ended by {signal.Signals(ending.code - 128).name}"
    except ValueError:
      pass
  return f"ended with {ending.code}"


def _say(what: str) -> None:
  try:
    print(f"launch: {what}", file=sys.stderr, flush=True)
  except BrokenPipeError:
    silence(sys.stderr)


if __name__ == "__main__":
  sys.exit(main())
