"""A small disk that can be filled and emptied, or, where nothing may be mounted, a limit that stands for one."""

import contextlib
import resource
import subprocess

MB = 2**20


class Mounted:
  """24 MB in memory, mounted at `folder`; `close` unmounts it."""

  said = "No space left on device"

  def __init__(self, folder):
    self.folder = folder
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True, capture_output=True)

  def leave(self, mb):
    """Fills it, but for so many MB."""
    self.empty()
    with open(self.folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
      free = int(subprocess.check_output(["stat", "-f", "-c", "%a", str(self.folder)])) * 4096
      file.write(bytes(max(0, free - int(mb * MB))))

  def fill(self):
    """To the last byte, those of half-filled pages too."""
    self.leave(0)

  def empty(self):
    (self.folder / "filler").unlink(missing_ok=True)

  def close(self):
    subprocess.run(["umount", str(self.folder)], check=True, capture_output=True)


class Limited:
  """A limit on the size of this process' files: what is small is written, and a checkpoint is not."""

  said = "File too large"

  def __init__(self, folder):
    folder.mkdir()
    self.folder, self._before = folder, resource.getrlimit(resource.RLIMIT_FSIZE)

  def leave(self, mb):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, self._before[1]))

  def fill(self):
    """What metrics.jsonl is now; what this process prints may lie in a file as well."""
    size = (self.folder / "run" / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, self._before[1]))

  def empty(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, self._before)

  close = empty


def small(folder):
  """A mounted one where that is permitted, else the limit."""
  try:
    return Mounted(folder / "disk")
  except (OSError, subprocess.CalledProcessError):
    return Limited(folder / "limited")
