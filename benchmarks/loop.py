"""What the loop costs: Flagship's loop against a bare Python loop over the same compiled step, interleaved in one run.

  python -m benchmarks.loop [--rounds=64]

Both run the same program on the same batches; the bare loop does nothing else. The figure is Flagship's time over the
bare loop's, a pair at a time: the median, and its 95 % confidence interval, since one pair on a shared machine says
little. Start-up is told as well: seconds from the command to the first update, with an empty compilation cache and with
a warm one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from experiments import command
from experiments.cnn.__main__ import EXPERIMENT as CNN
from experiments.job import make_job
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research import loop
from research.report import Report

DIGITS = ["--config=digits", "--run.steps=4000"]
CASES = (
  ("mlp --config=digits, batch 64", MLP, DIGITS, 400),
  ("mlp --config=digits, 32 steps a call", MLP, [*DIGITS, "--run.steps_per_call=32"], 960),
  ("cnn --config=digits, batch 64", CNN, DIGITS, 200),
)


class NoCheckpoints:
  """Saving is measured elsewhere."""

  def save(self, *_):
    pass

  def wait(self):
    pass


def bare(job, state, call, steps: int):
  """The least that trains: the metrics of a step are read after the next one is dispatched, and nothing is done."""
  late, step, per_call = None, 0, job.plan.steps_per_call
  while step < steps:
    state, metrics = call(state, job.data.train.inputs(step), per_call)
    step += per_call
    if late is not None:
      jax.block_until_ready(late)
    late = metrics
  jax.block_until_ready(state)
  return state


def compare(definition, arguments, steps: int, rounds: int) -> tuple[list[float], float]:
  """Ratios flagship / bare, a pair a round, and the bare loop's seconds a step."""
  config = command.read(definition, arguments).config
  job = make_job(definition, config, lambda text: None)
  call = job.training_call()
  ratios, seconds = [], []
  for number in range(rounds + 2):
    plan = loop.Plan(steps, steps, steps, log_every=config.run.log_every, steps_per_call=config.run.steps_per_call)

    def flagship(plan=plan):
      options = {"header": {}, "total_steps": steps, "batch_size": config.data.batch_size, "quiet": True}
      with tempfile.TemporaryDirectory() as directory, Report(Path(directory), **options) as report:
        state = jax.block_until_ready(job.initial_state())
        began = time.perf_counter()
        state = loop.fit(
          plan, state, call, job.data.train, lambda state: {},
          checkpoints=NoCheckpoints(), report=report, scores=[],
        )  # fmt: skip
        jax.block_until_ready(state)
        return time.perf_counter() - began

    def plain():
      state = jax.block_until_ready(job.initial_state())
      began = time.perf_counter()
      bare(job, state, call, steps)
      return time.perf_counter() - began

    pair = {each: each() for each in ((flagship, plain) if number % 2 else (plain, flagship))}
    if number >= 2:  # the first pairs compile and warm up
      ratios.append(pair[flagship] / pair[plain])
      seconds.append(pair[plain] / steps)
  return ratios, statistics.median(seconds)


def median_interval(values: list[float]) -> tuple[float, float, float]:
  """(low, median, high), the ends being order statistics: 95 % confidence, whatever the distribution."""
  ordered, half = sorted(values), 0.98 * len(values) ** 0.5
  low, high = max(0, round(len(ordered) / 2 - half)), min(len(ordered) - 1, round(len(ordered) / 2 + half))
  return ordered[low], statistics.median(ordered), ordered[high]


def first_step_seconds(cache: str) -> float:
  """From the command to its first update's metrics, in a process of its own."""
  with tempfile.TemporaryDirectory() as directory:
    arguments = ["--config=digits", "--run.steps=1", "--run.log_every=1", f"--workdir={directory}/run"]
    began = time.time()
    subprocess.run(
      [sys.executable, "-m", "experiments.cnn", *arguments],
      env={**os.environ, "XDG_CACHE_HOME": cache}, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    lines = Path(directory, "run", "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[0])["time"] - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=64)
  rounds = parser.parse_args().rounds
  print(f"jax {jax.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} × {jax.devices()[0].device_kind}")
  print("| case | bare loop, ms a step | Flagship ÷ bare, median (95 % interval) | n |")
  print("| --- | --- | --- | --- |")
  for name, definition, arguments, steps in CASES:
    ratios, seconds = compare(definition, arguments, steps, rounds)
    low, median, high = median_interval(ratios)
    print(f"| {name} | {1000 * seconds:.3f} | {median:.3f} ({low:.3f} – {high:.3f}) | {len(ratios)} |", flush=True)
  print("\n| start of cnn --config=digits | seconds to the first update, median (range) | n |\n| --- | --- | --- |")
  cold, warm = [], []
  for _ in range(4):
    with tempfile.TemporaryDirectory() as cache:
      cold.append(first_step_seconds(cache))
      warm.append(first_step_seconds(cache))
  for name, seconds in (("cold", cold), ("warm compilation cache", warm)):
    print(f"| {name} | {statistics.median(seconds):.1f} ({min(seconds):.1f} – {max(seconds):.1f}) | {len(seconds)} |")


if __name__ == "__main__":
  main()
