"""A study of devices in pictures: time.png and cost.png of what was measured, compiled.png of what was compiled."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.scaling.points import Row
from research.parallel.hlo import KINDS
from research.report import pictures

_GREY, _INK = "#9aa1ab", "#5f6670"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
  """Draws what there are numbers for; returns the pictures' paths. Raises ImportError without matplotlib."""
  measured, compiled = ([row for row in rows if row["kind"] == kind] for kind in ("measured", "compiled"))
  made = []
  if measured:
    made.append(pictures.write(folder / "time.png", lambda: time_figure(measured)))
    made.append(pictures.write(folder / "cost.png", lambda: cost_figure(measured)))
  if compiled:
    made.append(pictures.write(folder / "compiled.png", lambda: compiled_figure(compiled)))
  return made


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Each strategy's points in the order of their devices; one device is the first of all. Of several meshes with as
  many devices the fastest."""
  found: dict[str, dict[int, Row]] = {}
  alone = [row for row in rows if row["devices"] == 1]
  strategies = dict.fromkeys(row["strategy"] for row in rows if row["devices"] > 1) or {"dp": None}
  for strategy in strategies:
    for row in [*alone, *(row for row in rows if row["strategy"] == strategy)]:
      best = found.setdefault(strategy, {}).setdefault(row["devices"], row)
      if pace(row) > pace(best):
        found[strategy][row["devices"]] = row
  return {strategy: [by_count[count] for count in sorted(by_count)] for strategy, by_count in found.items()}


def pace(row: Row) -> float:
  return row["examples_per_s"]


def time_figure(rows: Sequence[Row]):
  """Step time, throughput and efficiency over devices, each with what n times the devices promise, dashed; of a
  CPU's virtual devices also what dividing would give if it cost nothing, dotted: they are the same cores."""
  figure = pictures.new_figure(11.4, 3.9)
  lines = curves(rows)
  tokens = all("tokens_per_s" in row for row in rows)
  unit = "tokens/s" if tokens else "examples/s"
  panels = (
    ("step, ms", lambda row: row["step_ms"], lambda first, work, speed: first * work / speed),
    (unit, lambda row: row["tokens_per_s" if tokens else "examples_per_s"], lambda first, _, speed: first * speed),
    ("efficiency", lambda row: row["efficiency"], None),
  )
  for place, (title, value, ideal) in enumerate(panels):
    axes = figure.add_subplot(1, 3, place + 1)
    for order, (strategy, shown) in enumerate(lines.items()):
      counts, values = [row["devices"] for row in shown], [value(row) for row in shown]
      low, high = _spread(shown, title, values)
      axes.errorbar(counts, values, (low, high), fmt="o-", color=pictures.COLOURS[order], label=strategy, capsize=2,
                    markersize=4.5, linewidth=1.6, elinewidth=1)  # fmt: skip
    first = min((row for shown in lines.values() for row in shown), key=lambda row: row["devices"])
    counts = sorted({row["devices"] for row in rows})
    times = [count / first["devices"] for count in counts]
    promises = {"ideal": ("--", times)}
    if first["device"] == "cpu":
      promises["no cost on the same cores"] = (":", [1.0] * len(times))
    for name, (style, speeds) in promises.items():
      work = times if first["mode"] == "weak" else [1.0] * len(times)
      drawn = [
        speed / time if ideal is None else ideal(value(first), load, speed)
        for time, load, speed in zip(times, work, speeds, strict=True)
      ]
      axes.plot(counts, drawn, style, color=_GREY, linewidth=1.3, label=name)
    _count_axis(axes, counts)
    if title == "efficiency":
      axes.set_ylim(bottom=0)
    else:
      _number_axis(axes)
    axes.set(title=title, xlabel="devices")
  figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
  return figure


def _spread(rows: Sequence[Row], title: str, values: Sequence[float]) -> tuple[list[float], list[float]]:
  """Below and above each value, by the fastest and the slowest group of updates."""
  ends = [(row["step_ms"] / row["greatest_ms"], row["step_ms"] / row["least_ms"]) for row in rows]
  if title == "step, ms":
    ends = [(1 / fast, 1 / slow) for slow, fast in ends]
  return ([value * (1 - low) for value, (low, _) in zip(values, ends, strict=True)],
          [value * (high - 1) for value, (_, high) in zip(values, ends, strict=True)])  # fmt: skip


def cost_figure(rows: Sequence[Row]):
  """Of each point: bytes that a device sends in an update, by kind; its memory, by what it is for; compile time."""
  figure = pictures.new_figure(11.4, 0.3 * len(rows) + 2.2)
  labels = [_label(row) for row in rows]
  many, sent_unit = _unit([row["sent_bytes"] for row in rows])
  sent = {kind: [row[kind] / many for row in rows] for kind in KINDS if any(row[kind] for row in rows)}
  much, memory_unit = _unit([row["memory_bytes"] for row in rows])
  parts = dict.fromkeys(part for row in rows for part in row["memory"])
  memory = {part: [row["memory"].get(part, 0) / much for row in rows] for part in parts}
  panels = (
    (f"sent by a device, {sent_unit} an update", sent),
    (f"memory of a device, {memory_unit}", {part: sizes for part, sizes in memory.items() if any(sizes)}),
    ("compile, s", {"": [row["compile_s"] for row in rows]}),
  )
  for place, (title, parts) in enumerate(panels):
    axes = figure.add_subplot(1, 3, place + 1)
    _stacked(axes, parts, len(rows))
    axes.set_yticks(range(len(rows)), labels if not place else [""] * len(rows))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(title=title)
    if any(parts):
      axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8)
  return figure


def _unit(sizes: Sequence[float]) -> tuple[float, str]:
  """(bytes of it, its name) of the greatest unit that the greatest size has two of."""
  return next((unit for unit in _UNITS if max(sizes) >= 2 * unit[0]), _UNITS[-1])


def _label(row: Row) -> str:
  return "one device" if row["devices"] == 1 else f"{row['strategy']}, {row['mesh']}"


def _stacked(axes, parts: Mapping[str, Sequence[float]], count: int) -> None:
  left = [0.0] * count
  for order, (part, sizes) in enumerate(parts.items()):
    axes.barh(range(count), sizes, left=left, color=pictures.COLOURS[order], label=part, height=0.72)
    left = [a + b for a, b in zip(left, sizes, strict=True)]


def compiled_figure(rows: Sequence[Row]):
  """Of compiled points: the least time of an update, the share of the peak at it, and what a chip sends and holds."""
  figure = pictures.new_figure(11.4, 0.36 * len(rows) + 1.6)
  labels = [f"{row['topology']} {row['strategy']}, {row['mesh']}" for row in rows]
  much, memory_unit = _unit([row["memory_bytes"] for row in rows])
  many, sent_unit = _unit([row["sent_bytes"] for row in rows])
  bounds = dict(zip(("compute", "memory", "network"), pictures.COLOURS, strict=False))
  panels = (
    ("step at least, ms", [row["estimate_ms"] for row in rows]),
    ("share of the peak, %", [100 * (row["predicted_mfu"] or 0.0) for row in rows]),
    (f"memory of a chip, {memory_unit}", [row["memory_bytes"] / much for row in rows]),
    (f"sent by a chip, {sent_unit}", [row["sent_bytes"] / many for row in rows]),
  )
  for place, (title, values) in enumerate(panels):
    axes = figure.add_subplot(1, 4, place + 1)
    axes.barh(range(len(rows)), values, color=[bounds[row["bound"]] for row in rows], height=0.72)
    axes.set_yticks(range(len(rows)), labels if not place else [""] * len(rows))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(title=title)
  from matplotlib.patches import Patch

  handles = [Patch(color=colour, label=f"bound by {bound}") for bound, colour in bounds.items()]
  figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
  return figure


def _count_axis(axes, counts: Sequence[int]) -> None:
  axes.set_xscale("log", base=2)
  axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
  axes.set_xticks(counts, [f"{count:,}" for count in counts])
  axes.set_xticks([], minor=True)


def _number_axis(axes) -> None:
  from matplotlib.ticker import LogLocator

  axes.set_yscale("log")
  low, high = axes.get_ylim()
  axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
  axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.6g}")
  axes.yaxis.set_minor_formatter(lambda _value, _place: "")
