"""How freed memory is kept on a CPU: by the process, rather than given back to the system after every step.

XLA's CPU backend takes a step's temporary buffers from malloc and frees them at its end. glibc gives large ones back
to the system, which fills each page with zeros before it lends it again: up to 10,000 pages in each update of a
small GPT, about a sixth of its time. The price: threads that compile share one arena, and take some 15 % longer.
"""

import ctypes

# malloc.h's M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. The arenas of other threads are of pieces of 64 MB,
# which go back when they are empty, whatever the thresholds say.
OPTIONS = {-8: 1, -3: 2**31 - 1, -1: 2**31 - 1}


def keep_freed_memory() -> bool:
  """Takes effect for what is allocated from now on; False where the C library has no `mallopt`.

  Memory stays near its peak, which a run reaches in its first steps.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  return mallopt is not None and sum(mallopt(option, value) for option, value in OPTIONS.items()) == len(OPTIONS)
