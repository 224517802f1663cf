"""What it costs that bad numbers change nothing: whole updates with the guard against the same without, interleaved.

  python -m benchmarks.guard [--rounds=40]

Both are compiled from the same experiment. The figures are the guarded update's time over the bare one's, a pair at a
time, by the clock and by the processors' time, which a busy machine disturbs less: the median and its 95 % confidence
interval. Beside them the temporary memory of the two programs, as XLA plans it, and the time of a look at the whole
state, as before it is saved.
"""

import argparse
import os
import statistics
import sys
import time
from unittest import mock

import jax

from benchmarks.loop import median_interval
from experiments import command
from experiments.cnn.__main__ import EXPERIMENT as CNN
from experiments.gpt.__main__ import EXPERIMENT as GPT
from experiments.job import make_job
from experiments.mlp.__main__ import EXPERIMENT as MLP
from research import guard, steps

ONE = "--parallel.mesh=data:1"
CASES = (
  ("mlp --config=digits, batch 64, 32 steps a call", MLP, ["--config=digits", "--run.steps_per_call=32", ONE], 480),
  ("cnn --config=digits, batch 64", CNN, ["--config=digits", ONE], 20),
  ("gpt, 4 layers of 128, 64 tokens, batch 12", GPT, [
    "--data.source=python:stdlib", "--text.tokenizer=byte", "--model.layers=4", "--model.width=128", "--model.heads=4",
    "--model.context=64", "--data.batch_size=12", "--run.steps=100", ONE,
  ], 10),
)  # fmt: skip


def bare(step, rules):
  """`guard.guarded` without a guard: the counters are handed on as they are."""
  del rules

  def plain(state, batch, key):
    new, metrics = step(state, batch, key)
    return new.replace(guard=state.guard), metrics

  return plain


def compiled(job) -> jax.stages.Compiled:
  arguments = (job.task, job.data.train, job.data.augment, job.config.seed, job.layout)
  call = steps.training_call(*arguments, job.plan.steps_per_call, abstract=job.abstract_state, rules=job.rules)
  call.compiled()
  return call


def seconds(job, call, updates: int) -> tuple[float, float]:
  """(by the clock, of processors) of so many updates from the start."""
  state, per_call = jax.block_until_ready(job.initial_state()), job.plan.steps_per_call
  began, worked = time.perf_counter(), time.process_time()
  for step in range(0, updates, per_call):
    state, metrics = call(state, job.data.train.inputs(step), per_call)
    jax.block_until_ready(metrics)
  jax.block_until_ready(state)
  return time.perf_counter() - began, time.process_time() - worked


def ratio(values: list[float]) -> str:
  low, median, high = median_interval(values)
  return f"{median:.3f} ({low:.3f} – {high:.3f})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=40)
  rounds = parser.parse_args().rounds
  print(f"jax {jax.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} × {jax.devices()[0].device_kind}")
  print("| case | bare update, ms | guarded ÷ bare | by processors' time | temporary MB (bare) | a look, ms | n |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for name, definition, arguments, updates in CASES:
    job = make_job(definition, command.read(definition, arguments).config, lambda text: None)
    with mock.patch.object(guard, "guarded", bare):
      plain = compiled(job)
    guarded = compiled(job)
    pairs = []
    for number in range(rounds + 2):
      order = (plain, guarded) if number % 2 else (guarded, plain)
      pairs.append({call: seconds(job, call, updates) for call in order})
    pairs = pairs[2:]  # the first warm up
    clock, worked = ([pair[guarded][which] / pair[plain][which] for pair in pairs] for which in (0, 1))
    took = statistics.median(pair[plain][0] for pair in pairs) / updates
    memory, bare_memory = (
      f"{call.compiled().memory_analysis().temp_size_in_bytes / 1e6:.2f}" for call in (guarded, plain)
    )
    state, looks = job.initial_state(), []
    for _ in range(10):
      began = time.perf_counter()
      guard.not_finite(state)
      looks.append(time.perf_counter() - began)
    print(
      f"| {name} | {1000 * took:.3f} | {ratio(clock)} | {ratio(worked)} | {memory} ({bare_memory})"
      f" | {1000 * statistics.median(looks):.2f} | {len(pairs)} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
