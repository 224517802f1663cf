"""Each kernel beside what XLA makes of the operation as one would write it, and beside PyTorch, turn by turn.

  python -m benchmarks.kernels                             needs the extra `bench`, for PyTorch
  python -m benchmarks.kernels attention conv --rounds=40
  python -m benchmarks.kernels --write                     puts the table into docs/kernels.md

An operation with its gradients on sizes from the experiments; a side is a process of its own. What is told is the speed
of the kernel ÷ plain JAX's and ÷ PyTorch's, of the same round, and the temporaries of the compiled programs
(`memory_analysis`; what a C++ kernel takes from malloc while it runs is not in them).
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.kernels.cases import CASES, Case
from benchmarks.updates import turns

SIDES = ("kernel", "plain", "PyTorch")
PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("operations", nargs="*", help=f"of {', '.join(CASES)}; none: all")
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--seconds", type=float, default=0.3, help="of a turn, roughly")
  parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    name, _, side = arguments.serve.partition("/")
    turns.serve(by_torch(CASES[name]) if side == "PyTorch" else by_jax(CASES[name], side))
    return
  if unknown := set(arguments.operations) - CASES.keys():
    parser.error(f"no operation {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
  versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch"))
  lines = [
    f"{os.cpu_count()} cores of {tables.processor()}, Python {sys.version.split()[0]}, {versions}.", "",
    "| with gradients | size | ms | speed ÷ plain JAX's, median (quartiles) | ÷ PyTorch's | temporaries, MB | n |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]  # fmt: skip
  print("\n".join(lines), flush=True)
  for name in arguments.operations or CASES:
    measured = turns.measure(name, SIDES, arguments.rounds, arguments.seconds, "benchmarks.kernels")
    lines.append(told(name, CASES[name], measured))
    print(lines[-1], flush=True)
  if arguments.write:
    tables.write(PAGE, "benchmarks.kernels", lines)


def told(name: str, case: Case, measured: dict[str, turns.Measured]) -> str:
  """The table's line of a case."""
  ratios = []
  for peer in ("plain", "PyTorch"):
    low, median, high = turns.ratio(measured, "kernel", peer)
    ratios.append(f"{median:.3g} ({low:.3g} – {high:.3g})")
  megabytes = f"{measured['kernel'].first:.3g} ÷ {measured['plain'].first:.3g}"
  spent, rounds = 1000 * statistics.median(measured["kernel"].seconds), len(measured["kernel"].seconds)
  return f"| `{name}` | {case.what} | {spent:.3g} | {' | '.join(ratios)} | {megabytes} | {rounds} |"


def numbers(case: Case) -> list[np.ndarray]:
  """Its arrays in float32, or int32."""
  return [
    shape() if callable(shape) else np.random.default_rng(i).normal(size=shape).astype(np.float32)
    for i, shape in enumerate(case.shapes)
  ]


def by_jax(case: Case, side: str) -> Callable[[int], float]:
  """The compiled operation; what it gives is its temporaries in megabytes."""
  import jax
  import jax.numpy as jnp

  from research.allocator import keep_freed_memory
  from research.kernels import choice

  keep_freed_memory()
  arrays = [jnp.asarray(each, case.dtype if each.dtype == np.float32 else None) for each in numbers(case)]
  floating = sum(jnp.issubdtype(array.dtype, jnp.floating) for array in arrays)
  run = case.kernel if side == "kernel" else case.plain
  shape = jax.eval_shape(run, *arrays).shape
  arrays.append(jnp.asarray(np.random.default_rng(9).normal(size=shape), case.dtype))

  def value_and_gradients(*given: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    *given, cotangent = given
    value, slope = jax.vjp(lambda *first: run(*first, *given[floating:]), *given[:floating])
    return value, slope(cotangent)

  forms = {op.name: case.form for op in choice.OPS.values() if case.form in op.forms} if side == "kernel" else {}
  with choice.use(**forms):
    program = jax.jit(value_and_gradients).lower(*arrays).compile()

  def turn(count: int) -> float:
    for _ in range(count):
      found = program(*arrays)
    jax.block_until_ready(found)
    return program.memory_analysis().temp_size_in_bytes / 1e6

  return turn


def by_torch(case: Case) -> Callable[[int], None]:
  """PyTorch's, eager, with its gradients."""
  import torch
  from torch.nn import functional

  torch.set_num_threads(os.cpu_count())
  arrays = [torch.from_numpy(each) for each in numbers(case)]
  arrays = [each.to(getattr(torch, case.dtype)) if each.is_floating_point() else each.long() for each in arrays]
  arrays = [_placed(each, axes) for each, axes in zip(arrays, case.axes, strict=True)]
  arrays = [each.requires_grad_(each.is_floating_point()) for each in arrays]
  shape = case.torch(functional, *arrays)
  cotangent = torch.randn_like(shape)

  def turn(count: int) -> None:
    for _ in range(count):
      for each in arrays:
        each.grad = None
      case.torch(functional, *arrays).backward(cotangent)

  return turn


def _placed(array, axes: str):
  """(B, H, W, C), (B, L, C), (h, w, C, O) or, of each channel, (h, w, C) with PyTorch's order of axes."""
  import torch

  if axes == "image":
    return array.permute(0, 3, 1, 2)
  if axes == "sequence":
    return array.transpose(1, 2).contiguous()
  if axes == "kernel" and array.ndim == 4:
    return array.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
  if axes == "kernel":  # of a sequence, or of each channel
    depthwise = array.shape[0] == array.shape[1]
    return (array.permute(2, 0, 1)[:, None] if depthwise else array.permute(2, 1, 0)).contiguous()
  return array


if __name__ == "__main__":
  main()
