"""What computing in bfloat16 does to a run's result: presets trained in float32 and in bfloat16 from the same seeds.

  python -m benchmarks.precision                               mlp, cnn, vit on digits, gpt on the standard library
  python -m benchmarks.precision --shakespeare=FILE --runs=DIR

A difference is of two runs with one seed; runs that are finished are not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROWS = {
  "mlp-digits": ("test/loss", "test/accuracy"),
  "cnn-digits": ("test/loss", "test/accuracy"),
  "vit-digits": ("test/loss", "test/accuracy"),
  "text-docstrings_bag": ("test/loss", "test/accuracy"),
  "gpt-stdlib": ("validation/loss", "validation/accuracy"),
  "gpt-shakespeare_nano": ("validation/loss", "validation/accuracy"),
}
DTYPES = ("float32", "bfloat16")


def run(name: str, dtype: str, seed: int, runs: Path, shakespeare: Path | None) -> dict[str, float]:
  """The last scores of a preset's run."""
  experiment, _, preset = name.partition("-")
  workdir = runs / f"{name}-{dtype}-s{seed}"
  command = [sys.executable, "-m", f"experiments.{experiment}", f"--config={preset}", f"--seed={seed}"]
  command += [f"--model.dtype={dtype}", f"--workdir={workdir}"]
  if "shakespeare" in preset:
    command.append(f"--data.source=text:{shakespeare}")
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  return json.loads((workdir / "result.json").read_text())["metrics"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none: all")
  parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="where the runs are kept")
  parser.add_argument("--shakespeare", type=Path, default=None, help="tinyshakespeare.txt; without it no such row")
  parser.add_argument("--seeds", type=int, default=3)
  arguments = parser.parse_args()
  if unknown := set(arguments.rows) - set(ROWS):
    parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
  print("| preset | metric | float32 | bfloat16 − float32, mean (least – greatest) | n |")
  print("| --- | --- | --- | --- | --- |")
  for name in arguments.rows or ROWS:
    if "shakespeare" in name and arguments.shakespeare is None:
      continue
    pairs = [
      tuple(run(name, dtype, seed, arguments.runs, arguments.shakespeare) for dtype in DTYPES)
      for seed in range(arguments.seeds)
    ]
    experiment, _, preset = name.partition("-")
    for metric in ROWS[name]:
      differences = [narrow[metric] - wide[metric] for wide, narrow in pairs]
      low, mean, high = min(differences), statistics.mean(differences), max(differences)
      wide = statistics.mean(wide[metric] for wide, _ in pairs)
      told = f"{mean:+.4f} ({low:+.4f} – {high:+.4f})".replace("-", "−")
      print(f"| `{experiment} --config={preset}` | {metric} | {wide:.4f} | {told} | {len(pairs)} |", flush=True)


if __name__ == "__main__":
  main()
