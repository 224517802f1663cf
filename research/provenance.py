"""Where a run's numbers come from: command, code, libraries, devices. It records, and decides nothing."""

import functools
import hashlib
import os
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
    **code(),
    "machine": {"system": platform.system(), "processor": platform.machine(), "host": platform.node()},
    "devices": [str(device.device_kind) for device in jax.devices()],
    "processes": jax.process_count(),
    "arguments": sys.argv[1:],
  }


@functools.cache
def code() -> dict:
  """What runs: {"git": as `git_state`, "versions": of Python and the libraries}. Found once: what is imported stays."""
  versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}
  return {"git": git_state(Path(__file__).resolve().parent), "versions": versions}


def git_state(directory: Path) -> dict | None:
  """{"commit", "dirty": sha-256 of what is not committed or None} of the checkout that `directory` is part of.

  Not committed are changes anywhere in it, and Python and flag files that git does not know yet. None where there is no
  checkout, or only one that this code is not in, as that of a project whose environment it is installed in.
  """

  def git(where: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=where, capture_output=True, check=True, timeout=10).stdout

  try:
    if not git(directory, "ls-files"):
      return None
    root = Path(os.fsdecode(git(directory, "rev-parse", "--show-toplevel")[:-1]))
    commit, changes = git(root, "rev-parse", "HEAD").decode().strip(), git(root, "diff", "HEAD")
    unknown = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py", "*.flags")
    for name in filter(None, unknown.split(b"\0")):
      changes += name + b"\0" + (root / os.fsdecode(name)).read_bytes()
  except (OSError, subprocess.SubprocessError):
    return None
  return {"commit": commit, "dirty": hashlib.sha256(changes).hexdigest() if changes else None}
