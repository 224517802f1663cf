"""The study of compute: each size for each budget, the law that they follow, and a run that it predicts.

A budget is model FLOPs, by the task's own count; a size is trained for as many updates as that pays for, with a
schedule of that length. The held-out run is predicted, and the prediction is written, before it is made.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.scaling import law_pictures, law_report, points
from launch.scaling.family import Family, Measures, Size, losses, numbers_of
from launch.scaling.points import Point
from research.errors import UserError
from research.report.atomic import write_atomically

if TYPE_CHECKING:
  from launch.scaling.laws import Laws

COLUMNS = (
  "name", "held_out", "width", "depth", "parameters", "non_embedding", "budget", "updates", "tokens", "flops", "seed",
  "loss", "ok", "reason", "seconds",
)  # fmt: skip
FEWEST_UPDATES = 20


def run(
  family: Family,
  study: "Laws",
  sizes: Sequence[Size],
  held_out: tuple[Size, float] | None,
  report: Path,
  *,
  say: Callable[[str], None],
) -> int:
  """Runs what has not been run; writes points.csv, fit.json, laws.md and the pictures. Returns the exit code."""
  wanted = list(dict.fromkeys([*sizes, *(held_out or ())[:1]]))
  measures = family.measure(wanted, say)
  pairs = [
    (size, budget)
    for budget in numbers_of(study.budgets, "budgets")
    for size in sizes
    if study.least_tokens <= _tokens_each(budget, measures[size]) <= (study.most_tokens or math.inf)
  ]
  made = [_point(family, size, budget, seed, measures[size]) for size, budget in pairs for seed in range(study.seeds)]
  rows = points.run_all(made, family.folder, family.loss_of, say=say, retry=study.retry)
  points.write_csv(report / "points.csv", rows, COLUMNS)
  good = losses(rows, say)
  if not good:
    raise UserError("laws: no run has a loss; logs/ in the study's directory has what they said")
  later = [] if held_out is None else [_held_out(family, *held_out, seed, measures) for seed in range(study.seeds)]
  found = law_report.summarise(good, [point.about for point in later], study.bootstrap)
  _write(report, found)
  if later:
    say(law_report.prediction_line(found))
    rows += points.run_all(later, family.folder, family.loss_of, say=say, retry=study.retry)
    points.write_csv(report / "points.csv", rows, COLUMNS)
    found = law_report.judge(found, losses(rows[-len(later) :], say))
    _write(report, found)
  law_pictures.write_all(report, good, rows[len(made) :], found, family.metric)
  text = "\n".join(law_report.tables(good, found, family.metric))
  write_atomically(report / "laws.md", text + "\n")
  say(text)
  return 0


def check(family: Family, study: "Laws", sizes: Sequence[Size], held_out: tuple[Size, float] | None) -> None:
  """Raises UserError for a budget that is too small whatever preflight finds: before any process starts. Where sizes
  are left out of a budget by their tokens, that is not known yet."""
  left_out = study.least_tokens or study.most_tokens
  pairs = [] if left_out else [(size, budget) for budget in numbers_of(study.budgets, "budgets") for size in sizes]
  for size, budget in [*pairs, *([held_out] if held_out else [])]:
    _check_updates(size, budget, family.least_flops(size), ("at most ", "at least "))


def _check_updates(size: Size, budget: float, flops: float, bounds: tuple[str, str] = ("", "")) -> int:
  """How many updates a budget is. Raises UserError where they are too few."""
  updates = round(budget / flops)
  if updates < FEWEST_UPDATES:
    raise UserError(
      f"laws: {budget:g} FLOPs are {bounds[0]}{updates} updates of {size}, {bounds[1]}{flops:.3g} each; take a budget"
      f" of {bounds[1]}{FEWEST_UPDATES * flops:.2g}, a smaller batch or leave {size} out"
    )
  return updates


def _tokens_each(budget: float, measures: Measures) -> float:
  """Tokens for each parameter that a budget pays for."""
  return budget / measures.flops * measures.tokens / measures.parameters


def _point(family: Family, size: Size, budget: float, seed: int, measures: Measures, prefix: str = "") -> Point:
  updates = _check_updates(size, budget, measures.flops)
  name = f"{prefix}{size}-c{budget:.4g}-s{seed}".replace("+", "")
  about = {
    "held_out": bool(prefix), "width": size.width, "depth": size.depth, **dataclasses.asdict(measures),
    "budget": budget, "updates": updates, "tokens": updates * measures.tokens, "flops": updates * measures.flops,
    "seed": seed,
  }  # fmt: skip
  # One evaluation and one checkpoint, at the end.
  flags = (f"--run.steps={updates}", f"--run.eval_every={updates}", f"--seed={seed}")
  return family.training(name, size, flags, about)


def _held_out(family: Family, size: Size, budget: float, seed: int, measures: dict[Size, Measures]) -> Point:
  return _point(family, size, budget, seed, measures[size], "held_out-")


def _write(report: Path, found: dict) -> None:
  write_atomically(report / "fit.json", json.dumps(found, indent=1) + "\n")
