"""SIGINT and SIGTERM as a question that the loop asks between calls, and what happens where nobody asks in time.

While the main thread compiles, waits for data or for a disk, Python runs no handler of signals; so a thread of its own
hears of them. It answers the question, has saved what a stuck main thread holds, and ends the process at the deadline.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

STOPPED = 75  # the exit code: run the same command again
RESCUE = 0.4  # of the deadline: then what a stuck main thread holds is saved for it


class Stopped(Exception):
  """An evaluation was broken off because the run was asked to stop."""


class StopRequest:
  """A context in which the first signal is noted, and a second one ends the process at once.

  Checkpoints are atomic, so the second signal costs the updates since the last one and nothing else.

  Args:
    grace: seconds after the first signal at which the process ends in any case, with STOPPED.

  Attributes:
    rescue: called by a thread of its own at RESCUE of them, if the main thread has not come to an end by then.
  """

  SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self, grace: float = math.inf) -> None:
    self.requested, self.rescue = False, lambda: None
    self._grace, self._before, self._cleanup = grace, {}, contextlib.ExitStack()

  def __enter__(self) -> "StopRequest":
    heard, told = os.pipe()
    os.set_blocking(told, False)
    # Python writes a signal's number here at once, whatever the main thread does.
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
    watch = threading.Thread(target=self._watch, args=[heard], name="signals", daemon=True)
    watch.start()
    self._cleanup.callback(lambda: (os.close(heard), os.close(told)))
    self._cleanup.callback(watch.join)
    self._cleanup.callback(os.write, told, b"\0")
    self._cleanup.callback(signal.set_wakeup_fd, before)
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._cleanup.close()

  def __call__(self) -> bool:
    return self.requested

  def _note(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self.requested = True

  def _watch(self, heard: int) -> None:
    """Until the context ends: numbers of signals, and after the first the two moments of the deadline."""
    moments: list[tuple[float, Callable[[], None]]] = []
    while True:
      wait = max(0.0, moments[0][0] - time.monotonic()) if moments else None
      if wait is not None and not math.isfinite(wait):
        wait = None
      ready, *_ = select.select([heard], [], [], wait)
      if not ready:
        moments.pop(0)[1]()
        continue
      for number in os.read(heard, 64):
        if number == 0:
          return
        if number in self.SIGNALS and self.requested and moments:
          os._exit(128 + number)
        if number in self.SIGNALS:
          self.requested, now = True, time.monotonic()
          moments = [(now + RESCUE * self._grace, self._start_rescue), (now + self._grace, self._end)]

  def _start_rescue(self) -> None:
    threading.Thread(target=self.rescue, name="rescue", daemon=True).start()

  def _end(self) -> None:
    end(f"stopped by a signal: its {self._grace:g} s are over; run the same command again")


class Rescue:
  """What of a run can be saved by another thread, while the main one is stuck in something that only reads it.

  Args:
    save: (step, state) → saves it, and returns when it is on the disk.
  """

  def __init__(self, save: Callable[[int, object], None]):
    self._save, self._lock, self._held = save, threading.Lock(), None

  @contextlib.contextmanager
  def holding(self, step: int, state: object, settle: Callable[[], str]) -> Iterator[None]:
    """Within it the state is not donated, None where it is what has been saved already; `settle` puts its lines of
    metrics on the disk, and names what is not fit to be saved."""
    self._held = step, state, settle
    try:
      yield
    finally:
      with self._lock:  # not while it is being copied
        self._held = None

  def __call__(self) -> None:
    """Saves what is held and ends the process; nothing where the main thread holds nothing."""
    with self._lock:
      if self._held is None:
        return
      step, state, settle = self._held
      if state is None:
        end("stopped by a signal before an update was made")
      try:
        if wrong := settle():
          raise ValueError(f"{wrong} is not finite")
        self._save(step, state)
      except Exception as error:  # the deadline will tell that it was not saved; this says why
        print(f"step {step:,} could not be saved: {error}", file=sys.stderr, flush=True)
        return
      end(f"stopped by a signal; step {step:,} is saved")


_ending = threading.Lock()


def end(words: str) -> None:
  """Ends the process here and now, with STOPPED: a compiler or a reader that is stuck waits for nobody."""
  _ending.acquire()  # for good: of two threads that end the process one has the last word
  with contextlib.suppress(OSError, ValueError):
    print(words, file=sys.stderr, flush=True)
    sys.stdout.flush()
  os._exit(STOPPED)
