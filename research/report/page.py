"""report.html: one run in one file that opens offline, from the files of its run directory alone.

No scripts and no address outside the file: the page's own security policy forbids them. All text is escaped.
"""

import datetime as dt
import html
import re
import shlex
from collections.abc import Iterable, Mapping

from research import throughput
from research.report import accounting, alarms, findings, gallery, speed, svg, tiles
from research.report.measures import best, say, say_number, split_order
from research.report.panels import panels
from research.report.run_directory import Run
from research.report.style import CSS

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_UNSHOWN = ("command", "arguments", "defaults", "starts", "goodput")  # of run.json: shown elsewhere, or in other words
_HASH = re.compile("[0-9a-f]{32,}")


def render(run: Run) -> str:
  """The whole page as HTML."""
  body = "".join([
    _header(run), _alarms(run), tiles.section(run), gallery.section(run), _charts(run),
    findings.sections(run.predictions), speed.section(run), accounting.section(run),
    _numbers(run), _flags(run), _environment(run),
  ])
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(run.name)}</title><style>{CSS}</style></head><body><main>{body}"
    f"<footer>Flagship · made anew by <code>python -m research.report {html.escape(shlex.quote(str(run.path)))}</code>"
    "</footer></main></body></html>\n"
  )


def _header(run: Run) -> str:
  facts = []
  if run.records:
    moment = dt.datetime.fromtimestamp(run.records[-1]["time"], dt.UTC)
    facts.append(f"{moment.day} {moment:%B %Y, %H:%M} UTC")
  facts += [run.flags[name] for name in ("data.source",) if name in run.flags]
  facts += [] if run.result else [f"unfinished at step {run.step:,}"]
  return (f'<header><div class="over">RUN REPORT</div><h1>{html.escape(run.name)}</h1>'
          f"<p>{html.escape(' · '.join(facts))}</p></header>")


def _alarms(run: Run) -> str:
  rows = "".join(
    f"<li><b>step {alarm.step:,}</b><span>{html.escape(alarm.text)}</span></li>" for alarm in alarms.signs(run.records)
  )
  return f'<section class="alarms"><h2>Alarms</h2><ul>{rows}</ul></section>' if rows else ""


def _charts(run: Run) -> str:
  everything = [panel for panel in panels(run.curves) if not throughput.is_one(panel.name)]
  if not everything:
    return ""
  drawn = [line for panel in everything for line in panel.lines]
  keys = ["thin lines are single measurements, thick ones their running mean"] * any(line.smooth for line in drawn)
  keys += ["a ring marks the best"] * any(line.best for line in drawn)
  lead = f'<p class="lead">{"; ".join(keys).capitalize()}.</p>' if keys else ""
  charts = "".join(svg.card(panel, run.step) for panel in everything)
  return f'<h2>Curves</h2>{lead}<div class="charts">{charts}</div>'


def _numbers(run: Run) -> str:
  bests = {name: best(name, *run.curves.get(name, ([], []))) for name in run.final}
  heads = ["last", "best", "at step"] if any(bests.values()) else ["last"]
  rows = []
  for name in sorted(run.final, key=split_order):
    found = bests[name]
    told = [say(name, run.final[name]), *((say(name, found[1]), f"{found[0]:,}") if found else ("", ""))]
    cells = "".join(f'<td class="number">{html.escape(text)}</td>' for text in told[: len(heads)])
    rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
  head = "<th>metric</th>" + "".join(f'<th class="number">{text}</th>' for text in heads)
  return (f'<h2>Numbers</h2><div class="card scroll"><table><thead><tr>{head}</tr></thead>'
          f"<tbody>{''.join(rows)}</tbody></table></div>")


def _flags(run: Run) -> str:
  if not run.flags:
    return ""
  changed = run.changed()
  others = [name for name in run.flags if name not in changed]
  if not run.defaults:
    return f"<h2>Flags</h2>{_flag_table(run, others)}"
  first = _flag_table(run, changed) if changed else '<p class="lead">Every flag has its default value.</p>'
  return (f"<h2>Flags</h2><p class=lead>Those that differ from their defaults.</p>{first}"
          f"<details><summary>the other {len(others)}</summary>{_flag_table(run, others)}</details>")


def _flag_table(run: Run, names: Iterable[str]) -> str:
  rows = []
  for name in names:
    changed = name in run.defaults and run.defaults[name] != run.flags[name]
    default = f"default {run.defaults[name] or '(empty)'}" if changed else ""
    rows.append(f'<tr{" class=changed" if changed else ""}><td class="mono">--{html.escape(name)}</td>'
                f'<td class="mono value">{html.escape(run.flags[name])}</td><td>{html.escape(default)}</td></tr>')
  return f'<div class="card scroll"><table>{"".join(rows)}</table></div>'


def _environment(run: Run) -> str:
  command = run.environment.get("command", "")
  command = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
  facts = {name: value for name, value in run.environment.items() if name not in _UNSHOWN}
  starts = run.environment.get("starts")
  facts |= {"starts": len(starts)} if isinstance(starts, list) and len(starts) > 1 else {}
  again = f"<h2>Run it again</h2><pre>{html.escape(command)}</pre>" if command else ""
  rows = "".join(
    f"<tr><td class=key>{html.escape(str(name).replace('_', ' '))}</td><td>{html.escape(_said(value))}</td></tr>"
    for name, value in facts.items()
  )
  return again + (f'<h2>Environment</h2><div class="card scroll"><table>{rows}</table></div>' if rows else "")


def _said(value: object) -> str:
  if isinstance(value, Mapping):
    return " · ".join(f"{name} {_said(item)}" for name, item in value.items())
  if isinstance(value, list):
    return ", ".join(map(_said, value))
  if value is None:
    return "none"
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return say_number(value)
  text = str(value)
  return f"{text[:12]}…" if _HASH.fullmatch(text) else text
