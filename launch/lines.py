"""Output of several processes on one stream, told apart by a prefix: whole lines only, whoever writes at once."""

import os
import time
from typing import TextIO

LONGEST = 1 << 16  # bytes without a line break that are kept before they are shown as a line
EVERY = 1.0  # seconds between two states of a line that is written over and over, as progress is
COLOURS = (36, 33, 32, 35, 34, 31)


class Lines:
  """What one process writes to one stream.

  A line that is rewritten after a carriage return is shown as a terminal would leave it in the end, and while it is
  rewritten, once in EVERY seconds.
  """

  def __init__(self, prefix: str, out: TextIO):
    self._prefix, self._out = prefix, out
    self._pending, self._shown = b"", 0.0

  def feed(self, data: bytes) -> None:
    """Shows the lines that `data` completes."""
    *complete, self._pending = (self._pending + data).split(b"\n")
    for line in complete:
      self._show(line)
    if len(self._pending) > LONGEST:
      self._show(self._pending)
      self._pending = b""
    elif b"\r" in self._pending.rstrip(b"\r") and time.monotonic() - self._shown > EVERY:
      self._show(self._pending)
      self._pending = self._pending[self._pending.rstrip(b"\r").rfind(b"\r") + 1 :]

  def end(self) -> None:
    """Shows what has no line break yet."""
    if self._pending:
      self._show(self._pending)
    self._pending = b""

  def _show(self, line: bytes) -> None:
    self._shown = time.monotonic()
    last = line.rstrip(b"\r").rpartition(b"\r")[2]
    try:
      self._out.write(f"{self._prefix}{last.decode('utf-8', 'replace')}\n")  # one write a line: none is cut by another
      self._out.flush()
    except BrokenPipeError:
      silence(self._out)
      raise


def prefix(rank: int, count: int, colour: bool) -> str:
  """What stands before each line of a process, `[3] `, equally wide for all of them."""
  text = f"[{rank:>{len(str(count - 1))}}]"
  return f"\x1b[{COLOURS[rank % len(COLOURS)]}m{text}\x1b[0m " if colour else f"{text} "


def silence(stream: TextIO) -> None:
  """Nobody reads it any more: what is still to come, at the end of Python too, goes nowhere."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)
