"""Estimates beside measurements: of a study's points, and whether both have them in the same order."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from launch.scaling.points import Row
from research.parallel import roofline
from research.parallel.chips import Chip

RATES = ("flops", "flops_f32", "bandwidth", "network")  # which virtual devices share


def by_one_machine(rows: Sequence[Row]) -> list[Row]:
  """The rows, with the estimates of a CPU's points made anew with the highest peaks that any of them has measured.

  Each point measures them in its own moment, and others may have the cores then: so made, estimates of several points
  say more about those than about the points.
  """
  here = [row for row in rows if row["ok"] and row.get("device") == "cpu" and row["kind"] == "measured"]
  if not here:
    return list(rows)
  best = {name: max(row["peaks"][name] * row["devices"] for row in here) for name in RATES}
  meeting: dict[int, float] = {}  # of so many devices
  for row in here:
    meeting[row["devices"]] = min(row["peaks"]["meeting"], meeting.get(row["devices"], float("inf")))
  return [_by(best, meeting[row["devices"]], row) if row in here else row for row in rows]


def _by(best: Mapping[str, float], meeting: float, row: Row) -> Row:
  """A row by other peaks of the whole machine."""
  rates = {name: rate / row["devices"] for name, rate in best.items()}
  chip = dataclasses.replace(Chip(**row["peaks"]), **rates, meeting=meeting)
  guess = roofline.estimate(roofline.Work(**row["work"]), chip, row["dtype"])
  new = {**row, "peaks": dataclasses.asdict(chip), "estimate_ms": 1000 * guess.seconds, "bound": guess.bound}
  if row["predicted_mfu"] is not None:
    slower = Chip(**row["peaks"]).peak(row["dtype"]) / chip.peak(row["dtype"])
    new["predicted_mfu"] *= slower * row["estimate_ms"] / new["estimate_ms"]
    if "mfu" in row:
      new["mfu"] *= slower
  return new


def order(rows: Sequence[Row]) -> dict[str, float]:
  """Whether estimates have measured points in their order.

  Returns: "pairs" of points; "clear", those of which no group of the one was as slow as any of the other; "right", how
  many of the clear ones the estimates have in the same order; "tau", Kendall's of all medians (scipy's τ-b).
  """
  from scipy import stats

  pairs = [sorted(pair, key=lambda row: row["step_ms"]) for pair in itertools.combinations(rows, 2)]
  clear = [(fast, slow) for fast, slow in pairs if fast["greatest_ms"] < slow["least_ms"]]
  right = sum(fast["estimate_ms"] < slow["estimate_ms"] for fast, slow in clear)
  tau = stats.kendalltau([row["step_ms"] for row in rows], [row["estimate_ms"] for row in rows]).statistic
  return {"pairs": len(pairs), "clear": len(clear), "right": right, "tau": float(tau)}


def said(found: Mapping[str, float]) -> str:
  """`order` in two sentences."""
  return (
    f"Of {found['pairs']} pairs of points {found['clear']} differ clearly: no group of the one was as slow as any of\n"
    f"the other. The estimates have {found['right']} of these in the same order; of all medians, Kendall's τ is"
    f" {found['tau']:.2f}."
  )
