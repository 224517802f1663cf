"""A point's process: it dies with the study, and a signal to stop is passed on to it and waited for."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import BinaryIO

from launch.together import TIED


class Stopped(Exception):
  """A point was interrupted: the study goes on with it the next time."""


def run(
  command: Sequence[str], environment: Mapping[str, str], out: BinaryIO, err: BinaryIO, timeout_s: float | None
) -> int:
  """Runs it to its end; returns its exit code, −N of signal N.

  Raises:
    Stopped: this process was told to stop, and the point has ended, saved or not. A second signal is passed on too.
    subprocess.TimeoutExpired: it took longer, and is gone.
    OSError: it cannot be started.
  """
  if shutil.which(command[0]) is None:
    raise FileNotFoundError(2, os.strerror(2), command[0])
  tied = [*TIED, str(os.getpid())] if sys.platform == "linux" else []
  with _passing_on() as to:
    # A session of its own: Ctrl-C comes to the study alone, which then stops the point once.
    process = subprocess.Popen(
      [*tied, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
    )
    to.start(process)
    try:
      code = process.wait(timeout_s)
    finally:
      to.kill()
  if to.stopped:
    raise Stopped(" ".join(command))
  return code


class _Passing:
  """What a signal does: SIGTERM to the process group, now or as soon as there is one."""

  def __init__(self) -> None:
    self.stopped = False
    self._process: subprocess.Popen | None = None

  def start(self, process: subprocess.Popen) -> None:
    self._process = process
    if self.stopped:
      self._send(signal.SIGTERM)

  def kill(self) -> None:
    """Ends it where it still runs."""
    self._send(signal.SIGKILL)
    self._process.wait()

  def note(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self.stopped = True
    self._send(signal.SIGTERM)

  def _send(self, number: int) -> None:
    if self._process is None or self._process.returncode is not None:  # the number may be another's by now
      return
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, number)


@contextlib.contextmanager
def _passing_on() -> Iterator[_Passing]:
  passing = _Passing()
  kept = [each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
  before = {each: signal.signal(each, passing.note) for each in kept}
  try:
    yield passing
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
