"""Trials as processes of this machine: some at a time, watched as they evaluate, pruned by SIGTERM, stopped with us.

A trial is the experiment's own command, so it saves when it is stopped and goes on when it is started again. What a
trial came to is read from its run directory; how it ended, from its exit code.
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.sweep.study import Study, name
from research import selection
from research.errors import UserError
from research.nearest import hint
from research.report import record
from research.report.atomic import cannot_write

if TYPE_CHECKING:
  import optuna

AGAIN = (75, 77)  # what a launcher starts again (DESIGN: Exit codes)
_POLL = 0.3  # seconds


@dataclasses.dataclass
class Running:
  """A trial under way in one of the places; `process` is None where another process has its directory."""

  trial: "optuna.Trial"
  place: int
  process: subprocess.Popen | None
  pruned: bool = False


@dataclasses.dataclass
class Local:
  """Runs a study's trials here.

  Attributes:
    study: which trials there are.
    folder: the sweep's; runs are in runs/NAME, what they print in logs/NAME.log.
    command: trial → its command line.
    metric: what is watched.
    environments: for each of the places, what its trials have in their environment.
    say: is told a line for each beginning and end.
  """

  study: Study
  folder: Path
  command: Callable[["optuna.Trial"], Sequence[str]]
  metric: str
  environments: Sequence[Mapping[str, str]]
  say: Callable[[str], None]

  def run(self, stop: Callable[[], bool]) -> bool:
    """Runs trials until there is none left, or `stop` says so; whether all have ended.

    Raises:
      UserError: nothing can be written or started, or a run has been evaluated and not by the metric.
    """
    running: list[Running] = []
    everyone = True
    try:
      while True:
        free = set(range(len(self.environments))) - {each.place for each in running}
        while free and not stop() and (trial := self.study.next()) is not None:
          running.append(self._start(trial, free.pop()))
        if not running or stop():
          break
        time.sleep(_POLL)
        for each in list(running):
          if self._watch(each):
            continue
          running.remove(each)
          if self._was_anothers(each):
            running.append(self._start(each.trial, each.place))
          else:
            everyone &= self._end(each)
      everyone &= not running and not stop()
    finally:
      for each in running:
        _terminate(each)
      for each in running:
        if each.process is not None:
          each.process.wait()
    return everyone

  def _start(self, trial: "optuna.Trial", place: int) -> Running:
    run, log = self.folder / "runs" / name(trial), self.folder / "logs" / f"{name(trial)}.log"
    if busy(run):
      self.say(f"{name(trial)} is being run by another process")
      return Running(trial, place, None)
    command = [str(word) for word in self.command(trial)]
    try:
      log.parent.mkdir(parents=True, exist_ok=True)
      with open(log, "ab") as out:
        # A session of its own: Ctrl-C comes to the sweep alone, which then stops each trial once.
        process = subprocess.Popen(
          command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
          env={**os.environ, **self.environments[place]},
        )  # fmt: skip
    except FileNotFoundError as error:
      raise UserError(f"sweep: cannot start {command[0]}: {error.strerror}") from error
    except OSError as error:
      raise cannot_write(log, error) from error
    self.say(f"{name(trial)} begins" if not (run / "run.flags").exists() else f"{name(trial)} goes on")
    return Running(trial, place, process)

  def _watch(self, each: Running) -> bool:
    """Looks at its newest evaluations, and prunes; whether it still runs."""
    run = self.folder / "runs" / name(each.trial)
    alive = busy(run) if each.process is None else each.process.poll() is None
    values = [value for _, value in evaluations(run, self.metric)]
    if not each.pruned and self.study.report(each.trial, values) and alive and each.process is not None:
      each.pruned = True
      each.process.terminate()
    return alive

  def _was_anothers(self, each: Running) -> bool:
    """Whether it has to be begun here after all, since the process that had its directory has gone without a result."""
    run = self.folder / "runs" / name(each.trial)
    if each.process is None:
      return not (run / "result.json").exists()
    return each.process.returncode == 2 and busy(run)

  def _end(self, each: Running) -> bool:
    """Records how it ended; False where it has not, and is to be gone on with."""
    trial, run = each.trial, self.folder / "runs" / name(each.trial)
    values = [value for _, value in evaluations(run, self.metric)]
    code = None if each.process is None else each.process.returncode
    if (run / "result.json").exists() and code in (0, None):
      if self.study.done(trial, values):
        best = selection.best(self.metric, list(enumerate(values)))[1]
        self.say(f"{name(trial)} is done: {self.metric} {best:.6g}")
      else:
        self.say(f"{name(trial)} failed: no evaluation is a number")
      return True
    if each.pruned and code in (*AGAIN, -signal.SIGTERM):
      self.study.pruned(trial)
      self.say(f"{name(trial)} is pruned after {len(values)} evaluations")
      return True
    if code in AGAIN:
      self.say(f"{name(trial)} was stopped; the same command goes on with it")
      return False
    why = reason(code, self.folder / "logs" / f"{name(trial)}.log")
    self.study.failed(trial, why)
    self.say(f"{name(trial)} failed: {why}")
    return True


class NoSuchMetric(UserError):
  """A run has been evaluated, and not by the sweep's metric: the command is wrong, not the trial."""


def evaluations(run: Path, metric: str) -> list[tuple[int, float]]:
  """(step, value) of each evaluation of a run so far. Raises NoSuchMetric where it has none by that name."""
  path = run / "metrics.jsonl"
  records = record.read(path) if path.exists() else []
  found = selection.from_records(metric, records)
  others = {each for line in records for each in line if "/" in each and not each.startswith(("train/", "floor/"))}
  if others and not found:
    held_out = "" if any(each.startswith("validation/") for each in others) else (
      "; --data.validation_fraction=0.1 holds a validation split out"
    )  # fmt: skip
    choosable = [each for each in others if not each.startswith("test/")]
    raise NoSuchMetric(f"sweep: no metric {metric!r} in {run}{hint(metric, choosable)}{held_out}")
  return found


def busy(run: Path) -> bool:
  """Whether a process has the run directory (experiments/run_directory.owned)."""
  try:
    with open(run / "lock", "rb") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except FileNotFoundError:
    pass
  return False


def reason(code: int, log: Path) -> str:
  """Why a process failed: how it ended, and the last line that it printed."""
  lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
  last = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1])[:300] if lines else "it printed nothing"
  return f"{f'signal {-code}' if code < 0 else f'exit code {code}'}: {last}"


def _terminate(each: Running) -> None:
  if each.process is not None:
    with contextlib.suppress(ProcessLookupError):
      each.process.terminate()
