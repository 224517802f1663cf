"""A run directory has one owner: one experiment's flags, and one process at a time. Anything else is refused here."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments import flags
from experiments.schema import Experiment
from research import selection
from research.checkpoint import is_step
from research.errors import UserError
from research.parsing import parse_json
from research.report import record as lines
from research.report.atomic import cannot_write, write_atomically

CHANGES = "changes"  # in run.json: flags that --allow_change has let differ, and from which update on


@dataclasses.dataclass(frozen=True)
class Difference:
  """A flag that a run was started with and is now asked to have another value."""

  name: str
  there: str
  here: str

  def __str__(self) -> str:
    return f"--{self.name}={self.there} there, {self.here} here"


@contextlib.contextmanager
def owned(workdir: Path, name: str, config: Experiment, allowed: Sequence[str] = ()) -> Iterator[None]:
  """Makes the directory, or checks that it is this experiment's, and keeps other processes out of it meanwhile.

  A directory that nothing was put into is taken away again: a misspelt dataset leaves no empty run behind.

  Raises:
    UserError: it is in use, cannot be written, holds something else, or was started with other flags than these, of
      which `allowed` may differ.
  """
  existed = workdir.exists()
  try:
    if existed and not workdir.is_dir():
      raise UserError(f"run: {workdir} is a file; give another --workdir")
    if existed and not (workdir / "run.flags").exists() and any(each.name != "lock" for each in workdir.iterdir()):
      raise UserError(f"run: {workdir} holds files that are no run's; give another --workdir")
    if existed and (workdir / "run.flags").exists():
      _check_flags(workdir, name, config, allowed)
  except OSError as error:
    raise cannot_write(workdir, error) from error
  with locked(workdir, "run"):
    try:
      yield
    finally:
      if not existed and [each.name for each in workdir.iterdir()] == ["lock"]:
        (workdir / "lock").unlink()
        workdir.rmdir()


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
  """Makes a folder and keeps other processes out of it meanwhile. Raises UserError, as `what`, where one is in it."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "a")  # noqa: SIM115  it is held as long as the run
  except OSError as error:
    raise cannot_write(folder, error) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(f"{what}: another process is using {folder}; wait for it, or give another --workdir") from error
    yield


def claim(workdir: Path, name: str, config: Experiment, *, changed: bool = False) -> None:
  """Writes run.flags, which makes the directory this experiment's; anew where flags have `changed`."""
  if changed:
    (workdir / "result.json").unlink(missing_ok=True)  # of a finished run that goes on as another
  if changed or not (workdir / "run.flags").exists():
    write_atomically(workdir / "run.flags", f"# experiment: {name}\n{flags.to_text(config)}")


def experiment_of(workdir: Path) -> str | None:
  """The name in a run's first line; None for a flag file of another make."""
  try:
    first = (workdir / "run.flags").read_text(encoding="utf-8").partition("\n")[0]
  except (OSError, UnicodeDecodeError):
    return None
  return first.removeprefix("# experiment: ") if first.startswith("# experiment: ") else None


def differing(workdir: Path, config: Experiment) -> list[Difference]:
  """The flags of `config` that change the curve and are not those of the run."""
  schema = type(config)
  try:
    theirs = flags.values(flags.parse(schema, flags.read_lines(workdir / "run.flags"))[0])
  except UserError as error:
    raise UserError(
      f"run: {workdir / 'run.flags'} is damaged, or another version's ({error}); give another --workdir"
    ) from error
  return differences({name: flags.write_value(value) for name, value in theirs.items()}, config)


def differences(theirs: Mapping[str, str], config: Experiment) -> list[Difference]:
  """The flags of `config` that change the curve and are others in `theirs`, values as in a flag file.

  One that `theirs` does not know came with a later version, and had its default value until then.
  """
  ours, defaults = flags.values(config), flags.values(type(config)())
  pairs = [
    Difference(
      leaf.name,
      theirs.get(leaf.name, flags.write_value(defaults[leaf.name])),
      flags.write_value(ours[leaf.name]),
    )
    for leaf in flags.leaves(type(config))
    if leaf.changes_curve
  ]
  return [pair for pair in pairs if pair.there != pair.here]


def table(found: Sequence[Difference]) -> list[str]:
  """Two columns: what is there, and what is here."""
  rows = [("", "there", "here"), *((f"--{each.name}", each.there or '""', each.here or '""') for each in found)]
  widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
  return [f"  {name:<{widths[0]}}  {there:<{widths[1]}}  {here}".rstrip() for name, there, here in rows]


def refuse(what: str, found: Sequence[Difference]) -> None:
  """Raises UserError where there are differences."""
  if found:
    names = ",".join(each.name for each in found)
    raise UserError(
      f"run: {what} belongs to another experiment: {len(found)} {'flags differ' if len(found) > 1 else 'flag differs'};"
      f" give another --workdir, or --allow_change={names} to go on with {'these' if len(found) > 1 else 'this one'}",
      table(found),
    )


def write_record(workdir: Path, record: Mapping, changes: Sequence[Mapping] = ()) -> None:
  """run.json: rewritten at each start, the first start's time, every command and what was changed kept."""
  path = workdir / "run.json"
  earlier = read_record(workdir)
  start = {"time": record["started"], "command": record["command"]}
  starts = [*earlier.get("starts", []), start]
  if changes := [*earlier.get(CHANGES, []), *changes]:
    record = {**record, CHANGES: changes}
  write_atomically(path, json.dumps({**record, "started": starts[0]["time"], "starts": starts}, indent=2) + "\n")


def add_to_record(workdir: Path, facts: Mapping) -> None:
  """Adds to run.json what is known later."""
  write_atomically(workdir / "run.json", json.dumps({**read_record(workdir), **facts}, indent=2) + "\n")


def read_record(workdir: Path) -> dict:
  """run.json, or {} where there is none yet."""
  try:
    found = parse_json((workdir / "run.json").read_text(encoding="utf-8"))
    kinds = {"starts": list, CHANGES: list, "judge": dict}
    if not isinstance(found, dict):
      raise ValueError("it is no JSON object")
    if not all(isinstance(found.get(name, kind()), kind) for name, kind in kinds.items()):
      raise ValueError("it is not what a run writes")
    return found
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"run: {workdir}/run.json is damaged ({error}); delete it or give another --workdir") from error


def check_kept(workdir: Path, record: Mapping, about: Mapping[str, str]) -> None:
  """Raises UserError where what a run keeps beside its checkpoints is not what run.json, the `record`, says of it."""
  for name, value in about.items():
    if record.get(name, value) != value:
      raise UserError(f"run: the {name} in {workdir} is not the one that it was started with; put that one back")


def best_metric(workdir: Path) -> str:
  """--run.best_metric of the run, "" where it has none."""
  found = [line.partition("=")[2] for line in flags.read_lines(workdir / "run.flags") if "--run.best_metric=" in line]
  return found[-1] if found else ""


def has_checkpoint(workdir: Path) -> bool:
  """Whether there is one: nothing else has a step's number."""
  return any(is_step(path.name) for path in (workdir / "checkpoints").glob("*"))


def judged_steps(workdir: Path, metric: str, steps: Sequence[int]) -> list[int]:
  """A run's checkpoints, first the one to judge it by: the best by `metric`, where it has one, else the newest."""
  steps = sorted(steps, reverse=True)
  if metric and (workdir / "metrics.jsonl").exists():
    best = selection.best(metric, selection.from_records(metric, lines.read(workdir / "metrics.jsonl")))
    if best and best[0] in steps:
      return [best[0], *(step for step in steps if step != best[0])]
  return steps


def read_result(workdir: Path) -> dict | None:
  """result.json of a finished run, or None where there is none that can be read."""
  try:
    found = parse_json((workdir / "result.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
    for value in (found["step"], *found["metrics"].values()):
      lines.number(value)
    return found
  return None


def _check_flags(workdir: Path, name: str, config: Experiment, allowed: Sequence[str]) -> None:
  owner = experiment_of(workdir)
  if owner not in (None, name):
    raise UserError(f"run: {workdir} belongs to experiments.{owner}, not experiments.{name}; give another --workdir")
  if not flags.read_lines(workdir / "run.flags"):
    raise UserError(f"run: {workdir / 'run.flags'} is damaged: it has no flags; put it back, or give another --workdir")
  refuse(str(workdir), [each for each in differing(workdir, config) if each.name not in allowed])
