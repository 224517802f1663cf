"""Sides that take turns: each is a process of its own, and makes updates only while it is told to.

They share the machine but not its threads, so what one's libraries do to a process does not touch the others. A ratio
compares times of the same round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

Run = Callable[[int], float | None]  # makes that many updates, waits for them; gives the last one's loss if it has one


def main(about: str, sides: Mapping[str, Callable[[], Run]], *, module: str, steps: int, peer: str = "torch") -> None:
  """The command line of a benchmark: serves a side, or compares all of them by `peer`.

  Args:
    about: the benchmark's docstring.
    sides: name → what sets it up.
    module: the benchmark's own, which starts the sides.
    steps: updates of a side in a round.
    peer: the side whose speed is 1.
  """
  parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--steps", type=int, default=steps, help="updates of a side in a round")
  parser.add_argument("--serve", choices=sides, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    serve(sides[arguments.serve]())
  else:
    compare(tuple(sides), module, arguments.rounds, arguments.steps, peer)


def serve(run: Run) -> None:
  """Makes as many updates as each line of stdin says, and answers with the seconds that they took."""
  first = run(1)  # compiles
  run(1)
  print(f"ready {first}", flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    run(int(line))
    print(time.perf_counter() - began, flush=True)


def compare(sides: tuple[str, ...], module: str, rounds: int, steps: int, peer: str) -> None:
  """Prints a line for each side."""
  processes, first = {}, {}
  for side in sides:
    command = [sys.executable, "-m", module, f"--serve={side}"]
    processes[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    word, _, loss = processes[side].stdout.readline().strip().partition(" ")
    assert word == "ready", f"{side} did not start"
    first[side] = "" if loss == "None" else f"{float(loss):.5f}"

  def seconds(side: str) -> float:
    processes[side].stdin.write(f"{steps}\n")
    processes[side].stdin.flush()
    return float(processes[side].stdout.readline()) / steps

  took = {side: [] for side in sides}
  for number in range(rounds):
    for side in sides if number % 2 else reversed(sides):
      took[side].append(seconds(side))
  for process in processes.values():
    process.stdin.close()
    process.wait()

  versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))
  print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, {versions}")
  print("| side | first loss | ms an update, median | speed ÷ PyTorch's, median (quartiles) | n |")
  print("| --- | --- | --- | --- | --- |")
  for side in sides:
    ratios = [theirs / ours for ours, theirs in zip(took[side], took[peer], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    milliseconds = 1000 * statistics.median(took[side])
    print(f"| {side} | {first[side]} | {milliseconds:.1f} | {median:.2f} ({low:.2f} – {high:.2f}) | {len(ratios)} |")
