"""Sides that take turns: each is a process of its own, and makes updates only while it is told to.

They share the machine but not its threads, so what one's libraries do to a process does not touch the others. A ratio
compares times of the same round.
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

Run = Callable[[int], float | None]  # makes that many updates, waits for them; gives the last one's loss if it has one


@dataclasses.dataclass(frozen=True)
class Row:
  """A model whose update is timed.

  Attributes:
    what: the model, the batch and the optimizer, in words.
    sides: name → what sets it up; "PyTorch" is the one whose speed is 1.
  """

  what: str
  sides: Mapping[str, Callable[[], Run]]


@dataclasses.dataclass(frozen=True)
class Measured:
  """What a side did.

  Attributes:
    first: the first update's loss, or None.
    seconds: of an update, one number for each round.
  """

  first: float | None
  seconds: list[float]


def serve(run: Run) -> None:
  """Makes as many updates as each line of stdin says, and answers with the seconds that they took."""
  first = run(1)  # compiles
  run(1)
  print(f"ready {first}", flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    run(int(line))
    print(time.perf_counter() - began, flush=True)


def measure(row: str, sides: Sequence[str], rounds: int, seconds: float, module: str) -> dict[str, Measured]:
  """Starts the sides and lets each make updates for some seconds a round, in an order that turns from round to round.

  Args:
    row: what the started processes are told to serve.
    sides: names, of that row.
    rounds: how often each side has its turn.
    seconds: a turn, roughly: a whole number of updates.
    module: the module that serves, with --serve=ROW/SIDE.

  Raises:
    RuntimeError: where a side does not start.
  """
  processes, first, steps = {}, {}, {}
  try:
    for side in sides:
      command = [sys.executable, "-m", module, f"--serve={row}/{side}"]
      processes[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
      word, _, loss = processes[side].stdout.readline().strip().partition(" ")
      if word != "ready":
        raise RuntimeError(f"{row}: {side} did not start")
      first[side] = None if loss == "None" else float(loss)

    def turn(side: str, count: int) -> float:
      processes[side].stdin.write(f"{count}\n")
      processes[side].stdin.flush()
      return float(processes[side].stdout.readline()) / count

    for side in sides:
      turn(side, 1)  # memory is at its place after it
      steps[side] = max(1, round(seconds / turn(side, 1)))
    took = {side: [] for side in sides}
    for number in range(rounds):
      for side in sides if number % 2 else list(reversed(sides)):
        took[side].append(turn(side, steps[side]))
  finally:
    for process in processes.values():
      process.stdin.close()
      process.wait()
  return {side: Measured(first[side], took[side]) for side in sides}


def ratio(measured: Mapping[str, Measured], side: str, peer: str) -> tuple[float, float, float]:
  """The side's speed ÷ the peer's, of the same rounds: (lower quartile, median, upper quartile)."""
  pairs = zip(measured[side].seconds, measured[peer].seconds, strict=True)
  low, median, high = statistics.quantiles([theirs / ours for ours, theirs in pairs], n=4)
  return low, median, high
