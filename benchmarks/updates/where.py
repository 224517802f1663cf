"""Where an update's time goes: the costliest kinds of operation, of plain flax, Flagship and PyTorch.

  python -m benchmarks.updates.where resnet          needs the extra `bench`, for PyTorch
  python -m benchmarks.updates.where                 all rows

Each side runs in a process of its own under its profiler (`jax.profiler`, `torch.profiler`). What a JAX program does is
told by the operation that each compiled instruction stems from; times are summed over threads, so two busy threads
count twice in both. Profilers slow small operations: the shares are what to read.
"""

import argparse
import collections
import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.updates.__main__ import ROWS, row

SIDES = ("flax", "Flagship", "PyTorch")
UPDATES = 5


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none: all")
  parser.add_argument("--top", type=int, default=5, help="kinds of operation that are told")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    name, _, side = arguments.serve.partition("/")
    print(json.dumps((by_torch if side == "PyTorch" else by_jax)(row(name).sides[side])))
    return
  print("| update of | side | costliest operations: ms of threads' time in an update, share |")
  print("| --- | --- | --- |")
  for name in arguments.rows or ROWS:
    for side in SIDES:
      command = [sys.executable, "-m", "benchmarks.updates.where", f"--serve={name}/{side}"]
      done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
      seconds = json.loads(done.stdout.splitlines()[-1])
      total = sum(seconds.values())
      most = sorted(seconds.items(), key=lambda item: -item[1])[: arguments.top]
      told = "; ".join(f"{what} {1000 * spent:.3g} ({spent / total:.0%})" for what, spent in most)
      print(f"| {f'`{name}`' if side == SIDES[0] else ''} | {side} | {told} |", flush=True)


def by_torch(make) -> dict[str, float]:
  """{operator: seconds of an update}."""
  from torch.profiler import ProfilerActivity, profile

  run = make()
  run(2)
  with profile(activities=[ProfilerActivity.CPU]) as profiler:
    run(UPDATES)
  return {each.key: each.self_cpu_time_total / 1e6 / UPDATES for each in profiler.key_averages()}


def by_jax(make) -> dict[str, float]:
  """{kind of operation: seconds of an update}."""
  import os

  with tempfile.TemporaryDirectory() as folder:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}/hlo --xla_dump_hlo_as_text"
    import jax

    run = make()
    run(2)
    with jax.profiler.trace(f"{folder}/trace"):
      run(UPDATES)
    (trace,) = Path(folder, "trace").rglob("*.xplane.pb")
    (program,) = Path(folder, "hlo").glob("*_step.cpu_after_optimizations.txt")
    kinds = kinds_of(program.read_text())
    seconds = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
      for line in plane.lines:
        for event in line.events if line.name.startswith("tf_XLA") else ():
          if event.name in kinds:
            seconds[kinds[event.name]] += event.duration_ns / 1e9 / UPDATES
  return dict(seconds)


def kinds_of(program: str) -> dict[str, str]:
  """{instruction of an optimised program: what it computes}."""
  bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
  found = {}
  for name, line in re.findall(r"^ +(?:ROOT )?%?([\w.-]+) = (.*)$", program, re.MULTILINE):
    if re.search(r" (while|call|conditional)\(", line):
      continue  # what is inside it is told by itself
    if target := re.search(r'custom_call_target="flagship_(\w+)"', line):
      found[name] = f"{target[1]} (C++)"
      continue
    named, called = re.search(r'op_name="([^"]*)"', line), re.search(r"calls=%?([\w.-]+)", line)
    body = bodies.get(called[1], "") if called else ""
    inside = re.findall(r'op_name="([^"]*)"', body)
    if not inside and " convolution(" in body:
      found[name] = "convolution, backward"  # XLA forgets where dilated ones, which gradients are, come from
      continue
    products = [each for each in inside if re.search("conv_general|dot_general", each.rpartition("/")[2])]
    own = named[1] if named else inside[-1] if inside else re.sub(r"[.\d]+$", "", name)
    found[name] = kind(products[-1] if products else own)
  return found


@functools.cache
def kind(origin: str) -> str:
  """In a word what jax calls "jit(step)/transpose(jvp(CNN))/conv_0/conv_general_dilated"."""
  operation, backward = origin.rpartition("/")[2], "transpose(" in origin
  if "conv_general_dilated" in operation or "dot_general" in operation:
    what = "convolution" if "conv" in operation else "matrix product"
    return f"{what}, {'backward' if backward else 'forward'}"
  for part, what in {"norm": "normalisation", "pool": "pooling", "attention": "attention"}.items():
    if part in origin.lower():
      return f"{what}, {'backward' if backward else 'forward'}"
  return operation


if __name__ == "__main__":
  main()
