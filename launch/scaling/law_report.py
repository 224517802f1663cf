"""What a study of compute found, as numbers for fit.json and as tables."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.scaling.points import Row
from research import scaling_laws
from research.scaling_laws import Law

# What N counts. All parameters come first: exponents by the others bend where the table is much of a small network
# (Pearce and Song 2024).
NUMBERS = ("E", "A", "B", "alpha", "beta")
COUNTS = {"parameters": "all parameters", "non_embedding": "without embeddings"}
LEVEL = 0.9
Found = dict[str, Any]


def summarise(rows: Sequence[Row], later: Sequence[Mapping[str, Any]], resamplings: int) -> Found:
  """The fits by each of `COUNTS`, with intervals, and the prediction of `later`, all seeds of one run, or of none."""
  found: Found = {"runs": len(rows), "level": LEVEL, "resamplings": resamplings, "fits": {}}
  for count in COUNTS:
    n, d, loss = columns(rows, count)
    law = scaling_laws.fit(n, d, loss)
    laws = scaling_laws.bootstrap(n, d, loss, resamplings)
    residuals = np.log(loss) - np.log(law.loss(n, d))
    k = float(np.exp(np.mean(np.log([row["flops"] / row[count] / row["tokens"] for row in rows]))))
    fit = {
      "law": dataclasses.asdict(law),
      "law intervals": {
        name: scaling_laws.interval([getattr(each, name) for each in laws], LEVEL) for name in NUMBERS
      },
      "resamplings that fix no law": sum(bool(each.pinned) for each in laws),
      "exponents": dict(zip(("a", "b"), law.exponents, strict=True)),
      "exponents intervals": {
        name: scaling_laws.interval([each.exponents[place] for each in laws], LEVEL) for place, name in enumerate("ab")
      },
      "residual": float(np.sqrt(np.mean(residuals**2))),
      "FLOPs per parameter and token": k,
      "isoflop": isoflop(rows, count, resamplings),
    }
    if later:
      fit["held out"] = predict(law, laws, residuals, later[0], count)
    found["fits"][count] = fit
  return found


def columns(rows: Sequence[Row], count: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(N, D, L) of the rows."""
  return tuple(np.array([row[name] for row in rows], np.float64) for name in (count, "tokens", "loss"))


def isoflop(rows: Sequence[Row], count: str, resamplings: int) -> Found:
  """Each budget's parabola, and N ∝ C^a by their minima where two or more have one."""
  budgets = sorted({row["budget"] for row in rows})
  profiles, minima = [], []
  for budget in budgets:
    n, _, loss = columns([row for row in rows if row["budget"] == budget], count)
    if len(np.unique(n)) < 3:
      continue
    curve = scaling_laws.parabola(n, loss)
    profiles.append((budget, (n, loss)))
    minima.append({"budget": budget, "parameters": curve.parameters, "loss": curve.loss,
                   "coefficients": curve.coefficients})  # fmt: skip
  good = [each for each in minima if each["parameters"]]
  found: Found = {"minima": minima}
  if len(good) >= 2:
    coefficient, a = scaling_laws.power_law([m["budget"] for m in good], [m["parameters"] for m in good])
    drawn = scaling_laws.resampled_exponents(*zip(*profiles, strict=True), resamplings)
    found |= {"coefficient": coefficient, "a": a, "a interval": scaling_laws.interval(drawn, LEVEL) if drawn else None}
  return found


def predict(
  law: Law, laws: Sequence[Law], residuals: np.ndarray, run: Mapping[str, Any], count: str, seed: int = 0
) -> Found:
  """The run's loss by the law; the interval is of the resampled laws, each with a residual of the fit added."""
  drawn = np.random.default_rng(seed).choice(residuals, len(laws))
  losses = [float(each.loss(run[count], run["tokens"])) * math.exp(r) for each, r in zip(laws, drawn, strict=True)]
  return {
    "width": run["width"], "depth": run["depth"], count: run[count], "tokens": run["tokens"], "flops": run["flops"],
    "predicted": float(law.loss(run[count], run["tokens"])), "interval": scaling_laws.interval(losses, LEVEL),
  }  # fmt: skip


def prediction_line(found: Found) -> str:
  held_out = found["fits"]["parameters"]["held out"]
  low, high = held_out["interval"]
  return f"predicted for {held_out['width']}x{held_out['depth']}: {held_out['predicted']:.4f} ({low:.4f} to {high:.4f})"


def judge(found: Found, rows: Sequence[Row]) -> Found:
  """The same with what the held-out run has measured, the mean over its seeds; as it was where all failed."""
  if not rows:
    return found
  measured = float(np.mean([row["loss"] for row in rows]))
  fits = {}
  for count, fit in found["fits"].items():
    told = fit["held out"]
    low, high = told["interval"]
    error = measured / told["predicted"] - 1
    fits[count] = {**fit, "held out": {**told, "measured": measured, "error": error, "inside": low <= measured <= high}}
  return {**found, "fits": fits}


def tables(rows: Sequence[Row], found: Found, metric: str) -> list[str]:
  """Markdown: the runs, the law, the minima and the held-out run."""
  return [*_runs(rows, metric), "", *_laws(found), "", *_minima(found), "", *_held_out(found)]


def _runs(rows: Sequence[Row], metric: str) -> list[str]:
  budgets = sorted({row["budget"] for row in rows})
  sizes = sorted({(row["parameters"], row["non_embedding"], row["width"], row["depth"]) for row in rows})
  lines = [
    f"{metric} by size (rows) and budget (columns, model FLOPs)",
    "",
    f"| size | parameters | without embeddings | {' | '.join(f'{budget:.3g}' for budget in budgets)} |",
    "| --- |" + " ---: |" * (2 + len(budgets)),
  ]
  for parameters, other, width, depth in sizes:
    cells = []
    for budget in budgets:
      here = [r["loss"] for r in rows if (r["width"], r["depth"], r["budget"]) == (width, depth, budget)]
      cells.append(f"{np.mean(here):.3f}" if here else "–")
    lines.append(f"| {width}x{depth} | {parameters:,} | {other:,} | {' | '.join(cells)} |")
  return lines


def _laws(found: Found) -> list[str]:
  lines = [
    f"L = E + A/N^α + B/D^β from {found['runs']} runs; in brackets {100 * found['level']:.0f} % of"
    f" {found['resamplings']} resamplings",
    "",
    "| N | E | A | B | α | β | a in N ∝ C^a | a by parabolas | residual |",
    "| --- |" + " --- |" * 8,
  ]
  for count, name in COUNTS.items():
    fit = found["fits"][count]
    cells = [_said(fit["law"][key], fit["law intervals"][key]) for key in NUMBERS]
    cells.append(_said(fit["exponents"]["a"], fit["exponents intervals"]["a"]))
    by_parabolas = fit["isoflop"]
    cells.append(_said(by_parabolas["a"], by_parabolas["a interval"]) if "a" in by_parabolas else "–")
    lines.append(f"| {name} | {' | '.join(cells)} | {100 * fit['residual']:.2f} % |")
  for count, name in COUNTS.items():
    fit = found["fits"][count]
    if pinned := fit["law"]["pinned"]:
      lines += ["", f"N {name}: these runs do not fix {', '.join(pinned)}; more sizes, budgets or seeds would."]
    elif loose := fit["resamplings that fix no law"]:
      lines += ["", f"N {name}: {loose} of the {found['resamplings']} resamplings leave a number at its bound."]
  return lines


def _minima(found: Found) -> list[str]:
  lines = [
    "| budget | N of the least loss, by its parabola | loss there | N by the law | D by the law | loss by the law |",
    "| ---: |" + " ---: |" * 5,
  ]
  fit = found["fits"]["parameters"]
  law, k = Law(**fit["law"]), fit["FLOPs per parameter and token"]
  for minimum in fit["isoflop"]["minima"]:
    n, d = law.optimum(minimum["budget"], k)
    own = (
      f"{minimum['parameters']:,.0f} | {minimum['loss']:.3f}" if minimum["parameters"] else "not among the sizes | –"
    )
    lines.append(f"| {minimum['budget']:.3g} | {own} | {_count(n)} | {_count(d)} | {law.loss(n, d):.3f} |")
  return lines


def _held_out(found: Found) -> list[str]:
  if "held out" not in found["fits"]["parameters"]:
    return ["No run was held out."]
  lines = [
    "| N | held-out run | FLOPs | tokens | predicted | measured | measured ÷ predicted − 1 | inside the interval |",
    "| --- | --- |" + " ---: |" * 5 + " --- |",
  ]
  for count, name in COUNTS.items():
    told = found["fits"][count]["held out"]
    measured = ["–", "–", "it failed"]
    if "measured" in told:
      measured = [f"{told['measured']:.3f}", f"{100 * told['error']:+.2f} %", "yes" if told["inside"] else "no"]
    lines.append(
      f"| {name} | {told['width']}x{told['depth']}, N = {told[count]:,} | {told['flops']:.3g} | {told['tokens']:,} |"
      f" {_said(told['predicted'], told['interval'], 3)} | {' | '.join(measured)} |"
    )
  return lines


def _count(value: float) -> str:
  return f"{value:,.0f}" if value < 1e15 else f"{value:.3g}"


def _said(value: float, interval: Sequence[float] | None, decimals: int | None = None) -> str:
  """Three digits, or so many decimals, and the interval in brackets."""
  say = (lambda x: f"{x:.{decimals}f}") if decimals else (lambda x: f"{x:.3g}")
  return say(value) if interval is None else f"{say(value)} ({say(interval[0])} to {say(interval[1])})"
