"""Checkpoints through Orbax v1: asynchronous, atomic, the newest few and the best. Checkpoint N holds N updates.

Orbax casts silently on restore and reports a failed save late; both are covered here.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import selection
from research.errors import UserError
from research.parallel.agreement import by_first
from research.task import State


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    directory: made if it is not there. Leftovers of a save that was killed are removed.
    keep: how many of the newest to keep.
    metric: the evaluation metric whose best checkpoint is kept as well; "" for none.
    read_only: leave the directory as it is.
  """

  def __init__(self, directory: Path, *, keep: int = 2, metric: str = "", read_only: bool = False):
    from orbax.checkpoint import v1 as ocp

    self._metric, self._pending = metric, None
    policies = ocp.training.preservation_policies
    preserved = [policies.LatestN(keep)]
    if metric:
      sign = -1 if selection.lower_is_better(metric) else 1
      best = {"get_metric_fn": lambda scores: sign * scores[metric], "keep_checkpoints_without_metrics": False}
      preserved.append(policies.BestN(n=1, **best))
    context = ocp.Context()
    # Orbax writes a part of every replicated array from each device; of small ones the cutting is most of the work.
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    self._orbax = ocp.training.Checkpointer(
      directory.absolute(),
      context=context,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(preserved),
      cleanup_tmp_directories=not read_only,
    )

  @property
  def steps(self) -> list[int]:
    """Steps with a whole checkpoint, oldest first."""
    return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

  @property
  def latest(self) -> int | None:
    return self.steps[-1] if self.steps else None

  def save(self, step: int, state: State, best: float | None = None) -> None:
    """Starts to save; returns once the values are copied. An error of the save before this one is raised here.

    Args:
      step: finished updates of `state`.
      state: what is saved.
      best: the metric's value, where it is better than all before. Without one a checkpoint is kept only while it is
        new: of equal scores Orbax would keep the latest, and the best is the earliest.
    """
    self.wait()
    if by_first(lambda: step in self.steps):
      return
    metrics = None if best is None else {self._metric: best}
    self._pending = self._orbax.save_async(step, state, metrics=metrics)

  def wait(self) -> None:
    """Until the save under way is committed. Raises UserError where the disk did not take it."""
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      pending.result()
    except Exception as error:
      if reason := _disk_error(error):
        raise UserError(f"run: cannot save in {self._orbax.directory}: {reason}; make room and run it again") from error
      raise

  def restore(self, step: int, abstract: State) -> State:
    """Checkpoint `step`, placed and typed as `abstract` says.

    Raises:
      UserError: it cannot be read, or is of another model: an array is missing, extra, or of another shape or dtype.
    """
    wanted = named(abstract)
    where = f"checkpoint {self._orbax.directory}/{step}"
    lost = f" (or a file of it is lost: then {self._without(step)}); give another --workdir"
    with self._reading(step):
      saved = named(self._orbax.metadata(step).metadata)
    for name in sorted(wanted.keys() | saved.keys()):
      if name not in saved:
        raise UserError(f"{where} is of another model: it has no {name}{lost}")
      if name not in wanted:
        raise UserError(f"{where} is of another model: it has a {name} that this model has not; give another --workdir")
      have, want = saved[name], wanted[name]
      if tuple(have.shape) != tuple(want.shape) or np.dtype(have.dtype) != np.dtype(want.dtype):
        raise UserError(
          f"{where} is of another model: {name} is {have.dtype}{list(have.shape)} there and"
          f" {want.dtype}{list(want.shape)} here; give another --workdir"
        )
    with self._reading(step):
      return self._orbax.load(step, abstract)

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Turns whatever Orbax raises for files that are missing or damaged into one line, with what is whole besides."""
    try:
      yield
    except Exception as error:
      raise UserError(
        f"checkpoint {self._orbax.directory}/{step} cannot be read ({type(error).__name__}): it is damaged, or another"
        f" version's; {self._without(step)}"
      ) from error

  def _without(self, step: int) -> str:
    """What to do where checkpoint `step` is no good."""
    earlier = [other for other in self.steps if other < step]
    return f"delete it to go on from step {earlier[-1]}" if earlier else "start anew in another --workdir"

  def arrays(self, step: int, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """{path: array} of those parts of checkpoint `step`, whatever model it is of, as host arrays."""
    from orbax.checkpoint import v1 as ocp

    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    options = ocp.options.PyTreeOptions
    with self._reading(step), warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="Sharding info not provided")  # of the parts that are left out
      saved = {part: tree for part, tree in self._orbax.metadata(step).metadata.items() if part in parts}
      abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)
      with ocp.Context(pytree_options=options(loading=options.Loading(partial_load=True))):
        return {name: np.asarray(leaf) for name, leaf in named(self._orbax.load(step, abstract)).items()}

  def close(self) -> None:
    """Waits for the save under way and lets go of Orbax's threads."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # it repeats what a failed save has said already
        self._orbax.close()


def named(tree: Any) -> dict[str, Any]:
  """{path: leaf} with / between; a state and what Orbax says of a saved one give the same paths."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _disk_error(error: BaseException) -> str:
  """What the disk said, where that is the error; tensorstore wraps it in words of its own."""
  for reason in ("No space left on device", "Read-only file system", "Permission denied", "File too large"):
    if reason.lower() in str(error).lower():
      return reason
  return ""
