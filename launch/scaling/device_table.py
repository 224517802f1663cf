"""The rows of a study of devices: from a point's facts and times to numbers, efficiencies, points.csv and a page.

Efficiency is against the point with the fewest devices: of the same work, T₁n₁ ÷ (Tₙn); of work that grows with the
devices, T₁ ÷ Tₙ. It compares measured points with measured ones, and estimates of one chip with each other.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.scaling import estimates
from launch.scaling.points import Row, write_csv
from research.parallel.hlo import KINDS
from research.report.atomic import cannot_write, write_atomically
from research.report.measures import say_number

COLUMNS = (
  "name", "kind", "topology", "devices", "mesh", "strategy", "mode", "batch", "step_ms", "least_ms", "greatest_ms",
  "groups", "examples_per_s", "tokens_per_s", "efficiency", "others", "compile_s", "memory_bytes", "peak", "sent_bytes",
  *KINDS, "estimate_ms", "bound", "mfu", "predicted_mfu", "chip", "reason",
)  # fmt: skip


def numbers(facts: Mapping[str, Any], seconds: Sequence[float], about: Mapping[str, Any]) -> dict[str, Any]:
  """A row's numbers.

  Args:
    facts: what preflight says, in bytes, FLOPs and seconds.
    seconds: of an update, in each timed group; empty where nothing was timed.
    about: the point's columns.
  """
  guess, batch = facts["estimate"], about["batch"]
  sent = dict.fromkeys(KINDS, 0.0)
  for each in facts["collectives"]:
    sent[each["kind"]] += each["sent"]
  row = {
    "compile_s": facts["compiled in seconds"],
    "memory_bytes": facts["device memory"]["total"],
    "memory": {
      part: size for part, size in facts["device memory"].items() if part not in ("total", "capacity", "fits")
    },
    "fits": facts["device memory"]["fits"],
    "sent_bytes": sum(sent.values()),
    **sent,
    "estimate_ms": 1000 * guess["seconds"],
    "bound": guess["bound"],
    "work": guess["work"],
    "dtype": guess["dtype"],
    "peaks": guess["chip"],
    "predicted_mfu": guess["mfu"],
    "chip": guess["chip"]["name"],
    "device": facts["devices"]["kind"],
  }
  if facts["run"]["tokens"]:
    row["tokens"] = facts["run"]["tokens"]
  return row | _times(row, batch, seconds)


def _times(row: Mapping[str, Any], batch: int, seconds: Sequence[float]) -> dict[str, Any]:
  """What follows from the groups' times; where there are none, the pace that the estimate allows at most."""
  step = statistics.median(seconds) if seconds else row["estimate_ms"] / 1000
  found: dict[str, Any] = {"examples_per_s": batch / step}
  if "tokens" in row:
    found["tokens_per_s"] = row["tokens"] / step
  if seconds:
    found |= {"timed_ms": [1000 * each for each in seconds], "step_ms": 1000 * step, "groups": len(seconds),
              "least_ms": 1000 * min(seconds), "greatest_ms": 1000 * max(seconds)}  # fmt: skip
    if row["predicted_mfu"] is not None:
      found["mfu"] = row["predicted_mfu"] * row["estimate_ms"] / found["step_ms"]
  return found


def in_one(rows: Sequence[Row]) -> list[Row]:
  """A row for each point, from those of its rounds: the times of all, and the estimate of the moment that had the
  highest peaks. A point has failed that has failed in every round."""
  rounds: dict[str, list[Row]] = {}
  for row in rows:
    rounds.setdefault(row.get("again", row["name"]), []).append(row)
  return [_in_one(each) for each in rounds.values()]


def _in_one(rounds: Sequence[Row]) -> Row:
  done = [row for row in rounds if row["ok"]]
  if len(done) < 2:
    return {**(done or rounds)[0], "name": rounds[0]["name"]}
  calm = min(done, key=lambda row: row["estimate_ms"])
  seconds = [each / 1000 for row in done for each in row["timed_ms"]]
  more = {"peak": max(row["peak"] for row in done)} if all("peak" in row for row in done) else {}
  if all("others" in row for row in done):
    more["others"] = statistics.mean(row["others"] for row in done)
  more["compile_s"] = min(row["compile_s"] for row in done)
  return {**calm, **_times(calm, calm["batch"], seconds), **more, "name": rounds[0]["name"]}


def efficiency(mode: str, first: tuple[float, int], here: tuple[float, int]) -> float:
  """Of (seconds, devices), against the first point's: 1 is what n devices promise."""
  work = first[1] / here[1] if mode == "strong" else 1.0
  return first[0] / here[0] * work


def with_efficiency(rows: Sequence[Row]) -> list[Row]:
  """The rows, each that has a time with its efficiency, and with the name of the point that it is against."""
  done = []
  for row in rows:
    if row["ok"]:
      peers = [each for each in rows if each["ok"] and _same_study(each, row)]
      first = min(peers, key=lambda each: each["devices"])
      row = {**row, "against": first["name"]}
      row["efficiency"] = efficiency(row["mode"], (_seconds(first), first["devices"]), (_seconds(row), row["devices"]))
    done.append({**row, "kind": row["kind"] if row["ok"] else "failed", "tried": row["kind"]})
  return done


def _same_study(each: Row, row: Row) -> bool:
  same_way = each["strategy"] == row["strategy"] or each["devices"] == 1
  return each["kind"] == row["kind"] and each["chip"] == row["chip"] and same_way


def _seconds(row: Row) -> float:
  return (row["step_ms"] if "step_ms" in row else row["estimate_ms"]) / 1000


def write(folder: Path, rows: Sequence[Row], line: str) -> list[Path]:
  """points.csv, README.md and what pictures there are; returns their paths."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cannot_write(folder, error) from error
  write_csv(folder / "points.csv", rows, COLUMNS)
  try:
    from launch.scaling import device_plots

    pictures = device_plots.write(folder, rows)
  except ImportError:
    pictures = []
  write_atomically(folder / "README.md", page(rows, line, [path.name for path in pictures]))
  return [folder / "points.csv", folder / "README.md", *pictures]


def page(rows: Sequence[Row], line: str, pictures: Sequence[str] = ()) -> str:
  """The study in Markdown."""
  measured, compiled, failed = (
    [row for row in rows if row["kind"] == kind] for kind in ("measured", "compiled", "failed")
  )
  mode = rows[0]["mode"] if rows else "strong"
  work = "the same batch on all devices" if mode == "strong" else "a batch that grows with the devices"
  lines = [f"# Devices: {mode} scaling, {work}", "", "```sh", line, "```", ""]
  if measured:
    kinds = sorted({row["device"] for row in measured})
    lines += [f"Measured on {' and '.join(kinds)}; milliseconds are the median of the groups (least – greatest)."]
    if "cpu" in kinds:
      lines += [
        "The devices of a CPU are virtual and share its cores: an efficiency of 1 ÷ devices says that dividing",
        "the work cost nothing, and more than that, that one device had left cores idle. It tells nothing of",
        "accelerators.",
      ]
    others = [row["others"] for row in measured if "others" in row]
    if others:
      lines += [f"Other processes had {min(others):.1f} to {max(others):.1f} of the machine's cores meanwhile."]
    lines += ["", *_measured_table(measured), ""]
    if len(measured) > 2:
      lines += [estimates.said(estimates.order(measured)), ""]
  if compiled:
    lines += ["Compiled ahead for chips that are not here, and not run: milliseconds are the least that an update",
              "takes by the chip's peaks.", "", *_compiled_table(compiled), ""]  # fmt: skip
  if failed:
    lines += ["What could not be:", ""]
    lines += [f"- `{row['name']}`: {row['reason']}" for row in failed]
    lines += [""]
  lines += [f"![{Path(name).stem}]({name})" for name in pictures]
  return "\n".join(lines).rstrip() + "\n"


def _measured_table(rows: Sequence[Row]) -> list[str]:
  pace = "tokens/s" if all("tokens_per_s" in row for row in rows) else "examples/s"
  key = pace.replace("/", "_per_")
  head = ["devices", "mesh", "strategy", "batch", "step, ms", pace, "efficiency", "compile, s", "memory of a device",
          "sent an update", "estimate, ms", "bound by"]  # fmt: skip
  cells = [
    [
      row["devices"], row["mesh"], row["strategy"], f"{row['batch']:,}",
      f"{say_number(row['step_ms'])} ({say_number(row['least_ms'])} – {say_number(row['greatest_ms'])})",
      say_number(row[key]), f"{row['efficiency']:.2f}", f"{row['compile_s']:.1f}", say_size(row["memory_bytes"]),
      say_size(row["sent_bytes"]), say_number(row["estimate_ms"]), row["bound"],
    ]
    for row in rows
  ]  # fmt: skip
  return _table(head, cells)


def _compiled_table(rows: Sequence[Row]) -> list[str]:
  head = ["topology", "mesh", "strategy", "batch", "step at least, ms", "examples/s at most", "share of the peak",
          "efficiency", "compile, s", "memory of a chip", "sent an update", "bound by"]  # fmt: skip
  cells = [
    [
      row["topology"], row["mesh"], row["strategy"], f"{row['batch']:,}", say_number(row["estimate_ms"]),
      say_number(row["examples_per_s"]), "" if row["predicted_mfu"] is None else f"{row['predicted_mfu']:.1%}",
      f"{row['efficiency']:.2f}", f"{row['compile_s']:.1f}",
      say_size(row["memory_bytes"]) + (", too much" if row["fits"] is False else ""), say_size(row["sent_bytes"]),
      row["bound"],
    ]
    for row in rows
  ]  # fmt: skip
  return _table(head, cells)


def _table(head: Sequence[str], cells: Sequence[Sequence[Any]]) -> list[str]:
  return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *cells)]


def say_size(count: float) -> str:
  """61.2 MB, in powers of 1000 as preflight says them."""
  place = 0 if count < 1 else min(int(math.log10(count) // 3), 4)
  return f"{count / 1000**place:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[place]}"
