"""A library that ends the process by abort(): before that, whoever is dead is named.

Where a peer dies in the middle of one of Gloo's messages, the next collective reads what is left of it, finds it of
another size, and jaxlib aborts from a thread of its own: there is no exception that Python could catch.
"""

import ctypes
import os
import signal
from collections.abc import Callable

_kept = []  # what C holds a pointer to


def before_abort(act: Callable[[], None]) -> None:
  """From now on abort() calls `act` first, in the thread that aborts. If `act` returns, the process ends by SIGABRT.

  The thread waits as in any call from C into Python, so this is no place of a signal's restrictions: abort() raises its
  signal in the thread itself, between two statements of its own.
  """

  def handle(number: int) -> None:
    libc.signal(number, None)  # SIG_DFL: once is enough
    try:
      act()
    finally:
      os.kill(os.getpid(), number)

  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  _kept.append(callback)
  libc.signal(signal.SIGABRT, ctypes.cast(callback, ctypes.c_void_p))
