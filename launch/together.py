"""Processes of one command on this machine that end together: one dies, and the others are stopped. No process that it
has started outlives it.
"""

import contextlib
import dataclasses
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.engine import AGAIN
from launch.lines import Lines, prefix

TIED = (sys.executable, "-I", "-S", str(Path(__file__).with_name("tied.py")))


class Signals:
  """A context in which SIGINT, SIGTERM and SIGHUP are kept to be passed on, and SIGCHLD ends a wait.

  Attributes:
    asked: whether this process has been told to stop.
  """

  STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

  def __init__(self) -> None:
    self.asked = False
    self._reader, self._writer = socket.socketpair()
    for end in (self._reader, self._writer):
      end.setblocking(False)

  def __enter__(self) -> "Signals":
    self._fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    kept = [each for each in self.STOP if signal.getsignal(each) != signal.SIG_IGN]  # nohup has SIGHUP ignored
    self._before = {each: signal.signal(each, self._ignore) for each in (*kept, signal.SIGCHLD)}
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._fd)
    self._reader.close()
    self._writer.close()

  def fileno(self) -> int:
    """Readable when a signal has come."""
    return self._reader.fileno()

  def take(self) -> list[int]:
    """The requests to stop that have come since the last call."""
    try:
      come = [number for number in self._reader.recv(4096) if number in self.STOP]
    except BlockingIOError:
      return []
    self.asked |= bool(come)
    return come

  def wait(self, seconds: float) -> bool:
    """Sleeps; True, at once, when told to stop."""
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
      selector.register(self, selectors.EVENT_READ)
      while not self.asked and (left := end - time.monotonic()) > 0:
        if selector.select(left):
          self.take()
    return self.asked

  def _ignore(self, number, frame) -> None:
    """The number is written to the socket by Python itself."""


@dataclasses.dataclass(frozen=True)
class Ending:
  """How a group ended: `code` of the `rank` that was the first to end with one that is not 0, or 0 and None."""

  code: int
  rank: int | None = None


class Together:
  """A command in several processes, one for each environment.

  Args:
    command: its words.
    environments: of each process, whole.
    grace: seconds that the others have to end after they are told to, when one has died.
  """

  def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]], grace: float):
    self._grace, self._deadline = grace, None
    self._command, self._environments = command, environments
    self._told, self._ending = False, Ending(0)
    self._selector, self._lines, self._running = selectors.DefaultSelector(), {}, {}

  def run(self, signals: Signals) -> Ending:
    """Starts them, and shows what they write until all have ended; passes on the signals that come meanwhile."""
    self._selector.register(signals, selectors.EVENT_READ)
    try:
      for rank, environment in enumerate(self._environments):
        self._start(rank, environment)
      while self._running:
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
        for key, _ in self._selector.select(left):
          if key.fileobj is signals:
            for number in signals.take():
              self._tell(signal.SIGTERM if number == signal.SIGHUP else number)
          else:
            self._read(key.fileobj)
        self._reap()
        if self._deadline is not None and time.monotonic() >= self._deadline:
          self._tell(signal.SIGKILL)
          self._deadline = time.monotonic() + 1.0
    finally:
      self._tell(signal.SIGKILL)
      for pipe in list(self._lines):
        while self._read(pipe):
          pass
        self._finish(pipe)
      self._selector.close()
    return self._ending

  def _start(self, rank: int, environment: Mapping[str, str]) -> None:
    tied = [*TIED, str(os.getpid())] if sys.platform == "linux" else []
    process = subprocess.Popen(
      [*tied, *self._command], env=environment, bufsize=0, start_new_session=True,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    self._running[rank] = process
    for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
      coloured = stream.isatty() and "NO_COLOR" not in os.environ
      os.set_blocking(pipe.fileno(), False)
      self._lines[pipe] = Lines(prefix(rank, len(self._environments), coloured), stream)
      self._selector.register(pipe, selectors.EVENT_READ)

  def _reap(self) -> None:
    """Notes who has ended, takes the rest of its process group away, and lets the others stop for the first."""
    ended = {}
    for rank, process in self._running.items():
      # Looked at before it is reaped: as long as it is a zombie, its number can't be another group's.
      if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        _kill_group(process.pid, signal.SIGKILL)
        code = process.wait()
        ended[rank] = 128 - code if code < 0 else code  # of a signal's number, as shells say it
    for rank in ended:
      del self._running[rank]
    bad = sorted((code in AGAIN, rank) for rank, code in ended.items() if code)  # who died before who noticed it
    if bad and self._ending.rank is None:
      self._ending = Ending(ended[bad[0][1]], bad[0][1])
      if not self._told:  # a second signal would end them before they have saved
        self._tell(signal.SIGTERM)
      self._deadline = time.monotonic() + self._grace

  def _tell(self, number: int) -> None:
    self._told = True
    for process in self._running.values():
      _kill_group(process.pid, number)

  def _read(self, pipe) -> bool:
    """Whether there may be more."""
    try:
      data = pipe.read(1 << 16) if pipe in self._lines else b""
    except BlockingIOError:
      return False
    if data is None:  # nothing now
      return False
    if not data:
      self._finish(pipe)
      return False
    self._shown(lambda: self._lines[pipe].feed(data))
    return True

  def _finish(self, pipe) -> None:
    if pipe in self._lines:
      self._selector.unregister(pipe)
      self._shown(self._lines[pipe].end)
      del self._lines[pipe]
      pipe.close()

  def _shown(self, show) -> None:
    try:
      show()
    except BrokenPipeError:  # as after `| head`: the processes may save, and end
      self._tell(signal.SIGTERM)


def _kill_group(pid: int, number: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS forbids it for a group of zombies
    os.killpg(pid, number)
