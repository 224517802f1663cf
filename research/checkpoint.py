"""Checkpoints through Orbax v1: asynchronous, atomic, the newest few and the best. Checkpoint N holds N updates.

A checkpoint is written into a folder of another name, hashed (`manifest.py`), and renamed to its step once all of it is
on the disk; only then older ones are taken away. It is read once all its files are what was written. Orbax alone loads
flipped bits, casts silently, and tells of a failed save late; all three are covered here.
"""

import concurrent.futures
import contextlib
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from research import manifest
from research.errors import UserError
from research.parallel.agreement import by_first, everyone, together
from research.task import State

T = TypeVar("T")

SAVING, DAMAGED, DELETING = ".saving", ".damaged", ".deleting"  # after a step's number: no checkpoint
_REASONS = (
  "No space left on device", "Disk quota exceeded", "File too large", "Read-only file system", "Permission denied",
  "Input/output error", "Stale file handle", "Too many open files", "Remote I/O error", "Connection timed out",
  "Transport endpoint is not connected",
)  # fmt: skip


class Checkpoints:
  """The checkpoints of one run directory.

  Args:
    directory: made if it is not there. Leftovers of a save that was killed are removed.
    keep: how many of the newest to keep.
    read_only: leave the directory as it is.
    about: what every checkpoint says of where it comes from, as JSON.
    say: told, in a line, of a checkpoint that is passed over because it is damaged.
  """

  def __init__(
    self,
    directory: Path,
    *,
    keep: int = 2,
    read_only: bool = False,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
  ):
    from orbax.checkpoint import v1 as ocp

    self._ocp, self._directory, self._keep, self._about, self._say = ocp, directory.absolute(), keep, about or {}, say
    self._read_only, self._checked = read_only, -1
    self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
    self._trouble = ""  # of the newest save, where it failed
    self._context = ocp.Context()
    # Orbax writes a part of every replicated array from each device; of small ones the cutting is most of the work.
    self._context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    # Parameters hardly shrink, and to try takes processors' time from updates on a CPU.
    self._context.array.saving.use_compression = False
    self._committing = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    if not read_only:
      by_first(self._prepare)

  @property
  def steps(self) -> list[int]:
    """Steps that have a checkpoint, whole or damaged, oldest first."""
    return sorted(int(path.name) for path in self._listed() if is_step(path.name))

  def newest(self) -> int | None:
    """The newest that is whole; None where there is none at all. Damaged ones are told of, and set aside.

    Raises UserError where there are only damaged ones, which stay where they are: to start anew would cost the run.
    """
    return by_first(self._newest)

  def _newest(self) -> int | None:
    damaged: dict[int, str] = {}
    for step in reversed(self.steps):
      if not (wrong := self._wrong(step)):
        for each, line in damaged.items():
          self._say(line if self._read_only else f"{line}; it is set aside as {self._set_aside(each)}")
        return step
      damaged[step] = wrong
    for line in damaged.values():
      self._say(line)
    if damaged or any(DAMAGED in path.name for path in self._listed()):
      raise UserError(f"run: {self._directory} has no checkpoint that is whole; start anew in another --workdir")
    return None

  def first_whole(self, steps: Sequence[int]) -> int | None:
    """The first of `steps` whose files are all what was written."""
    return by_first(lambda: next((step for step in steps if self.is_whole(step)), None))

  def is_whole(self, step: int) -> bool:
    """Whether all its files are what was written, as this process sees them; if not, that is told."""
    if wrong := self._wrong(step):
      self._say(wrong)
    return not wrong

  def about(self, step: int) -> dict[str, Any]:
    """What the checkpoint says of where it comes from."""
    return by_first(lambda: manifest.read(self._folder(step), step)["about"])

  def best(self) -> list[tuple[int, float]]:
    """(step, score) of the checkpoints that were better than all before them when they were saved."""

    def find() -> list[tuple[int, float]]:
      found = []
      for step in self.steps:
        with contextlib.suppress(manifest.Damaged):
          found.append((step, manifest.read(self._folder(step), step)["best"]))
      return [(step, score) for step, score in found if score is not None]

    return [(step, score) for step, score in by_first(find)]

  def save(self, step: int, state: State, best: float | None = None) -> str:
    """Starts to save; returns once the values are copied.

    Args:
      step: finished updates of `state`.
      state: what is saved.
      best: the score, where it is better than all before. Without one a checkpoint is kept only while it is new.

    Returns: in words what went wrong with the save before, or with this one where there is no room; "" for nothing.
    """
    before = self._settled()
    if by_first(lambda: manifest.is_in(self._folder(step))):
      if best is not None:  # it was saved by a run that was stopped before it was judged
        by_first(lambda: manifest.amend(self._folder(step), step, {"best": best}))
      return before
    if lacking := by_first(lambda: self._lacking(state)):
      return self._failed(step, lacking)
    with self._context:
      written, reason = _attempted(lambda: self._ocp.save_async(self._saving(step), state))
    if reason:
      return self._failed(step, reason)
    self._pending = step, self._committing.submit(self._commit, step, best, written)
    return before

  def wait(self) -> None:
    """Until the save under way is committed. Raises UserError where the disk did not take the newest save."""
    self._settled()
    if self._trouble:
      last = f"the last is step {self.steps[-1]:,}" if self.steps else "there is no other"
      raise UserError(f"run: cannot save in {self._directory}: {self._trouble}; {last}; make room and run it again")

  def restore(self, step: int, abstract: State) -> State:
    """Checkpoint `step`, placed and typed as `abstract` says.

    Raises:
      UserError: a file of it is damaged, or it is of another model: an array is missing, extra, or of another shape
        or dtype.
    """
    by_first(lambda: self._check(step))
    wanted = named(abstract)
    where = f"checkpoint {self._folder(step)}"
    with self._reading(step):
      saved = named(self._ocp.metadata(self._folder(step)).metadata)
    for name in sorted(wanted.keys() | saved.keys()):
      if name not in saved:
        raise UserError(f"{where} is of another model: it has no {name}; give another --workdir")
      if name not in wanted:
        raise UserError(f"{where} is of another model: it has a {name} that this model has not; give another --workdir")
      have, want = saved[name], wanted[name]
      if tuple(have.shape) != tuple(want.shape) or np.dtype(have.dtype) != np.dtype(want.dtype):
        raise UserError(
          f"{where} is of another model: {name} is {have.dtype}{list(have.shape)} there and"
          f" {want.dtype}{list(want.shape)} here; give another --workdir"
        )
    with self._reading(step), self._context:
      return self._ocp.load(self._folder(step), abstract)

  def arrays(self, step: int, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """{path: array} of those parts of checkpoint `step`, whatever model it is of, as host arrays."""
    self._check(step)
    ocp, folder = self._ocp, self._folder(step)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with self._reading(step), warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="Sharding info not provided")  # of the parts that are left out
      saved = {part: tree for part, tree in ocp.metadata(folder).metadata.items() if part in parts}
      abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)
      with context:
        return {name: np.asarray(leaf) for name, leaf in named(ocp.load(folder, abstract)).items()}

  def close(self) -> None:
    """Waits for the save under way, whose failure has been told or is raised by `wait`."""
    try:
      self._settled()
      if self._trouble:
        by_first(self._prepare)
    finally:
      self._committing.shutdown()

  def _prepare(self) -> None:
    """Makes the directory, and takes away what a killed process or a save that failed left in it."""
    self._directory.mkdir(parents=True, exist_ok=True)
    for _ in range(40):  # other threads of a save that failed write on for a moment
      left = [path for path in self._directory.iterdir() if SAVING in path.name or path.name.endswith(DELETING)]
      for path in left:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
          path.unlink()  # a file of such a name
      if not left:
        return
      time.sleep(0.05)

  def _lacking(self, state: State) -> str:
    """What is missing on the disk for one more checkpoint, in words; "" where there is room."""
    need = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self._directory).free
    if free >= need:
      return ""
    return f"No space left on device ({free / 1e6:,.1f} MB are free, and a checkpoint takes {need / 1e6:,.1f})"

  def _commit(self, step: int, best: float | None, written: Any) -> None:
    """In a thread of its own: what Orbax has written becomes checkpoint `step`, and older ones go."""
    written.result()
    if jax.process_index():
      return
    saving, folder = self._saving(step), self._folder(step)
    manifest.write(saving, step, {"best": best, "about": dict(self._about)})
    if folder.exists():  # something of this name that is no checkpoint
      self._set_aside(step)
    saving.rename(folder)
    for old in self._superfluous():
      gone = self._directory / f"{old}{DELETING}"
      self._folder(old).rename(gone)  # so that a half-deleted one has no step's name
      shutil.rmtree(gone, ignore_errors=True)

  def _superfluous(self) -> list[int]:
    """All but the newest and the one that was saved as the best last."""
    steps = [step for step in self.steps if manifest.is_in(self._folder(step))]
    kept = set(steps[-self._keep :])
    for step in reversed(steps):
      with contextlib.suppress(manifest.Damaged):
        if manifest.read(self._folder(step), step)["best"] is not None:
          kept.add(step)
          break
    return [step for step in steps if step not in kept]

  def _settled(self) -> str:
    """Waits for the save under way, in all processes; in words what went wrong with it."""
    if self._pending is None:
      return ""
    (step, pending), self._pending = self._pending, None
    _, reason = _attempted(pending.result)
    if not reason:
      self._trouble = ""
    return self._failed(step, reason) if reason else ""

  def _failed(self, step: int, reason: str) -> str:
    """Takes away what there is of checkpoint `step`; what happened, in words."""
    by_first(self._prepare)
    self._trouble = reason
    last = f"the last one is of step {steps[-1]:,}" if (steps := by_first(lambda: self.steps)) else "there is none yet"
    return f"step {step:,} could not be saved: {reason}; {last}"

  def _wrong(self, step: int) -> str:
    """In words, what is wrong with a checkpoint; "" for nothing."""
    try:
      self._check(step)
    except UserError as error:
      return str(error)
    self._checked = step
    return ""

  def _listed(self) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
      return list(self._directory.iterdir())
    return []

  def _check(self, step: int) -> None:
    """Raises UserError where a file is not what was written."""
    checked, self._checked = self._checked, -1  # once is enough, if it was just now
    if step == checked:
      return
    try:
      manifest.check(self._folder(step), step)
    except manifest.Damaged as error:
      raise UserError(f"checkpoint {self._folder(step)} is damaged: {error}") from error

  def _set_aside(self, step: int) -> str:
    """Takes the step's number from a folder; its new name."""
    names = (f"{step}{DAMAGED}{more}" for more in ("", *(f"-{number}" for number in range(2, 1000))))
    path = next(path for name in names if not (path := self._directory / name).exists())
    self._folder(step).rename(path)
    return path.name

  def _folder(self, step: int) -> Path:
    return self._directory / str(step)

  def _saving(self, step: int) -> Path:
    return self._directory / f"{step}{SAVING}"

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Turns whatever Orbax raises for files that it cannot read into one line."""
    try:
      yield
    except Exception as error:
      raise UserError(
        f"checkpoint {self._folder(step)} cannot be read ({type(error).__name__}), though its files are what was"
        " written: it is another version's; give another --workdir"
      ) from error


def is_step(name: str) -> bool:
  """Whether a folder's name is a step's number as it is written here."""
  return name.isascii() and name.isdigit() and str(int(name)) == name


def named(tree: Any) -> dict[str, Any]:
  """{path: leaf} with / between; a state and what Orbax says of a saved one give the same paths."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _attempted(act: Callable[[], T]) -> tuple[T | None, str]:
  """(what `act` gives, why the disk did not take it in some process); whatever else is wrong is raised in all."""

  def attempt() -> tuple[T | None, str]:
    try:
      return act(), ""
    except Exception as error:
      if reason := _disk_error(error):
        return None, reason
      raise

  value, own = together(attempt)
  return value, next((reason for reason in everyone(own) if reason), "")


def _disk_error(error: BaseException) -> str:
  """What the disk said, where that is the error; tensorstore wraps it in words of its own."""
  for reason in _REASONS:
    if reason.lower() in str(error).lower():
      return reason
  return ""
