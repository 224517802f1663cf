"""Preflight's facts for people to read."""

from collections.abc import Sequence
from typing import Any

from research.kernels import choice
from research.report.measures import say_duration

PARTS = ("parameters", "optimizer", "averages and statistics", "data", "gradients", "activations")


def text(found: dict[str, Any]) -> str:
  """The facts for people to read."""
  rows, run, devices, flops = found["parameters"], found["run"], found["devices"], found["FLOPs"]
  memory, guess = found["device memory"], found["estimate"]
  count, size = sum(row["count"] for row in rows), sum(row["bytes"] for row in rows)
  lines = [
    f"parameters ({count:,}, {_say(size)})",
    *_parameters(rows),
    "",
    "the run",
    f"  data                 {run['data']}",
    f"  a batch              {', '.join(f'{key} {shape}' for key, shape in run['batch'].items())}",
    f"  updates              {run['updates']:,}; evaluation every {run['evaluation every']:,}",
    *([f"  kernels              {choice.say(run['kernels'])}"] * bool(run["kernels"])),
    *(f"    passed over        {note}" for note in run.get("kernels passed over", ())),
  ]
  if flops["model"] is not None:
    lines += [
      f"  FLOPs, an update     {flops['model']:.4g} (model FLOPs: matrix products of its forward and backward passes)",
      f"  FLOPs, the run       {flops['run']:.4g}",
    ]
  lines += [f"  FLOPs, the program   {flops['hardware']:.4g} an update (all products that it does)"]
  axes = ",".join(f"{axis}:{size}" for axis, size in devices["mesh"].items() if size > 1)
  how = f", {axes}, {devices['strategy']} by {devices['compile']}" if devices["count"] > 1 else ""
  kind = f"{devices['kind']} of {devices['topology']}" if devices["topology"] else devices["kind"]
  seconds = found["compiled in seconds"]
  lines += [
    "",
    f"memory of a device: {devices['count']} × {kind}{how} (compiled in {seconds:.1f} s)",
    *(f"  {part:<25}{_say(memory[part]):>10}" for part in PARTS),
    f"  {'at once':<25}{_say(memory['total']):>10}{_fits(memory)}",
  ]
  if found["collectives"]:
    lines += ["", "sent between devices in an update, by each"]
    lines += [
      f"  {each['kind']:<20} {each['count']:>5,} times over {each['devices']:>3} devices {_say(each['sent']):>10}"
      for each in found["collectives"]
    ]
  if devices["bubble"]:
    lines += ["", f"the pipeline's bubble: devices wait for {devices['bubble']:.0%} of the time in its layers"]
  mfu = "" if guess["mfu"] is None else f", {guess['mfu']:.0%} of the peak used"
  lines += [
    "",
    f"an update takes at least {say_duration(guess['seconds'])}, bound by {guess['bound']}{mfu}",
    f"  compute {say_duration(guess['compute'])}, memory {say_duration(guess['memory'])},"
    f" network {say_duration(guess['network'])}, by the peaks of {guess['chip']['name']} ({guess['chip']['source']})",
    f"  input at that speed: {_say(guess['input bytes a second'])}/s",
  ]
  return "\n".join(lines)


def refusal(found: dict[str, Any]) -> str:
  """One line: by how much a run does not fit, and what would."""
  memory, devices = found["device memory"], found["devices"]
  more = ""
  if memory["capacity"]:
    more = f" of {_say(memory['capacity'])}, {_say(memory['total'] - memory['capacity'])} too much"
  would = memory.get("would fit")
  advice = f"{' '.join(would)} would fit" if would else "more devices or a smaller model would"
  return (
    f"preflight: --parallel.strategy={devices['strategy']} on {devices['count']} × {devices['kind']} takes"
    f" {_say(memory['total'])} a device{more}; {advice}"
  )


def _parameters(rows: Sequence[dict[str, Any]]) -> list[str]:
  """A line for each module with what it has in all, and its arrays below it."""
  lines, indent = [], "  "
  width = max((len(row["name"]) for row in rows), default=0)
  modules: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    modules.setdefault(row["name"].partition("/")[0], []).append(row)
  whole = sum(row["count"] for row in rows)
  for module, inside in modules.items():
    if len(modules) > 1 and len(inside) > 1:
      count = sum(row["count"] for row in inside)
      lines.append(f"  {module:<{width + 30}} {count:>14,}  {count / whole:.0%}")
      indent = "    "
    for row in inside:
      lines.append(f"{indent}{row['name']:<{width}}  {row['dtype']}{row['shape']!s:<20} {row['count']:>12,}")
    indent = "  "
  return lines


def _fits(memory: dict[str, Any]) -> str:
  if memory["capacity"] is None:
    return ""
  verdict = "fits" if memory["fits"] else f"{_say(memory['total'] - memory['capacity'])} too much"
  return f" of {_say(memory['capacity'])}: {verdict}"


def _say(count: float) -> str:
  for unit in ("B", "kB", "MB", "GB", "TB"):
    if count < 1000 or unit == "TB":
      return f"{count:.3g} {unit}" if unit != "B" else f"{int(count)} B"
    count /= 1000
  raise AssertionError
