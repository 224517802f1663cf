"""The one loop. It knows tasks, feeds, checkpoints and reports, and no family of models; nobody should have to fork it.

The next call is dispatched before the last one's metrics are read, so the device never waits for Python, and nothing is
transferred that is not asked for by name.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from research import guard, replay, selection, throughput
from research.checkpoint import Checkpoints
from research.data.feeds import Feed
from research.goodput import Clock
from research.recovery import Cause, Recovery
from research.signals import Rescue, Stopped
from research.steps import TrainingCall
from research.task import State


class Reporter(Protocol):
  """What the loop tells; research.report.Report is the one that writes files."""

  def train(self, step: int, scalars: Mapping[str, float]) -> None: ...
  def evaluation(self, step: int, scalars: Mapping[str, float]) -> None: ...
  def progress(self, step: int) -> None: ...
  def sample(self, step: int, sample: Any) -> None: ...
  def rewind(self, step: int) -> None: ...
  def note(self, text: str) -> None: ...


class Profiler(Protocol):
  """What traces some of the updates; research.profiling.Profile is the one that does."""

  def begin(self, step: int) -> None: ...
  def end(self, step: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plan:
  """When what happens, in updates."""

  total_steps: int
  eval_every: int
  checkpoint_every: int
  log_every: int = 10
  steps_per_call: int = 1
  best_metric: str = ""
  patience: int = 0
  bad_steps: int = 5  # in a row, after which training goes back once; 0: it ends at the first
  check_replay_every: int = 0
  profile: tuple[int, int] | tuple[()] = ()  # (first, last): the updates that start from first … last − 1 are traced

  def over(self, step: int, scores: Sequence[tuple[int, float]]) -> bool:
    """Whether no update is left to make."""
    return step >= self.total_steps or selection.exhausted(self.best_metric, scores, self.patience)

  def call_end(self, step: int) -> int:
    """Where a call that starts at `step` ends: it never runs past an evaluation, a checkpoint, the end, or an end of
    what is traced."""
    ends = [step + self.steps_per_call, self.total_steps]
    ends += [(step // every + 1) * every for every in (self.eval_every, self.checkpoint_every)]
    ends += [edge for edge in self.profile if edge > step]
    return min(ends)

  def evaluates(self, step: int) -> bool:
    return step % self.eval_every == 0 or step == self.total_steps

  def saves(self, step: int) -> bool:
    return step % self.checkpoint_every == 0 or step == self.total_steps

  def pauses(self, step: int) -> bool:
    """Whether the host has to do more than dispatch and read."""
    return self.evaluates(step) or self.saves(step) or step in self.profile

  def logs(self, start: int, end: int) -> bool:
    """Whether the call from `start` to `end` reaches a line of metrics."""
    return end // self.log_every > start // self.log_every or end == self.total_steps


class Watch(Protocol):
  """What is told how far the loop is; research.watchdog.Watchdog is the one that looks."""

  def enter(self, step: int, phase: str) -> None: ...


def fit(
  plan: Plan,
  state: State,
  call: TrainingCall,
  feed: Feed,
  evaluate: Callable[[State], dict[str, float]],
  *,
  checkpoints: Checkpoints,
  report: Reporter,
  scores: list[tuple[int, float]],
  sample: Callable[[State], Any] | None = None,
  stop: Callable[[], bool] = lambda: False,
  update: throughput.Update | None = None,
  profile: Profiler | None = None,
  clock: Clock | None = None,
  rescue: Rescue | None = None,
  watch: Watch | None = None,
  find_cause: Callable[[State], Cause] | None = None,
  unjudged: bool = False,
) -> State:
  """Trains from the state's step to the plan's end, or until patience runs out, or until `stop` says so.

  Args:
    plan: when to evaluate, save and log.
    state: where to start; donated.
    call: one compiled call of several updates (steps.training_call).
    feed: the training batches.
    evaluate: state → {"validation/loss": …}; raises Stopped where it is broken off because of `stop`.
    checkpoints: where states are saved.
    report: what is told.
    scores: (step, value) of `plan.best_metric` so far, from before a restart; appended to.
    sample: state → pictures or text, at each evaluation.
    stop: asked between calls; a true answer saves and returns.
    update: what speeds are computed from; without it they count examples alone.
    profile: told where updates begin and end that the plan has traced, when none is under way.
    clock: told what the time goes to.
    rescue: told what could be saved while this thread waits for something.
    watch: told what is done now, by the names of `watchdog.STEP` and "compile", "evaluation" and "saving".
    find_cause: the state before a bad update → why it is bad.
    unjudged: the state to start from was saved by a run that was stopped before it evaluated it.

  Raises:
    BadNumbers: too many updates in a row were passed over (`research.guard`), or the state or an evaluation's loss is
      not finite, and training has gone back already or cannot; or a repeated update came out otherwise. Nothing is
      saved then.
  """
  start = step = int(jax.block_until_ready(state).step)
  update = update or throughput.Update(feed.plan.batch_size)
  late = Late(report, update, step, guard.Rules(plan.bad_steps).limit)
  recovery = Recovery(state, checkpoints, report, scores, times=min(plan.bad_steps, 1), find_cause=find_cause)
  clock, enter = clock or Clock(), (lambda step, phase: None) if watch is None else watch.enter

  @contextlib.contextmanager
  def waiting(share: str) -> Iterator[None]:
    """Within it this thread only reads the state, and a signal's deadline may come before it is through."""
    enter(step, share)
    unsaved = None if share == "compile" else state
    with clock.of(share), rescue.holding(step, unsaved, settle) if rescue else contextlib.nullcontext():
      yield

  def settle() -> str:
    """Puts the lines of finished updates on the disk; the name of what is not fit to be saved."""
    late.settle()
    return f"the update {step:,}" if late.frozen else guard.not_finite(state)

  def judge() -> str:
    """Evaluates the state; the name of a loss that is not finite. Raises Stopped."""
    with waiting("evaluation"):
      found = evaluate(state)
      report.evaluation(step, found)
      if wrong := [name for name, value in found.items() if name.endswith("loss") and not math.isfinite(value)]:
        return wrong[0]
      if sample is not None:
        report.sample(step, sample(state))
    if plan.best_metric:
      scores.append((step, found[plan.best_metric]))
    return ""

  def save() -> None:
    is_best = plan.best_metric and scores[-1:] == [selection.best(plan.best_metric, scores)] and scores[-1][0] == step
    # Amid bad updates there is no place to come back to.
    if stopping or is_best or step == plan.total_steps or (plan.saves(step) and not late.in_row):
      enter(step, "saving")
      with clock.of("saving"):
        if trouble := checkpoints.save(step, state, scores[-1][1] if is_best else None):
          report.note(trouble)

  stopping = False
  clock.turn("steps")
  with waiting("compile"):
    call.wait()
  if unjudged:
    with contextlib.suppress(Stopped):
      if wrong := judge():
        state, step = recovery.back(step, wrong)
      save()
  while not plan.over(step, scores):
    pausing = False
    if profile is not None:
      profile.begin(step)
    with jax.transfer_guard("disallow"):  # entered once between two pauses: each time takes as long as a small dispatch
      while not pausing:
        end = plan.call_end(step)
        if feed.resident:
          enter(step, "data")
          inputs = feed.inputs(step)
        else:
          with waiting("data"):
            inputs = feed.inputs(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):  # a trace's steps; nothing where none is made
          enter(step, "compile" if step == start else "step")
          if replay.due(plan.check_replay_every, step, end):
            state, metrics = replay.checked(call, state, inputs, end - step)
          else:
            state, metrics = call(state, inputs, end - step)
        late.read_then_hold(end, metrics, log=plan.logs(step, end))
        step, stopping = end, stop()
        clock.at(step)
        pausing = plan.pauses(step) or stopping or late.frozen

    wrong = settle()  # a checkpoint's lines of metrics are on disk before it is, and its numbers are good
    if profile is not None:
      profile.end(step)
    if plan.evaluates(step) and not wrong and not stopping:
      try:
        wrong = judge()
      except Stopped:
        stopping = True
    if wrong:
      state, step = recovery.frozen(state, late.limit) if late.frozen else recovery.back(step, wrong)
      late = Late(report, update, step, late.limit)
      clock.again(step)
      continue
    save()
    clock.mark()
    late.pause()
    if stopping:
      if not plan.over(step, scores):
        report.note(f"stopped by a signal; step {step} is saved")
      break
  enter(step, "saving")
  if step > start:
    with clock.of("saving"):
      checkpoints.wait()
  return state


class Late:
  """Metrics of the newest call, read only once the next one is on its way; and the speed between readings.

  `in_row` is how many of the newest updates that were read were bad, one after the other; `frozen` is set where they
  are `limit`: the state stays as it is from there on, and nothing more is told.
  """

  def __init__(self, report: Reporter, update: throughput.Update, step: int, limit: int):
    self._report, self._update, self.limit = report, update, limit
    self.in_row, self.frozen = 0, False
    self._held, self._compiled = None, False
    self._last_step = self._since_step = step
    self._since_time = time.monotonic()

  def read_then_hold(self, step: int, metrics: Mapping[str, jax.Array], *, log: bool) -> None:
    """Reads the call before, which waits until it is done: never more than two calls are under way."""
    self.read()
    in_row = metrics[guard.IN_ROW]
    in_row.copy_to_host_async()
    self._held = (step, metrics, log)

  def read(self) -> None:
    if self._held is None:
      return
    (step, metrics, log), self._held = self._held, None
    jax.block_until_ready(metrics)  # on all devices: to read them waits for one of several
    self.in_row = int(jax.device_get(metrics[guard.IN_ROW]))
    self.frozen |= self.in_row >= self.limit
    if self.frozen:
      return
    self._last_step = step
    if not log:
      self._report.progress(step)
      if not self._compiled:
        self.pause()
      return
    scalars = {f"train/{name}": float(value) for name, value in guard.told(jax.device_get(metrics)).items()}
    if self._compiled and step > self._since_step:
      seconds = time.monotonic() - self._since_time
      scalars |= self._update.speeds(step - self._since_step, seconds)
    scalars |= throughput.memory()
    self.pause()
    self._report.train(step, scalars)

  def settle(self) -> None:
    """Reads what is held; then no device works."""
    self.read()

  def pause(self) -> None:
    """Compiling, evaluating and saving are no part of the training speed: count anew from the last step read."""
    self._compiled = True
    self._since_step, self._since_time = self._last_step, time.monotonic()
