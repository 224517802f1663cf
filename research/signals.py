"""SIGINT and SIGTERM as a question that the loop asks between calls; it stops nothing by itself."""

import signal
from types import FrameType


class StopRequest:
  """A context in which the first signal is noted, and a second one ends the process at once.

  Checkpoints are atomic, so the second signal costs the updates since the last one and nothing else.
  """

  SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self) -> None:
    self.requested = False
    self._before = {}

  def __enter__(self) -> "StopRequest":
    self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __call__(self) -> bool:
    return self.requested

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.requested = True
    signal.signal(number, signal.SIG_DFL)
