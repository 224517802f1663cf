"""Where a run's numbers come from: command, code, libraries, devices. It records, and decides nothing."""

import hashlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "absl-py")


def record(command: Sequence[str]) -> dict:
  """What can be known before training; strings and numbers only."""
  return {
    "command": shlex.join(command),
    "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    "git": git_state(Path(__file__).resolve().parent),
    "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}},
    "machine": {"system": platform.system(), "processor": platform.machine(), "host": platform.node()},
    "devices": [str(device.device_kind) for device in jax.devices()],
    "processes": jax.process_count(),
    "arguments": sys.argv[1:],
  }


def git_state(directory: Path) -> dict | None:
  """{"commit", "dirty": sha-256 of the uncommitted diff or None}; None outside a checkout."""

  def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, check=True, timeout=10).stdout

  try:
    commit, difference = git("rev-parse", "HEAD").decode().strip(), git("diff", "HEAD", "--", ".")
  except (OSError, subprocess.SubprocessError):
    return None
  return {"commit": commit, "dirty": hashlib.sha256(difference).hexdigest() if difference else None}
