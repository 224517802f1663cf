"""What more devices give: a step is compiled and timed on each number of them, by each strategy.

  python -m launch.scaling devices --experiment=gpt --config=stdlib --devices=1,2,4,8 --strategies=dp,fsdp,tp
  python -m launch.scaling devices --experiment=gpt --config=stdlib --mode=weak --devices=1,2,4,8
  python -m launch.scaling devices --experiment=gpt --config=stdlib --topology=v5e:4x4,v5e:8x8

Every point is a process of its own. With --topology the points are compiled for chips that are not here, and nothing is
timed. Flags that are not the study's own go to every point. The same command goes on where it was stopped.
"""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command, flags
from experiments.manual import flag_lines
from experiments.schema import flag
from launch.experiment import find
from launch.scaling import device_table, estimates, meshes, points
from research.errors import UserError
from research.parallel.tables import STRATEGIES

MODES = ("strong", "weak")


@dataclasses.dataclass(frozen=True)
class Devices:
  """The study's own flags"""

  experiment: str = flag("gpt", "whose step: a folder of experiments/")
  devices: str = flag("1,2,4,8", "numbers of devices, with commas between them")
  strategies: str = flag("dp,fsdp,tp", "by which each is used: " + ", ".join(STRATEGIES))
  meshes: str = flag("", "meshes instead of --devices, for each strategy: data:8;data:4,model:2")
  mode: str = flag("strong", "the same batch for all, or one that grows with the devices", choices=MODES)
  topology: str = flag("", "compile for these instead, as in v5e:4x4,v5e:8x8,v5e:16x16")
  python: str = flag("", "the interpreter of compiled points, where libtpu is; empty: this one")
  groups: int = flag(5, "timed groups of updates of a point", low=1)
  seconds: float = flag(5.0, "of timing at least, in all groups of a point together", low=0.0)
  rounds: int = flag(1, "how often the points are gone through; a point's numbers are of all its rounds", low=1)
  timeout: float = flag(0.0, "the longest that a point may take, in seconds; 0: as long as it likes", low=0.0)
  workdir: str = flag("", "where points and logs are kept; empty: runs/devices-EXPERIMENT-MODE; --topology: compiled-…")
  report: str = flag("", "where tables and pictures go; empty: --workdir")
  retry: bool = flag(False, "run again what failed")

  def check(self) -> None:
    """Raises UserError for what no study can be made of."""
    for strategy in self.strategy_names:
      if strategy not in STRATEGIES:
        raise UserError(f"scaling: no strategy {strategy!r} in --strategies; there are {', '.join(STRATEGIES)}")
    if not self.meshes and not self.topology:
      for count in self.devices.split(","):
        if not (count.strip().isascii() and count.strip().isdigit() and int(count)):
          raise UserError(f"scaling: --devices={self.devices} are no numbers of devices, as in 1,2,4,8")
    if self.meshes and self.topology:
      raise UserError("scaling: --meshes and --topology are both given; --parallel.mesh=… is for all points")

  @property
  def strategy_names(self) -> list[str]:
    return [each.strip() for each in self.strategies.split(",")]

  @property
  def folder(self) -> Path:
    kind = "compiled" if self.topology else "devices"
    return Path(self.workdir or f"runs/{kind}-{self.experiment}-{self.mode}").expanduser()


def main(arguments: Sequence[str]) -> int:
  """Runs the study. Raises UserError for flags that are wrong."""
  if set(command.HELP) & set(arguments) or not arguments:
    print(help_text())
    return 0
  rest, own = command.split_off(Devices, arguments)
  study, _ = flags.parse(Devices, own)
  check_used(study, flags.typed(Devices, own))
  wanted = [again(point, place) for place in range(1, study.rounds + 1) for point in plan(study, rest)]
  report = Path(study.report).expanduser() if study.report else study.folder
  check_kind(study)
  rows = points.run_all(wanted, study.folder, found, say=say, retry=study.retry, timeout_s=study.timeout or None)
  rows = device_table.with_efficiency(device_table.in_one(estimates.by_one_machine(rows)))
  for path in device_table.write(report, rows, " ".join(["python -m launch.scaling devices", *arguments])):
    say(str(path))
  return 0


def check_used(study: Devices, typed: Sequence[str]) -> None:
  """Raises UserError for a flag of the study that stands in the command and would change nothing."""
  for each in typed:
    value = f"scaling: --{each}={flags.write_value(getattr(study, each))}"
    if each == "devices" and (study.meshes or study.topology):
      other = "--meshes" if study.meshes else "--topology"
      raise UserError(f"{value} and {other} are both given; {other} says how many devices there are")
    if each in ("groups", "seconds", "rounds") and study.topology:
      raise UserError(f"{value} is how points are timed; those of --topology are compiled and not timed")
    if each == "python" and not study.topology:
      raise UserError(f"{value} is the interpreter of compiled points, with --topology; others run by this one")


def check_kind(study: Devices) -> None:
  """Raises UserError where the directory's points were measured and these are to be compiled, or the other way round:
  they would share its tables."""
  ours = "compiled" if study.topology else "measured"
  for row in points.read(study.folder / points.FILE):
    if (theirs := row.get("kind", ours)) != ours:
      raise UserError(
        f"scaling: the points of {study.folder} were {theirs}, and {'with' if study.topology else 'without'} --topology"
        f" they are {ours}; give another --workdir"
      )


def plan(study: Devices, rest: Sequence[str]) -> list[points.Point]:
  """The study's points. Raises UserError where the experiment's flags are wrong, whatever the devices."""
  definition = find(study.experiment)
  typed = flags.typed(definition.schema, rest)
  if "parallel.strategy" in typed:
    raise UserError("scaling: --parallel.strategy is each point's own; --strategies=… names those of the study")
  if "parallel.mesh" in typed and not study.topology:
    raise UserError("scaling: --parallel.mesh is each point's own; --meshes=… names those of the study")
  strategy = "pp" if "pp" in study.strategy_names else study.strategy_names[0]
  request = command.read(definition, [*rest, f"--parallel.strategy={strategy}", "--workdir=none"])
  if request.word != "train":
    raise UserError(f"scaling: {request.word} is no word of a study; the flags of a run are")
  config, made = request.config, {}
  fixed = config.parallel.mesh
  if study.topology:
    for topology in (each.strip() for each in study.topology.split(",")):
      for strategy in study.strategy_names:
        mesh = fixed or meshes.automatic(strategy, meshes.chips(topology), config)
        point = _compiled(study, rest, config, topology, strategy, mesh)
        made[point.name] = point
    return list(made.values())
  if study.meshes:
    wanted = [(strategy, mesh.strip()) for mesh in study.meshes.split(";") for strategy in study.strategy_names]
  else:
    # One device has nothing to divide: its point is every strategy's first.
    counts = [int(count) for count in study.devices.split(",")]
    wanted = [
      (strategy, fixed or meshes.automatic(strategy, count, config))
      for count in counts
      for strategy in (study.strategy_names if count > 1 else ["dp"])
    ]
  for strategy, mesh in wanted:
    point = _measured(study, rest, config, strategy, mesh)
    made[point.name] = point
  return list(made.values())


def again(point: points.Point, place: int) -> points.Point:
  """The point in that round; compiling once is enough."""
  if place == 1 or point.about["kind"] == "compiled":
    return point
  return dataclasses.replace(point, name=f"{point.name}-round{place}", about={**point.about, "again": point.name})


def _measured(study: Devices, rest: Sequence[str], config: Any, strategy: str, mesh: str) -> points.Point:
  count = meshes.size(mesh)
  about = _about(study, config, strategy, mesh, count)
  words = [
    sys.executable, "-m", "launch.scaling.point", f"--experiment={study.experiment}", f"--devices={count}",
    f"--groups={study.groups}", f"--seconds={study.seconds:g}", *_flags(rest, about),
  ]  # fmt: skip
  return points.Point(f"{count}-{_safe(mesh)}-{strategy}", tuple(words), about={"kind": "measured", **about})


def _compiled(
  study: Devices, rest: Sequence[str], config: Any, topology: str, strategy: str, mesh: str
) -> points.Point:
  about = _about(study, config, strategy, mesh, meshes.chips(topology))
  words = [
    study.python or sys.executable, "-m", f"experiments.{study.experiment}", "preflight", *_flags(rest, about),
    f"--topology={topology}", "--json",
  ]  # fmt: skip
  name = f"{_safe(topology)}-{_safe(mesh)}-{strategy}"
  return points.Point(name, tuple(words), about={"kind": "compiled", "topology": topology, **about})


def _about(study: Devices, config: Any, strategy: str, mesh: str, count: int) -> dict[str, Any]:
  batch = config.data.batch_size * (count if study.mode == "weak" else 1)
  found = {"devices": count, "mesh": mesh, "strategy": strategy, "mode": study.mode, "batch": batch}
  if config.parallel.micro_batches and strategy != "pp":  # they are a pipeline's, and no other point takes them
    found["parts"] = 0
  return found


def _flags(rest: Sequence[str], about: Mapping[str, Any]) -> list[str]:
  names = {"data.batch_size": "batch", "parallel.mesh": "mesh", "parallel.strategy": "strategy",
           "parallel.micro_batches": "parts"}  # fmt: skip
  return [*rest, *(f"--{name}={about[key]}" for name, key in names.items() if key in about)]


def _safe(text: str) -> str:
  return re.sub(r"[^\w.\-]", "_", text.replace(":", ""))


def found(point: points.Point, printed: str) -> dict[str, Any]:
  """What a point's JSON says, as the numbers of a row. Raises ValueError where there is none."""
  told = json.loads(printed[printed.index("{") :])
  facts = told["facts"] if point.about["kind"] == "measured" else told
  extra = {key: told[key] for key in ("peak", "others") if told.get(key) is not None}
  return device_table.numbers(facts, told.get("seconds", []), point.about) | extra


def say(line: str) -> None:
  print(line, flush=True)


def help_text() -> str:
  width = min(shutil.get_terminal_size().columns, 120)
  lines = [line for leaf in flags.leaves(Devices) for line in flag_lines(leaf, leaf.field.default, width)]
  return "\n".join([__doc__.strip(), "", *lines])
