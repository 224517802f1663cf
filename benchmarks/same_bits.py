"""What `--run.deterministic_shards=8` costs: time of an update beside one without it, and a device's memory.

  python -m benchmarks.same_bits [ROW …] [--rounds=8] [--seconds=2]

On one device of this machine's CPU and on 8 virtual ones, turn by turn, each side a process: whole updates with their
data. "×" is the median of a round's ratios to the first side. Memory is what XLA plans for a device beside state and
data (`memory_analysis().temp_size_in_bytes`).
"""

import argparse
import os
import statistics
import sys

# "unfused" is the update without shards and without fused multiply-adds: what the flag alone costs.
SIDES = ("plain", "unfused", "shards", "plain on 8", "shards on 8")
ROWS = {
  "mlp": ["--config=digits", "--model.widths=512,512", "--data.batch_size=256"],
  "gpt": [f"--data.source=text:{__file__}", "--data.batch_size=16", "--model.layers=4", "--model.width=128",
          "--model.heads=4", "--model.context=64", "--model.dropout=0.1", "--text.tokenizer=byte"],
}  # fmt: skip


def begin(row: str, side: str):
  """→ (a run of updates, the memory in bytes)."""
  devices = 8 if side.endswith("8") else 1
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  from research.parallel import shards, threads

  threads.make_room()
  if "plain" not in side:
    shards.round_twice()
  import importlib

  import jax

  from experiments import command
  from experiments.job import make_job

  definition = importlib.import_module(f"experiments.{row}.__main__").EXPERIMENT
  flags = [*ROWS[row], "--run.steps=1000000", *(["--run.deterministic_shards=8"] if "shards" in side else [])]
  job = make_job(definition, command.read(definition, flags).config, lambda line: None)
  call, state = job.training_call(), job.initial_state()

  def run(updates: int) -> None:
    nonlocal state
    for step in range(updates):
      state, metrics = call(state, job.data.train.inputs(step), 1)
    jax.block_until_ready((state, metrics))

  parameters = sum(x.nbytes for x in jax.tree.leaves(state.params))
  run(1)
  return run, call.compiled().memory_analysis().temp_size_in_bytes, parameters


def main(arguments: list[str]) -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW")
  parser.add_argument("--rounds", type=int, default=8)
  parser.add_argument("--seconds", type=float, default=2.0)
  parser.add_argument("--serve", default="")
  told = parser.parse_args(arguments)
  from benchmarks.updates import turns

  if told.serve:
    run, memory, parameters = begin(*told.serve.split("/"))
    print(f"{told.serve}: {memory / 1e6:.1f} MB, parameters {parameters / 1e6:.2f} MB", file=sys.stderr, flush=True)
    turns.serve(run)
    return
  for row in told.rows or ROWS:
    measured = turns.measure(row, SIDES, told.rounds, told.seconds, "benchmarks.same_bits")
    plain = measured["plain"].seconds
    for side in SIDES:
      ratio = statistics.median(a / b for a, b in zip(measured[side].seconds, plain, strict=True))
      print(f"{row} {side:<12} {1000 * statistics.median(measured[side].seconds):8.2f} ms  × {ratio:.2f}", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
