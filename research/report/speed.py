"""The part of the page about what a run costs: its speed, its memory, and where the time of traced updates went."""

import html
from collections.abc import Mapping
from typing import Any

from research import throughput
from research.report import svg
from research.report.measures import say, say_number, say_seconds
from research.report.panels import panels
from research.report.run_directory import Run

_OPERATIONS = 10  # of a profile
_CURVES = ("tokens_per_second", "examples_per_second", "mfu")
_SAID = {
  "tokens_per_second": "{} tokens a second",
  "examples_per_second": "{} examples a second",
  "mfu": "{} of the devices' peak (MFU)",
  "device_memory_peak_bytes": "at most {} of a device's memory",
  "host_memory_peak_bytes": "at most {} of memory",
}


def section(run: Run) -> str:
  """HTML; "" of a run that tells neither."""
  last = {name.partition("/")[2]: value for name, value in run.final.items() if throughput.is_one(name)}
  if not last and not run.profile:
    return ""
  told = [words.format(say(name, last[name])) for name, words in _SAID.items() if name in last]
  text = ", ".join(told)
  lead = f'<p class="lead">{html.escape(text[:1].upper() + text[1:])}.</p>' if told else ""
  cards = "".join(svg.card(panel, run.step) for panel in panels(run.curves) if panel.name in _CURVES)
  curves = f'<details><summary>curves</summary><div class="charts">{cards}</div></details>' if cards else ""
  return f"<h2>Speed</h2>{lead}{_profile(run.profile) if run.profile else ''}{curves}"


def _profile(found: Mapping[str, Any]) -> str:
  """The costliest operations of the traced updates."""
  first, last = found["updates"]
  rows = []
  for each in found["operations"][:_OPERATIONS]:
    seconds = f"{1e3 * each['seconds'] / (last - first):.3g} ms"
    cells = (seconds, f"{100 * each['share']:.1f}%", say_number(each["count"] / (last - first)))
    numbers = "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in cells)
    rows.append(f'<tr><td>{html.escape(each["name"])}</td><td class="mono">{html.escape(each["instruction"])}</td>'
                f"{numbers}</tr>")  # fmt: skip
  head = "<th>operation</th><th>instruction</th>" + "".join(
    f'<th class="number">{name}</th>' for name in ("an update", "share", "times")
  )
  title = (
    f"The {last - first:,} updates from step {first:,} on took {say_seconds(found['seconds'])};"
    f" {100 * found['outside_device']:.1f}% of it lay outside the device"
  )
  return (f'<div class="card scroll"><h3>{html.escape(title)}</h3><table><thead><tr>{head}</tr></thead>'
          f"<tbody>{''.join(rows)}</tbody></table></div>")  # fmt: skip
