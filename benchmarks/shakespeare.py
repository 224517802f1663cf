"""How good a language model is in the time that PyTorch takes for nanoGPT's CPU recipe, on tinyshakespeare.

  python -m benchmarks.shakespeare FILE               FILE: tinyshakespeare.txt; needs the extra `bench`, for PyTorch
  python -m benchmarks.shakespeare FILE --seeds=1

A round has three turns, each a process of its own: 2,000 updates of the PyTorch twin of `benchmarks.gpt` (updates
alone: no start, no data, no evaluation), then the whole commands `gpt --config=shakespeare_nano` and
`--config=shakespeare_cpu`, each from its start to its report. The loss is that of every character of the validation
split, once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 2000
TWIN = f"""
import time
from benchmarks.gpt import torch
run = torch()
run(10)
began = time.perf_counter()
run({STEPS})
print(time.perf_counter() - began)
"""
PRESETS = ("shakespeare_nano", "shakespeare_cpu")


def twin_seconds() -> float:
  done = subprocess.run([sys.executable, "-c", TWIN], check=True, capture_output=True, text=True)
  return float(done.stdout.split()[-1])


def trained(preset: str, text: Path, seed: int) -> tuple[float, float]:
  """(seconds of the whole command, validation loss in nats a character)."""
  with tempfile.TemporaryDirectory() as folder:
    arguments = [f"--config={preset}", f"--data.source=text:{text}", f"--seed={seed}", f"--workdir={folder}/run"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "experiments.gpt", *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    return seconds, json.loads(Path(folder, "run", "result.json").read_text())["metrics"]["validation/loss"]


def told(values: list[float], digits: int) -> str:
  return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("text", type=Path, help="tinyshakespeare.txt")
  parser.add_argument("--seeds", type=int, default=3)
  options = parser.parse_args()
  text = options.text.expanduser().absolute()
  if not text.is_file():
    parser.error(f"{text} is no file; tinyshakespeare.txt is 1,115,394 characters, from Karpathy's char-rnn")

  twin: list[float] = []
  runs: dict[str, list[tuple[float, float]]] = {preset: [] for preset in PRESETS}
  for seed in range(options.seeds):
    twin.append(twin_seconds())
    for preset, found in runs.items():
      found.append(trained(preset, text, seed))
    print(f"seed {seed}: twin {twin[-1]:.1f} s, {', '.join(f'{p} {r[-1]}' for p, r in runs.items())}", flush=True)
  print("| what | seconds, median (range) | validation loss, mean ± sd | n |\n| --- | --- | --- | --- |")
  print(f"| PyTorch, {STEPS:,} updates | {told(twin, 0)} | | {len(twin)} |")
  for preset, found in runs.items():
    seconds, losses = (list(column) for column in zip(*found, strict=True))
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    loss = f"{statistics.mean(losses):.4f} ± {spread:.4f}"
    print(f"| `gpt --config={preset}` | {told(seconds, 0)} | {loss} | {len(found)} |")


if __name__ == "__main__":
  main()
