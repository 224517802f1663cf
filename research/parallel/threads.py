"""Enough threads for several CPU devices in one process.

XLA's CPU client does what does not depend on each other at once, in any order, and a collective holds its thread until
all devices have come to it. With a thread for each device, half of them can stand in one collective and half in another
for ever; XLA ends such a process after 40 seconds.
"""

import os
import re
from collections.abc import MutableMapping

VARIABLE = "NPROC"  # which XLA's CPU client reads when it is made; otherwise it has a thread for each core or device
EACH = 4  # threads for a device


def make_room(environment: MutableMapping[str, str] = os.environ) -> None:
  """Before the first device is asked for: more threads where there are to be several devices on a CPU."""
  flags = environment.get("XLA_FLAGS", "")
  counts = [int(count) for count in re.findall(r"xla_force_host_platform_device_count=(\d+)", flags)]
  counts.append(int(environment.get("JAX_NUM_CPU_DEVICES") or 1))
  if max(counts) > 1:
    environment.setdefault(VARIABLE, str(EACH * max(counts)))
