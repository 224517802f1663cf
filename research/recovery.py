"""What becomes of a training whose numbers went bad: back to its last checkpoint, once, and then an end with a reason.

An update is a function of state, seed and step. So going back helps where a machine lied, and what is really in the
data or the model happens again; and what it was is found by repeating the update from the state, which it left alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from research import guard
from research.checkpoint import Checkpoints
from research.parallel import arrays
from research.task import State

SHOWN = 5  # ids of examples in a line
SMALLER_STEPS = "try a smaller --optim.learning_rate, or --optim.clip_norm=1"


class BadNumbers(Exception):
  """Numbers went bad, and training on would only overwrite what was good. The words say what to do as well."""


@dataclasses.dataclass(frozen=True)
class Cause:
  """Why an update was bad: in words, with what to do about it, and the update's metrics."""

  text: str
  advice: str
  metrics: Mapping[str, float]


class Reporter(Protocol):
  """What of a report is told."""

  def train(self, step: int, scalars: Mapping[str, float]) -> None: ...
  def rewind(self, step: int) -> None: ...
  def note(self, text: str) -> None: ...


class Recovery:
  """Goes back, or ends.

  Args:
    state: one of the run's, for where its arrays lie; it is not kept.
    checkpoints: where to go back to.
    report: rewound to there, as when a run is resumed.
    scores: evaluations so far; those after there are taken out.
    times: how often it may go back.
    find_cause: (state before a bad update) → why it is bad.
  """

  def __init__(
    self,
    state: State,
    checkpoints: Checkpoints,
    report: Reporter,
    scores: list[tuple[int, float]],
    times: int,
    find_cause: Callable[[State], Cause] | None,
  ):
    self._abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    self._checkpoints, self._report, self._scores = checkpoints, report, scores
    self._left, self._find_cause = times, find_cause

  def frozen(self, state: State, in_row: int) -> tuple[State, int]:
    """After `in_row` bad updates in a row, the last of which led to `state`: → the last checkpoint's state, its step.

    Raises BadNumbers where it has gone back already, or there is no checkpoint.
    """
    step = int(jax.device_get(state.step))
    cause = Cause("the loss or the gradient is not finite", SMALLER_STEPS, {})
    if self._find_cause is not None:
      cause = self._find_cause(state.replace(step=arrays.put(np.int32(step - 1), state.step.sharding)))
    many = f"bad numbers {in_row} times in a row, last at step {step}" if in_row > 1 else f"bad numbers at step {step}"
    where = self._where_to()
    if where is None and cause.metrics:
      skipped = float(jax.device_get(state.guard["skipped"]))
      told = {**cause.metrics, guard.SKIPPED: skipped}
      self._report.train(step, {f"train/{name}": value for name, value in told.items()})
    return self._back(where, f"{many}: {cause.text}", cause.advice)

  def back(self, step: int, name: str) -> tuple[State, int]:
    """Where `name`, an array of the state or a metric, is not finite, though no update was bad; the same."""
    return self._back(self._where_to(), f"{name} is not finite at step {step}", SMALLER_STEPS)

  def _where_to(self) -> int | None:
    if not self._left:
      return None
    self._checkpoints.wait()
    return self._checkpoints.newest()

  def _back(self, where: int | None, what: str, advice: str) -> tuple[State, int]:
    if where is None:
      raise BadNumbers(f"{what}: stopped; {advice}")
    self._left -= 1
    self._report.note(f"{what}; back to the checkpoint of step {where:,}, once")
    self._report.rewind(where)
    self._scores[:] = [score for score in self._scores if score[0] <= where]
    return self._checkpoints.restore(where, self._abstract), where


def cause_of(facts: Mapping[str, Any], state: State) -> Cause:
  """From `evaluating.facts_call`'s facts of the update that starts from `state`: the first thing that is not finite.

  Looked for in the parameters, the data, the losses and the gradients; what of a gradient is told by the parameter that
  it would have spoilt.
  """
  metrics = {name: float(value) for name, value in facts["metrics"].items()}
  ids_B = facts["index"]
  batch = f"the batch's examples are {_ids(ids_B)}"
  if name := guard.not_finite(state):
    return Cause(f"{name} was not finite before it", SMALLER_STEPS, metrics)
  for name, good_B in facts["data"].items():
    if not good_B.all():
      found = _ids(ids_B[~good_B])
      return Cause(f"the data's {name} is not finite in training examples {found}", "mend or leave them out", metrics)
  bad = {name: value for name, value in metrics.items() if name.endswith(guard.WATCHED) and not math.isfinite(value)}
  if not bad:
    return Cause(
      f"it is good when it is repeated ({batch})", "the machine may be at fault; the same command goes on", metrics
    )
  losses = [name for name in bad if name not in guard.norms(bad)]
  name = (losses or list(bad))[0]
  text = f"train/{name} is {bad[name]}"
  spoilt = [path for path, good in facts["params"].items() if not good]
  if not losses and spoilt:
    text += f", first in the gradient of {spoilt[0]}"
  return Cause(f"{text} ({batch})", SMALLER_STEPS, metrics)


def _ids(ids_B: np.ndarray) -> str:
  shown = ", ".join(str(each) for each in ids_B[:SHOWN])
  return shown if len(ids_B) <= SHOWN else f"{shown} … ({len(ids_B)} in all)"
