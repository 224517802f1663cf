"""Trains an experiment over values of some flags, a run for each, and says which was best.

  python -m launch.sweep --experiment=mlp --config=digits --workdir=sweeps/digits --data.validation_fraction=0.1
      --metric=validation/accuracy --over='optim.learning_rate=1e-3,3e-3,1e-2' --over='model.widths=64;128,128'
  … --method=tpe --trials=30 --over='optim.learning_rate=log:1e-4..1e-1' --over='model.dropout=0..0.5'

A value of --over is one of some (with commas, or with ; between them), or lies in a range (LOW..HIGH, log:LOW..HIGH).
Flags that are not the sweep's own go to every run. The same command goes on where it was stopped or killed.
"""

import dataclasses
import difflib
import json
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command, flags
from experiments.manual import flag_lines
from experiments.run_directory import locked
from experiments.schema import flag
from launch.experiment import find
from launch.sweep import grammar, running, table
from launch.sweep.study import METHODS, PRUNING, Study, choice, name
from research.errors import UserError
from research.report.atomic import write_atomically
from research.signals import StopRequest
from research.streams import say_what_can_be_said

DONE, STOPPED = 0, 75
_KNOWN = {"lock", "runs", "logs"}  # what a sweep's directory may hold before it is one
_SPLITS = ("validation", "generated", "train", "test")
_MOST = 10_000  # trials of a grid


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The sweep's own flags"""

  experiment: str = flag("", "whose runs: a folder of experiments/")
  workdir: str = flag("", "the sweep's directory, with runs/, tables and pictures")
  over: str = flag("", "FLAG=VALUES, once for each flag that is swept; in quotes, for the shell's sake")
  method: str = flag("grid", "every combination, or values drawn at random, or by Optuna's TPE", choices=METHODS)
  trials: int = flag(20, "runs, where values are drawn; a greater number goes on with the same sweep", low=1)
  metric: str = flag("validation/loss", "what trials are compared by, at each one's best evaluation")
  prune: str = flag("none", "rule by which early evaluations end a trial", choices=PRUNING)
  prune_after: int = flag(1, "the first evaluation at which a trial may end", low=1)
  sweep_seed: int = flag(0, "seed of the values that are drawn; --seed is that of the runs", low=0, high=2**32 - 1)
  jobs: int = flag(1, "runs at a time", low=1)
  places: str = flag("", "environments of the runs at a time, as in CUDA_VISIBLE_DEVICES=0;CUDA_VISIBLE_DEVICES=1")
  python: str = flag("", "the interpreter of the runs; empty: this one")
  print: bool = flag(False, "print the runs' commands, a line each, for any engine, and start nothing")
  collect: bool = flag(False, "take the results of runs that were started elsewhere, and start nothing")
  retry: bool = flag(False, "run again what failed")

  def check(self) -> None:
    """Raises UserError for what no sweep can be made of."""
    if not self.experiment or not self.workdir:
      raise UserError("sweep: --experiment and --workdir are needed: --experiment=mlp --workdir=sweeps/mlp")
    if self.print and self.collect:
      raise UserError("sweep: --print and --collect are both given; print first, collect when the runs have ended")
    if self.print and self.method == "tpe":
      raise UserError("sweep: --method=tpe draws by results, so there are no commands to print; grid and random have")
    split, _, measure = self.metric.partition("/")
    if not split or not measure:
      raise UserError(f"sweep: --metric={self.metric} is no SPLIT/NAME, such as validation/{self.metric.strip('/')}")
    if split not in _SPLITS and (near := difflib.get_close_matches(split, _SPLITS, 1, 0.75)):  # a judge may have others
      raise UserError(f"sweep: --metric={self.metric} is of no split (did you mean {near[0]}/{measure}?)")
    if split == "test":
      raise UserError(
        f"sweep: --metric={self.metric} would choose by data that judge the choice; choose by validation/…, with"
        " --data.validation_fraction=0.1"
      )
    for each in self.environments:
      if any(not key for key in each):
        raise UserError(f"sweep: --places={self.places} is not VARIABLE=VALUE, with ; between places")
    if self.places and self.jobs not in (1, len(self.environments)):
      raise UserError(f"sweep: --jobs={self.jobs} and --places of {len(self.environments)}; leave --jobs out")

  @property
  def environments(self) -> list[dict[str, str]]:
    """What the runs of each place have in their environment, beside ours."""
    if not self.places:
      return [{}] * self.jobs
    pairs = [each.strip().partition("=") for each in self.places.split(";")]
    return [{key: value} if equals else {"": value} for key, equals, value in pairs]


@dataclasses.dataclass(frozen=True)
class Request:
  """A sweep that is known to be possible: each of its trials' flags has been read."""

  options: Sweep
  space: list[grammar.Swept]
  rest: tuple[str, ...]  # flags of every run
  about: dict[str, Any]  # what makes it this sweep and no other

  @property
  def folder(self) -> Path:
    return Path(self.options.workdir).expanduser()

  def command(self, trial: Any) -> list[str]:
    """A trial's whole command line."""
    options = self.options
    swept = [f"--{each}={value}" for each, value in choice(trial).items()]
    run = f"--workdir={self.folder / 'runs' / name(trial)}"
    return [options.python or sys.executable, "-m", f"experiments.{options.experiment}", *self.rest, *swept, run]


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a sweep and returns its exit code. A UserError is one line on stderr and 2."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  say_what_can_be_said(sys.stdout, sys.stderr)
  try:
    if not arguments or set(command.HELP) & set(arguments):
      print(help_text())
      return DONE
    return run(read(arguments))
  except UserError as error:
    print(" ".join(str(error).split("\n")), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped; the same command goes on", file=sys.stderr)
    return STOPPED
  except Exception:
    traceback.print_exc()
    return 1


def read(arguments: Sequence[str]) -> Request:
  """Command line → request. Raises UserError for anything that is wrong with it, or with any trial's flags."""
  rest, own = command.split_off(Sweep, arguments)
  over = [each.partition("=")[2] for each in own if each.startswith("--over=")]
  options, _ = flags.parse(Sweep, own)
  if not over:
    raise UserError("sweep: there is no --over; give one for each flag, as in --over='optim.learning_rate=1e-3,1e-2'")
  _check_used(options, flags.typed(Sweep, own))
  definition = find(options.experiment)
  space = grammar.parse(definition.schema, over)
  if twice := [each.flag for each in space if each.flag in flags.typed(definition.schema, rest)]:
    raise UserError(f"sweep: --{twice[0]} is swept by --over and given as well; give it in one of them")
  base = _check(definition, options, rest, {})
  drawn = options.method != "grid"
  for count, each in enumerate(grammar.corners(space) if drawn else grammar.grid(space), start=1):
    if count > _MOST:
      raise UserError(f"sweep: the grid has more than {_MOST:,} combinations; draw from them with --method=random")
    _check(definition, options, rest, each)
  theirs = {leaf.name for leaf in flags.leaves(definition.schema) if leaf.changes_curve}
  swept = {each.flag for each in space}
  about = {
    "experiment": options.experiment,
    "over": over,
    **{each: getattr(options, each) for each in ("method", "metric", "prune", "prune_after", "sweep_seed")},
    "flags": {
      each: flags.write_value(value) for each, value in flags.values(base).items() if each in theirs - swept
    },
  }
  return Request(options, space, tuple(rest), about)


def _check_used(options: Sweep, typed: Sequence[str]) -> None:
  """Raises UserError for a flag that stands in the command and would change nothing."""
  drawn = "which is every combination; --method=random and tpe draw"
  for each, idle, why in (
    ("trials", options.method == "grid", f"--method=grid, {drawn}"),
    ("sweep_seed", options.method == "grid", f"--method=grid, {drawn}"),
    ("prune_after", options.prune == "none", "--prune=none; --prune=median or halving prunes"),
  ):
    if idle and each in typed:
      raise UserError(f"sweep: --{each}={getattr(options, each)} is nothing for {why}")


def _check(definition: command.Definition, options: Sweep, rest: Sequence[str], each: Mapping[str, str]) -> Any:
  """A trial's config. Raises UserError where its flags are wrong; what is wrong with all is told as such."""
  swept = [f"--{flag}={value}" for flag, value in each.items()]
  try:
    request = command.read(definition, [*rest, *swept, f"--workdir={options.workdir}"])
  except UserError as error:
    said = re.sub(r"^\w+: ", "", str(error))  # it is the sweep that says it
    named = any(said.startswith(each) for each in swept)
    raise UserError(f"sweep: {said}" if named or not swept else f"sweep: {' '.join(swept)}: {said}") from error
  if request.word != "train":
    raise UserError(f"sweep: {request.word} is no training; a sweep trains")
  return request.config


def run(request: Request) -> int:
  """Does what the flags say; returns the exit code."""
  options, folder = request.options, request.folder
  check_folder(folder, request.about)
  with locked(folder, "sweep"), StopRequest() as stop:
    study = Study(
      folder, request.space, method=options.method, trials=options.trials, metric=options.metric,
      prune=options.prune, prune_after=options.prune_after, seed=options.sweep_seed,
    )  # fmt: skip
    write_atomically(folder / "sweep.json", json.dumps(request.about, indent=1) + "\n")
    if options.retry and (again := study.retry()):
      say(f"{again} that failed {'is' if again == 1 else 'are'} run again")
    if options.print:
      return _print(request, study)
    try:
      if options.collect:
        ended = _collect(request, study)
      else:
        ended = running.Local(study, folder, request.command, options.metric, options.environments, say).run(stop)
    except running.NoSuchMetric as error:
      if study.scored:
        raise
      study.forget()
      (folder / "sweep.json").unlink()
      raise UserError(f"{error}; the same command with another --metric goes on with the runs there are") from error
    conclude(request, study)
  return DONE if ended or options.collect else STOPPED


def check_folder(folder: Path, about: Mapping[str, Any]) -> None:
  """Raises UserError where the directory is another sweep's, or no sweep's."""
  known = table.read_about(folder / "sweep.json")
  if not known:
    if folder.exists() and (not folder.is_dir() or any(each.name not in _KNOWN for each in folder.iterdir())):
      raise UserError(f"sweep: {folder} holds files that are no sweep's; give another --workdir")
    return
  theirs, ours = ({**each, **each.get("flags", {}), "flags": None} for each in (known, about))
  for each in dict.fromkeys([*theirs, *ours]):
    if theirs.get(each) != ours.get(each):
      there, here = (_said(values.get(each)) for values in (theirs, ours))
      raise UserError(
        f"sweep: {folder} belongs to another sweep (--{each}={there} there, {here} here); give another --workdir"
      )


def _said(value: Any) -> str:
  return " ".join(value) if isinstance(value, list) else str(value)


def _print(request: Request, study: Study) -> int:
  while (trial := study.next()) is not None:
    print(shlex.join(request.command(trial)))
  return DONE


def _collect(request: Request, study: Study) -> bool:
  """Takes the results of what has ended; whether all have."""
  ended = True
  while (trial := study.next()) is not None:
    path = request.folder / "runs" / name(trial)
    values = [value for _, value in running.evaluations(path, request.options.metric)]
    study.report(trial, values)
    ended &= (path / "result.json").exists() and (study.done(trial, values) or True)
  return ended


def conclude(request: Request, study: Study) -> None:
  """Tables and pictures of what there is."""
  folder, metric = request.folder, request.options.metric
  rows = table.rows(study.newest(), folder, metric)
  table.write(folder, rows, request.about)
  made = [folder / "table.md", folder / "table.csv"]
  try:
    from launch.sweep import plots

    made += plots.write(folder, rows, request.space, metric)
  except ImportError as error:
    say(f"no pictures: {error}")
  counts = {state: sum(row["state"] == state for row in rows) for state in table.STATES.values()}
  say(", ".join(f"{count} {state}" for state, count in counts.items() if count))
  if rows and rows[0]["value"] is not None:
    best = rows[0]
    swept = " ".join(f"--{each}={value}" for each, value in best["flags"].items())
    so_far = "" if best["state"] == "done" else " so far"
    told = f"{metric} {best['value']:.6g} at step {best['best_step']:,}"
    say(f"best{so_far}: {best['name']}, {told}: {swept}")
  say(" ".join(map(str, made)))


def say(line: str) -> None:
  print(line, flush=True)


def help_text() -> str:
  width = min(shutil.get_terminal_size().columns, 120)
  lines = [line for leaf in flags.leaves(Sweep) for line in flag_lines(leaf, leaf.field.default, width)]
  return "\n".join([__doc__.strip(), "", *lines])


if __name__ == "__main__":
  sys.exit(main())
