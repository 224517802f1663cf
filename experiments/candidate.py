"""What --metrics.features names: a run's directory, or EXPERIMENT:PRESET, whose run stands beside the asking one.

It looks up and refuses; `judge.py` opens and trains.
"""

import dataclasses
import importlib
import os
from pathlib import Path

from experiments import command, flags, run_directory
from experiments.command import Definition, Request
from experiments.schema import Data
from research.errors import UserError
from research.nearest import hint

EITHER = "a run's directory, or EXPERIMENT:PRESET such as cnn:digits"


@dataclasses.dataclass(frozen=True)
class Candidate:
  """An experiment, and the request that has trained it or would.

  Attributes:
    trains: whether it is a preset, which is trained where there is no finished run of it.
  """

  value: str
  definition: Definition
  request: Request
  trains: bool


def find(value: str, *, workdir: Path, data: Data) -> Candidate:
  """Looks up --metrics.features=`value`; opens no data and writes nothing.

  Args:
    value: a run's directory, or EXPERIMENT:PRESET.
    workdir: the asking run's; a preset's run stands beside it.
    data: the asking run's flags; a preset takes `dir` and `cache_dir` from them.

  Raises:
    UserError: there is no such run, experiment or preset; another run stands in the preset's place; or it is itself a
      run that asks for a judge, and no classifier.
  """
  path = Path(value).expanduser()
  name, colon, preset = value.partition(":")
  if os.path.isdir(path):  # Path's own raises for a name that is too long
    name = run_directory.experiment_of(path)
    if name not in experiments():
      raise UserError(f"metrics: --metrics.features={value} is no run's directory: it has no run.flags of Flagship's")
    found = Candidate(value, _definition(name), _read_run(name, path), trains=False)
  elif not colon or "/" in name:
    near = hint(path.name, [run_flags.parent.name for run_flags in path.parent.glob("*/run.flags")])
    raise UserError(f"metrics: there is no run {value[:200]!r}{near}; --metrics.features takes {EITHER}")
  elif name not in experiments():
    raise UserError(f"metrics: --metrics.features={value} names no experiment{hint(name, experiments())}")
  elif preset not in (presets := command.presets(_definition(name))):
    raise UserError(f"metrics: --metrics.features={value} names no preset of experiments.{name}{hint(preset, presets)}")
  else:
    found = Candidate(value, _definition(name), _read_preset(name, preset, workdir, data), trains=True)
    _check_flags(found)
  if "metrics.features" in flags.values(found.request.config):  # to load it would be to open its own judge
    raise no_classifier(value, f"experiments.{name} is judged itself")
  return found


def experiments() -> list[str]:
  """The names of all experiments."""
  return sorted(path.parent.name for path in Path(__file__).parent.glob("*/__main__.py"))


def no_classifier(value: str, why: str) -> UserError:
  """The line for a run that cannot be a judge."""
  return UserError(f"metrics: --metrics.features={value} is no classifier; {why}; it takes {EITHER}")


def _definition(name: str) -> Definition:
  return importlib.import_module(f"experiments.{name}.__main__").EXPERIMENT


def _read_run(name: str, path: Path) -> Request:
  return command.read(_definition(name), [f"--config={path / 'run.flags'}"])


def _read_preset(name: str, preset: str, workdir: Path, data: Data) -> Request:
  """The preset's request, in the directory of its default name beside `workdir`."""
  places = {"dir": data.dir, "cache_dir": data.cache_dir}
  arguments = [f"--config={preset}", *(f"--data.{flag}={place}" for flag, place in places.items() if place)]
  named = command.read(_definition(name), arguments).workdir.name
  return command.read(_definition(name), [*arguments, f"--workdir={workdir.parent / named}"])


def _check_flags(found: Candidate) -> None:
  """Raises UserError where the preset's directory is a run of other flags: its features would not be the preset's."""
  workdir, name = found.request.workdir, found.definition.name
  if not (workdir / "run.flags").exists():
    return
  advice = f"--metrics.features={workdir} takes it as it is"
  if (owner := run_directory.experiment_of(workdir)) != name:
    raise UserError(f"metrics: {workdir}, the place of {found.value}, is a run of experiments.{owner}; {advice}")
  ours, theirs = (flags.values(each.config) for each in (found.request, _read_run(name, workdir)))
  names = [leaf.name for leaf in flags.leaves(found.definition.schema) if leaf.changes_curve]
  if differing := [f"--{each}={flags.write_value(theirs[each])}" for each in names if ours[each] != theirs[each]]:
    raise UserError(f"metrics: {workdir} is not {found.value}: it has {', '.join(differing)}; {advice}")
