"""Whole files or none: a reader, or a run killed half way, never meets a half-written file.

It does not lock: two processes that write one path both succeed, and the later one stays.
"""

import contextlib
import os
from pathlib import Path

from research.errors import UserError


def write_atomically(path: Path, content: bytes | str) -> None:
  """Replaces `path` by `content` (text as UTF-8) and returns once it is on the disk.

  Raises UserError where the directory is read-only, missing or full; the old file is then still whole.
  """
  data = content.encode() if isinstance(content, str) else content
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(path.parent)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
  """The one line that a full or read-only run directory deserves."""
  return UserError(f"workdir: cannot write {path}: {error.strerror or error} (free space or choose another --workdir)")


def _sync_directory(path: Path) -> None:
  # The rename itself is a change of the directory, which a power cut can take back until it is synced too.
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
