"""Regenerates the README's results: every preset, several seeds, mean and spread.

  python -m benchmarks.results                           all rows
  python -m benchmarks.results mlp-iris cnn-digits       some rows
  python -m benchmarks.results --data_dir=DIRECTORY      where the TFDS sets lie prepared
  python -m benchmarks.results --shakespeare=FILE        with the rows of tinyshakespeare, which are left out without it

Each run is the preset's own command in a process of its own, kept under runs/results; finished runs are not repeated.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table: a preset, its seeds, and the metric that is told. Rows of one preset share its runs.

  With `start`, the name of another row, each run begins with the parameters of that row's first run. `shakespeare`
  rows read the file that the command line names.
  """

  experiment: str
  preset: str
  seeds: int
  metric: str = "test/accuracy"
  vary: tuple[str, ...] = ("--seed={}",)
  start: str = ""
  shakespeare: bool = False

  @property
  def name(self) -> str:
    return f"{self.experiment}-{self.preset}" + (f"-from-{self.start}" if self.start else "")

  def command(self, seed: int, runs: Path) -> list[str]:
    flags = [flag.format(seed) for flag in self.vary]
    if self.start:
      flags.append(f"--init_from={runs / f'{self.start}-s0'}")
    return ["-m", f"experiments.{self.experiment}", f"--config={self.preset}", *flags]


LABELS = ("--seed={}", "--classify.labels_seed={}")
ROWS = (
  Row("linear", "line", 3, "fit/least_squares_gap"),
  Row("linear", "line_noisy", 3, "fit/least_squares_gap"),
  Row("linear", "breast_cancer", 3),
  Row("mlp", "iris", 10, vary=("--seed={}", "--data.split_seed={}")),
  Row("mlp", "digits", 5),
  Row("cnn", "digits", 5),
  Row("mlp", "fashion_mnist", 3),
  Row("cnn", "fashion_mnist", 3),
  Row("cnn", "cifar10_classic", 3),
  Row("cnn", "cifar10_fast", 3),
  Row("vit", "cifar10_small", 3),
  Row("gan", "ring", 3, "generated/modes"),
  Row("gan", "ring", 3, "generated/high_quality"),
  Row("gan", "grid", 3, "generated/modes"),
  Row("gan", "grid", 3, "generated/high_quality"),
  Row("gan", "digits", 3, "generated/frechet_distance"),
  Row("gan", "digits", 3, "floor/frechet_distance"),
  Row("gan", "fashion_dcgan", 3, "generated/frechet_distance"),
  Row("gan", "fashion_dcgan", 3, "floor/frechet_distance"),
  Row("gan", "fashion_conditional", 3, "generated/class_accuracy"),
  Row("autoencoder", "fashion_denoising", 3, "test/gain_db"),
  Row("autoencoder", "fashion_vae", 3, "test/elbo"),
  Row("gpt", "shakespeare_nano", 3, "validation/loss", shakespeare=True),
  Row("gpt", "shakespeare_cpu", 3, "validation/loss", shakespeare=True),
  Row("text", "docstrings_cnn", 3),
  Row("text", "docstrings_cnn", 3, "test/macro_f1"),
  Row("text", "docstrings_bag", 3),
  Row("bert", "docstrings", 1),
  Row("bert", "docstrings_classify", 3, vary=LABELS),
  Row("bert", "docstrings_classify", 3, "test/macro_f1", vary=LABELS),
  Row("bert", "docstrings_classify", 3, vary=LABELS, start="bert-docstrings"),
  Row("bert", "docstrings_classify", 3, "test/macro_f1", vary=LABELS, start="bert-docstrings"),
  Row("forecast", "seasonal_lstm", 3, "test/mae"),
  Row("forecast", "seasonal_lstm", 3, "test/seasonal_naive_mae"),
  Row("forecast", "seasonal_gru", 3, "test/mae"),
  Row("forecast", "seasonal_transformer", 3, "test/mae"),
)
SHARES = ("accuracy", "macro_f1", "high_quality", "precision", "recall")


def run(row: Row, seed: int, runs: Path, data_dir: str, shakespeare: Path | None) -> dict:
  """The result of one run: result.json. The run that it begins with is made first, if it is not there yet."""
  if row.start:
    run(next(each for each in ROWS if each.name == row.start), 0, runs, data_dir, shakespeare)
  workdir = runs / f"{row.name}-s{seed}"
  command = [*row.command(seed, runs), f"--workdir={workdir}"]
  if data_dir:
    command.append(f"--data.dir={data_dir}")
  if row.shakespeare:
    command.append(f"--data.source=text:{shakespeare}")
  subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
  return json.loads((workdir / "result.json").read_text())


def line(row: Row, results: list[Mapping]) -> str:
  """| command | metric | mean ± standard deviation | least to greatest | seconds | n |"""
  values = [result["metrics"][row.metric] for result in results]
  seconds = [result["wall_seconds"] for result in results]
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  if row.metric.endswith(SHARES):
    mean, spread, low, high = (100 * value for value in (statistics.mean(values), spread, min(values), max(values)))
    told = f"**{mean:.2f} ± {spread:.2f} %** | {low:.2f} – {high:.2f} %"
  elif row.metric.endswith("gap"):
    told = f"**{statistics.mean(values):.1e}** | {min(values):.1e} – {max(values):.1e}"
  elif row.metric.endswith(("mae", "validation/loss")):
    told = f"**{statistics.mean(values):.4f} ± {spread:.4f}** | {min(values):.4f} – {max(values):.4f}"
  else:
    told = f"**{statistics.mean(values):.2f} ± {spread:.2f}** | {min(values):.2f} – {max(values):.2f}"
  told_seconds = f"{statistics.median(seconds):.0f} s ({min(seconds):.0f} – {max(seconds):.0f})"
  command = f"`{row.experiment} --config={row.preset}{' --init_from=RUN' if row.start else ''}`"
  return f"| {command} | {row.metric} | {told} | {told_seconds} | {len(values)} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("rows", nargs="*", help=f"rows to run: {', '.join(row.name for row in ROWS)}")
  parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="where the runs are kept")
  parser.add_argument("--data_dir", default="", help="where the TFDS sets lie prepared")
  parser.add_argument("--shakespeare", type=Path, default=None, help="tinyshakespeare.txt")
  parser.add_argument("--seeds", type=int, default=0, help="seeds of each row, instead of the row's own number")
  arguments = parser.parse_args()
  if unknown := set(arguments.rows) - {row.name for row in ROWS}:
    parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ROWS)}")

  print(f"jax {jax.__version__}, Python {sys.version.split()[0]}, {jax.devices()[0].device_kind}")
  print("| preset | metric | mean ± sd | least – greatest | wall time, median (range) | n |")
  print("| --- | --- | --- | --- | --- | --- |")
  for row in ROWS:
    wanted = row.name in arguments.rows or not arguments.rows
    if wanted and row.shakespeare and arguments.shakespeare is None:
      print(f"{row.name} needs --shakespeare=FILE", file=sys.stderr)
    elif wanted:
      seeds = range(arguments.seeds or row.seeds)
      results = [run(row, seed, arguments.runs, arguments.data_dir, arguments.shakespeare) for seed in seeds]
      print(line(row, results), flush=True)


if __name__ == "__main__":
  main()
