"""The trials of a sweep: which there are, how each ended, and which is next. Optuna's study, in a file of JSON lines.

It is on the disk after every change, so a sweep that was killed knows its trials. It starts no process and reads no
run; it is one process' at a time, which the owner of the directory sees to.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.sweep import grammar
from research import selection
from research.report.atomic import write_atomically

if TYPE_CHECKING:
  import optuna

FILE = "study.jsonl"
PRUNING = ("none", "median", "halving")
METHODS = ("grid", "random", "tpe")
REDUCTION = 3  # of successive halving: a third goes on from each rung


class Study:
  """Trials on disk.

  Args:
    folder: the sweep's; study.jsonl is made in it, or gone on with.
    space: the flags that are swept.
    method: one of METHODS.
    trials: how many, where they are drawn.
    metric: "split/name", whose last word says if less is better.
    prune: one of PRUNING.
    prune_after: the first evaluation, from 1, that a trial may end at.
    seed: of what is drawn.
  """

  def __init__(
    self,
    folder: Path,
    space: Sequence[grammar.Swept],
    *,
    method: str = "grid",
    trials: int = 0,
    metric: str = "validation/loss",
    prune: str = "none",
    prune_after: int = 1,
    seed: int = 0,
  ):
    self._space, self._method, self._wanted, self._seed, self._metric = space, method, trials, seed, metric
    self._file = folder / FILE
    self._study = open_study(_storage(self._file), metric, prune, prune_after)
    self._taken: set[int] = set()
    if method == "grid":
      self._enqueue_grid()

  def next(self) -> "optuna.Trial | None":
    """One that an earlier process was at, else one that waits, else a new one; None where there is none left."""
    import optuna

    trials = self._study.get_trials(deepcopy=False)
    for trial in trials:
      if trial.state.name == "RUNNING" and trial.number not in self._taken:
        return self._told(optuna.Trial(self._study, trial._trial_id))
    waiting = any(trial.state.name == "WAITING" for trial in trials)
    drawn = sum("again" not in trial.user_attrs for trial in trials)
    if not waiting and (self._method == "grid" or drawn >= self._wanted):
      return None
    # A sampler of its own for each trial: what is drawn depends on the study alone, not on how often it was resumed.
    self._study.sampler = _sampler(self._method, self._seed, len(trials))
    return self._told(self._study.ask())

  def report(self, trial: "optuna.Trial", values: Sequence[float]) -> bool:
    """Tells all evaluations so far; whether the trial should end now by the pruning rule."""
    known = len(self._study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    for place, value in enumerate(values[known:], start=known + 1):
      trial.report(value, place)
      if trial.should_prune():
        return True
    return False

  def done(self, trial: "optuna.Trial", values: Sequence[float]) -> bool:
    """It ran to its end; its value is its best evaluation. False, and a failure, where no evaluation is a number."""
    best = selection.best(self._metric, list(enumerate(values)))
    if best is None:
      self.failed(trial, f"no evaluation of {self._metric} is a number")
      return False
    self._study.tell(trial.number, best[1])
    return True

  def pruned(self, trial: "optuna.Trial") -> None:
    self._tell(trial, "PRUNED")

  def failed(self, trial: "optuna.Trial", reason: str) -> None:
    trial.set_user_attr("reason", reason)
    self._tell(trial, "FAIL")

  def _tell(self, trial: "optuna.Trial", state: str) -> None:
    import optuna

    self._study.tell(trial.number, state=optuna.trial.TrialState[state])

  @property
  def scored(self) -> bool:
    """Whether any trial has a value by the metric."""
    return any(trial.intermediate_values or trial.values for trial in self._study.get_trials(deepcopy=False))

  def forget(self) -> None:
    """Takes the file away, for a study by another metric. The runs stay, and its trials have the same names."""
    self._file.unlink()

  def retry(self) -> int:
    """Puts what failed in line again, under its name; returns how many."""
    newest = self.newest()
    failed = [trial for trial in newest.values() if trial.state.name == "FAIL"]
    for trial in failed:
      self._study.enqueue_trial(trial.params, user_attrs={"name": name(trial), "again": True})
    return len(failed)

  def newest(self) -> dict[str, "optuna.trial.FrozenTrial"]:
    """The trials by name, of each name the latest."""
    return {name(trial): trial for trial in self._study.get_trials(deepcopy=False)}

  def _told(self, trial: "optuna.Trial") -> "optuna.Trial":
    """The trial with a value for each swept flag, and its name."""
    self._taken.add(trial.number)
    choice = {each.flag: _suggest(trial, each) for each in self._space}
    if "name" not in trial.user_attrs:
      trial.set_user_attr("name", grammar.name(trial.number, choice))
    return trial

  def _enqueue_grid(self) -> None:
    known = self.newest()
    for number, choice in enumerate(grammar.grid(self._space)):
      each = grammar.name(number, choice)
      if each not in known:  # a process may have been killed among them
        self._study.enqueue_trial(dict(choice), user_attrs={"name": each})


def name(trial: Any) -> str:
  return trial.user_attrs.get("name") or grammar.name(trial.number, trial.params)


def choice(trial: Any) -> dict[str, str]:
  """The trial's value of each swept flag, as it is written; before it has begun, as it is to be."""
  given = trial.params or trial.system_attrs.get("fixed_params", {})
  return {flag: grammar.write(value) for flag, value in given.items()}


def ended_at(curves: Sequence[Sequence[float]], metric: str, prune: str, prune_after: int) -> list[int | None]:
  """The rule alone: for trials that run one after the other, the evaluation (from 1) that each is pruned at, or None.

  Args:
    curves: each trial's values of `metric` at its evaluations, as they would be if nothing pruned it.
    metric: says which way is better.
    prune: one of PRUNING.
    prune_after: the first evaluation, from 1, that a trial may end at.
  """
  import optuna

  study, ends = open_study(optuna.storages.InMemoryStorage(), metric, prune, prune_after), []
  for values in curves:
    trial, end = study.ask(), None
    for place, value in enumerate(values, start=1):
      trial.report(value, place)
      if trial.should_prune():
        end = place
        break
    state = optuna.trial.TrialState.PRUNED if end else None
    study.tell(trial, None if end else selection.best(metric, list(enumerate(values)))[1], state=state)
    ends.append(end)
  return ends


def open_study(storage: Any, metric: str, prune: str, prune_after: int) -> "optuna.Study":
  """Optuna's study with our rules.

  median: a trial ends whose best evaluation so far is worse than the median of the finished ones' at the same place,
  once five have finished (Golovin et al. 2017). halving: of those that came to a rung (prune_after, 3 · prune_after,
  9 · prune_after … evaluations) the best third goes on, without waiting for the others (Li et al. 2020, ASHA).
  """
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  pruner = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=prune_after),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=prune_after, reduction_factor=REDUCTION),
  }[prune]
  direction = "minimize" if selection.lower_is_better(metric) else "maximize"
  return optuna.create_study(
    storage=storage, pruner=pruner, direction=direction, study_name="sweep", load_if_exists=True
  )


def _sampler(method: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
  import numpy as np
  import optuna

  drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
  return optuna.samplers.TPESampler(seed=drawn) if method == "tpe" else optuna.samplers.RandomSampler(seed=drawn)


def _suggest(trial: "optuna.Trial", swept: grammar.Swept) -> str | float:
  if isinstance(swept, grammar.Values):
    return trial.suggest_categorical(swept.flag, swept.values)
  suggest = trial.suggest_int if swept.whole else trial.suggest_float
  return suggest(swept.flag, swept.low, swept.high, log=swept.logarithmic)


def _storage(path: Path) -> Any:
  from optuna.storages.journal import JournalFileBackend, JournalStorage

  # What a process that was killed left behind: its lock, and a last line without its end.
  with contextlib.suppress(FileNotFoundError):
    Path(f"{path}.lock").unlink()
  if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
    write_atomically(path, content[: content.rfind(b"\n") + 1])
  return JournalStorage(JournalFileBackend(str(path)))
