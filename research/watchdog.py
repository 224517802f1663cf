"""A step that takes far longer than the others: what every thread does then is written down, once for each such step.

It ends nothing. Compiling, evaluation and saving are no steps.
"""

import collections
import datetime
import faulthandler
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEP = ("data", "step")  # phases of an update: its batch is made; it is dispatched, and the one before is read
KEPT, FEWEST = 50, 5  # steps whose median counts, and without so many there is none
LEAST_SECONDS = 10.0  # shorter ones are no matter
MOST_DUMPS = 20  # of one start


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


class Watchdog:
  """A context in which the loop says what it does.

  Args:
    path: the file of stacks; written to when there is a reason.
    factor: how many times the median is too long; 0 for never.
    say: is told where the stacks are.
    least: seconds that a step may take whatever the others took.
  """

  def __init__(self, path: Path, factor: float, say: Callable[[str], None] = _tell, least: float = LEAST_SECONDS):
    self._path, self._factor, self._say, self._least = path, factor, say, least
    self._step, self._phase, self._marks, self._since = 0, "starting", 0, time.monotonic()
    self._began: float | None = None  # when the update under way did
    self._taken, self._dumps = collections.deque(maxlen=KEPT), 0
    self._over, self._lock = threading.Event(), threading.Lock()

  def __enter__(self) -> "Watchdog":
    if self._factor:
      threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
    return self

  def __exit__(self, *exception) -> None:
    self._over.set()

  def enter(self, step: int, phase: str) -> None:
    """The main thread begins with `phase`, after `step` updates."""
    now = time.monotonic()
    if phase == "data" or phase not in STEP:
      if self._began is not None and self._phase == "step":
        self._taken.append(now - self._began)
      self._began = now if phase == "data" else None
    self._step, self._phase, self._marks, self._since = step, phase, self._marks + 1, now

  def at(self) -> dict[str, Any]:
    """Where the main thread is: step, phase, how many phases it has begun, and seconds since it began the last."""
    return {
      "step": self._step,
      "phase": self._phase,
      "marks": self._marks,
      "idle": time.monotonic() - self._since,
    }

  def dump(self, why: str) -> None:
    """Appends what every thread does to the file."""
    with self._lock, open(self._path, "a", encoding="utf-8") as file:
      when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
      file.write(f"{when} step {self._step} ({self._phase}): {why}\n")
      file.flush()
      faulthandler.dump_traceback(file, all_threads=True)
      file.write("\n")

  def _watch(self) -> None:
    told = None
    while not self._over.wait(min(1.0, self._least / 4)):
      began = self._began
      if began is None or began == told or len(self._taken) < FEWEST or self._dumps >= MOST_DUMPS:
        continue
      usual, taken = statistics.median(list(self._taken)), time.monotonic() - began
      if taken < max(self._factor * usual, self._least):
        continue
      told, self._dumps = began, self._dumps + 1
      long = f"step {self._step} has taken {taken:.0f} s so far, and the ones before {usual:.2g} s"
      try:
        self.dump(long)
        where = f"what each thread does is in {self._path}"
      except OSError as error:
        where = f"{self._path} cannot be written: {error.strerror}"
      self._say(f"watchdog: {long} ({self._phase}); {where}")
