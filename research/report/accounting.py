"""The part of the page about where a run's wall time went: a bar over all its starts, and its table."""

import html

from research import goodput
from research.report.measures import say_seconds
from research.report.run_directory import Run

_COLOURS = {  # of style.py; what no update is made in is grey or lost
  goodput.STEPS: "key-1", "compile": "key-5", "data": "key-4", "evaluation": "key-3", "saving": "key-0",
  "start": "key-0", "end": "key-0", goodput.LOST: "key-2",
}  # fmt: skip


def section(run: Run) -> str:
  """HTML; "" of a run that kept no account."""
  wall = sum(run.goodput.values())
  if not wall:
    return ""
  parts = [(name, seconds, seconds / wall) for name, seconds in run.goodput.items() if seconds > 0]
  bar = "".join(
    f'<i class="{_COLOURS.get(name, "key-0")}" style="width:{share:.2%}" title="{html.escape(_named(name))}"></i>'
    for name, _, share in parts
  )
  rows = "".join(
    f'<tr><td><i class="dot {_COLOURS.get(name, "key-0")}"></i>{html.escape(_named(name))}</td>'
    f'<td class="number">{html.escape(say_seconds(seconds))}</td><td class="number">{share:.1%}</td></tr>'
    for name, seconds, share in parts
  )
  starts = len(run.environment.get("starts", [])) or 1
  lead = f"{say_seconds(wall)} in {starts} {'starts' if starts > 1 else 'start'}, {parts[0][2]:.0%} of it in updates."
  return (
    f'<h2>Where the time went</h2><p class="lead">{html.escape(lead)}</p><div class="card scroll">'
    f'<div class="account">{bar}</div><table><tbody>{rows}</tbody></table></div>'
  )


def _named(share: str) -> str:
  return {**goodput.SHARES, goodput.LOST: "lost to restarts: updates made again"}.get(share, share)
