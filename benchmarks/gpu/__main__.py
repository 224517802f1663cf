"""What kernels and training reach on one GPU, in one run under ten minutes: attention, norms, losses, GPT-2 of 124M
parameters, DCGAN, ResNet-18 and CIFAR-10.

  python -m benchmarks.gpu --out=gpu.json            on a machine with a GPU
  python -m benchmarks.gpu attention gpt2            some of it
  python -m benchmarks.gpu --smoke                   tiny sizes on the CPU: that the script runs, and no figure

Each part is a process of its own, which is ended where the time is over; what did not run is told. A row's status is
`measured`, or `smoke` for what says nothing of speed.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.updates import turns

PARTS = ("attention", "norm", "loss", "gpt2", "gan", "resnet", "cifar10")
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense FLOP/s, NVIDIA's data sheets


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
  parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
  parser.add_argument("--seconds", type=float, default=560.0, help="for all parts together")
  parser.add_argument("--data_dir", default="tfds", help="where CIFAR-10 lies prepared")
  parser.add_argument("--out", type=Path, help="a file for the rows as JSON")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    part, _, side = arguments.serve.partition("/")
    turns.serve(_training_row(part).sides[side]())
    return
  if unknown := set(arguments.parts) - set(PARTS):
    parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
  if arguments.smoke:
    os.environ |= {"FLAGSHIP_BENCHMARK_SMOKE": "1", "JAX_PLATFORMS": "cpu"}
  else:
    os.environ["FLAGSHIP_BENCHMARK_GPU"] = "1"
    # Two libraries share the memory: neither takes all of it at its start.
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  if len(arguments.parts) == 1 and os.environ.get("FLAGSHIP_BENCHMARK_PART"):
    print(json.dumps(run(arguments.parts[0], arguments.smoke, arguments.data_dir)))
    return
  rows, end = [], time.monotonic() + arguments.seconds
  for part in arguments.parts or PARTS:
    found = in_time(part, arguments, end - time.monotonic())
    rows += found
    for row in found:
      print(told(row), flush=True)
  if arguments.out:
    arguments.out.write_text(json.dumps({"device": stamp(arguments.smoke), "rows": rows}, indent=1))


def in_time(part: str, arguments: argparse.Namespace, seconds: float) -> list[dict]:
  """The rows of a part in a process of its own, or one that says why there are none."""
  command = [sys.executable, "-m", "benchmarks.gpu", part, f"--data_dir={arguments.data_dir}"]
  command += ["--smoke"] if arguments.smoke else []
  environment = {**os.environ, "FLAGSHIP_BENCHMARK_PART": "1"}
  if seconds < 20:
    return [{"what": part, "status": "not run: the time is over"}]
  try:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=seconds)
  except subprocess.TimeoutExpired:
    return [{"what": part, "status": f"ended after {seconds:.0f} s, when the time was over"}]
  if done.returncode:
    return [{"what": part, "status": f"failed with exit code {done.returncode}"}]
  return json.loads(done.stdout.splitlines()[-1])


def run(part: str, smoke: bool, data_dir: str) -> list[dict]:
  """A part's rows, in this process."""
  if part in ("gpt2", "gan", "resnet"):
    rows = training(part, smoke)
  elif part == "cifar10":
    rows = cifar10(smoke, data_dir)
  else:
    rows = importlib.import_module(f"benchmarks.gpu.{part}").rows(smoke)
  return [{"status": "smoke" if smoke else "measured", **stamp(smoke), **row} for row in rows]


def _training_row(part: str) -> turns.Row:
  return importlib.import_module(f"benchmarks.{'gpu' if part == 'gpt2' else 'updates'}.{part}").ROW


def training(part: str, smoke: bool) -> list[dict]:
  """Updates of a model beside PyTorch's where that is installed, in bfloat16 where a row has it."""
  row, rounds, seconds = _training_row(part), 3 if smoke else 12, 0.1 if smoke else 1.0
  sides = [side for side in row.sides if side == "Flagship" or "bfloat16" in side or part == "gpt2"]
  sides += [side for side in ("PyTorch",) if side in row.sides and side not in sides]
  try:
    version("torch")
  except PackageNotFoundError:
    sides = [side for side in sides if "PyTorch" not in side]
  measured = turns.measure(part, sides, rounds, seconds, "benchmarks.gpu")
  rows = []
  for side in sides:
    spent = statistics.median(measured[side].seconds)
    found = {"what": row.what, "form": side, "ms": 1000 * spent}
    if part == "gpt2":
      module = importlib.import_module("benchmarks.gpu.gpt2")
      peak = next((peak for name, peak in BF16_PEAK.items() if name in stamp(smoke)["device"]), None)
      found["tokens_per_s"] = module.BATCH * module.LENGTH / spent
      found["mfu"] = module.flops() / spent / peak if peak else None
    peer = "PyTorch, bfloat16" if "bfloat16" in side and "PyTorch, bfloat16" in measured else "PyTorch"
    if peer in measured and peer != side:
      low, median, high = turns.ratio(measured, side, peer)
      found |= {"peer": peer, "ratio": median, "spread": [low, high]}
    rows.append(found)
  return rows


def cifar10(smoke: bool, data_dir: str) -> list[dict]:
  """The preset `cnn --config=cifar10_gpu` whole: its accuracy and the seconds that it took."""
  workdir = Path("runs") / f"gpu-cifar10-{os.getpid()}"
  command = [sys.executable, "-m", "experiments.cnn", "--config=cifar10_gpu", f"--workdir={workdir}"]
  if smoke:
    command += ["--data.source=synthetic:rings", "--help"]
  else:
    command += [f"--data.dir={data_dir}"]
  began = time.perf_counter()
  subprocess.run(command, check=True, stdout=sys.stderr)
  found = {"what": "CIFAR-10, cnn --config=cifar10_gpu, start and report included", "form": "Flagship"}
  if not smoke:
    result = json.loads((workdir / "result.json").read_text())
    found |= {"seconds": time.perf_counter() - began, "accuracy": result["metrics"]["test/accuracy"]}
  return [found]


def stamp(smoke: bool) -> dict:
  """The device, and the versions."""
  names = ("jax", "jaxlib", "flax", "torch", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
  found = {}
  for name in names:
    try:
      found[name] = version(name)
    except PackageNotFoundError:
      continue
  device = "CPU"
  if not smoke:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    device = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
  return {"device": device, "versions": " ".join(f"{name} {number}" for name, number in found.items())}


def told(row: dict) -> str:
  """A line of a Markdown table."""
  told_apart = ("what", "form", "direction", "status", "device", "versions", "peer", "ratio", "spread")
  numbers = [
    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
    for name, value in row.items()
    if name not in told_apart and value is not None
  ]
  ratio = f"{row['ratio']:.2f} × {row['peer']}" if row.get("ratio") is not None else ""
  cells = [row["what"], row.get("form", ""), row.get("direction", ""), ", ".join(numbers), ratio, row["status"]]
  return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
  main()
