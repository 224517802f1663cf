"""What the trials came to, the best first: rows, table.csv and table.md. It reads runs and never writes into one."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.sweep.study import choice, name
from research import selection
from research.errors import UserError
from research.parsing import parse_json
from research.report import run_directory
from research.report.atomic import write_atomically
from research.report.measures import say, say_seconds

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "unfinished", "WAITING": "waiting", "FAIL": "failed"}
Row = dict[str, Any]  # name, state, value, best_step, last, step, wall_seconds, reason, flags, run, curve


def rows(trials: Mapping[str, Any], folder: Path, metric: str) -> list[Row]:
  """A row for each trial: those that are done by their best value, then the pruned ones by theirs, then the rest."""
  found = [_row(trial, folder / "runs" / name(trial), metric) for trial in trials.values()]
  sign = 1 if selection.lower_is_better(metric) else -1
  order = list(STATES.values())
  return sorted(
    found,
    key=lambda row: (order.index(row["state"]), row["value"] is None, sign * (row["value"] or 0.0), row["name"]),
  )


def _row(trial: Any, run: Path, metric: str) -> Row:
  curve, step, seconds = [], None, None
  if (run / "metrics.jsonl").exists():
    opened = run_directory.open_run(run)
    curve = list(zip(*opened.curves.get(metric, ([], [])), strict=True))
    step, seconds = opened.step, opened.wall_seconds
  best = selection.best(metric, curve)
  return {
    "name": name(trial),
    "state": STATES[trial.state.name],
    "value": best[1] if best else None,
    "best_step": best[0] if best else None,
    "last": curve[-1][1] if curve else None,
    "step": step,
    "wall_seconds": seconds,
    "reason": trial.user_attrs.get("reason", "") if trial.state.name == "FAIL" else "",
    "flags": choice(trial),
    "run": run,
    "curve": curve,
  }


def write(folder: Path, found: Sequence[Row], about: Mapping[str, Any]) -> None:
  """table.csv, with every digit, and table.md, for people."""
  metric = about["metric"]
  swept = list(dict.fromkeys(flag for row in found for flag in row["flags"]))
  write_atomically(folder / "table.csv", _csv(found, swept, metric))
  write_atomically(folder / "table.md", markdown(found, swept, about))


def _csv(found: Sequence[Row], swept: Sequence[str], metric: str) -> str:
  columns = ["name", "state", metric, "best_step", "last", "step", "wall_seconds", *swept, "reason", "run"]
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows({**row, **row["flags"], metric: row["value"]} for row in found)
  return text.getvalue()


def markdown(found: Sequence[Row], swept: Sequence[str], about: Mapping[str, Any]) -> str:
  metric = about["metric"]
  counts = ", ".join(
    f"{count} {state}" for state in STATES.values() if (count := sum(row["state"] == state for row in found))
  )
  short = _short(swept)
  head = ["", *(f"`{short[flag]}`" for flag in swept), f"best {metric}", "at step", "last", "of step", "time", "state"]
  lines = [
    f"# {about['experiment']}: {', '.join(swept)}",
    "",
    f"{counts}. {'Least' if selection.lower_is_better(metric) else 'Greatest'} best {metric} first.",
    "",
    _line(head),
    _line(["---"] * len(head)),
    *(_line(_cells(place, row, swept, metric)) for place, row in enumerate(found, start=1)),
  ]
  if failed := [row for row in found if row["reason"]]:
    lines += ["", *(f"- `{row['name']}` failed: {row['reason']}" for row in failed)]
  shown = [str(row["run"]) for row in found if row["value"] is not None][:3]
  if len(shown) > 1:
    lines += ["", "Side by side, with the flags that differ and their curves:", "", "```sh",
              f"python -m research.report {shlex.join(shown)}", "```"]  # fmt: skip
  return "\n".join(lines) + "\n"


def _cells(place: int, row: Row, swept: Sequence[str], metric: str) -> list[str]:
  number = lambda value, how: "" if value is None else how(value)  # noqa: E731
  value = number(row["value"], lambda value: say(metric, value))
  return [
    str(place),
    *(_short_value(row["flags"].get(flag, "")) for flag in swept),
    f"**{value}**" if place == 1 and value else value,
    number(row["best_step"], "{:,}".format),
    number(row["last"], lambda value: say(metric, value)),
    number(row["step"], "{:,}".format),
    number(row["wall_seconds"], say_seconds),
    row["state"],
  ]


def _line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _short(flags: Sequence[str]) -> dict[str, str]:
  """Each flag by its last word, or whole where two share it."""
  last = [flag.rpartition(".")[2] for flag in flags]
  return {flag: word if last.count(word) == 1 else flag for flag, word in zip(flags, last, strict=True)}


def _short_value(value: str) -> str:
  """A drawn number to four digits; what was typed, as it was typed."""
  return f"{float(value):.4g}" if len(value) > 8 and as_number(value) is not None else value


def as_number(value: str) -> float | None:
  try:
    return float(value)
  except ValueError:
    return None


def read_about(path: Path) -> dict[str, Any]:
  """sweep.json; {} where there is none. Raises UserError where it is damaged."""
  try:
    return parse_json(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"sweep: {path} is damaged ({error}); give another --workdir") from error
