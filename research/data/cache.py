"""Decoded examples kept as .npy files that are memory-mapped: decoded once, however many runs and processes ask.

An entry appears whole or not at all: it is written into a folder of its own, synced, and renamed into place under a
lock. What a killed process leaves is removed by the next one to write; an entry that is damaged is made again.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from research.data import fingerprint as fingerprints
from research.data.source import Feature
from research.errors import UserError

_FORMAT = 2
_CHUNK = 512  # examples decoded by one thread at a time
_CHECK_BYTES = 1 << 30  # entries up to this size are read through at every opening (0.7 s); larger ones only measured

Features = Mapping[str, Feature]
Decode = Callable[[range], dict[str, np.ndarray]]
Begin = Callable[[], tuple[Features, Decode]]


def directory(cache_dir: str) -> Path:
  """`cache_dir`, or where it is empty $XDG_CACHE_HOME/flagship or ~/.cache/flagship. Created when needed."""
  if cache_dir:
    return Path(cache_dir).expanduser()
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flagship"


def decode_once(
  name: str,
  fingerprint: str,
  size: int,
  begin: Begin,
  cache_dir: str | Path,
  progress: Callable[[str], None],
) -> dict[str, np.ndarray]:
  """Arrays (size, ...), memory-mapped and read-only, from the cache or, where it lacks them, by decoding.

  `begin()` returns the entries' shapes and types, and `decode(range)`, which returns the examples of that range and is
  called from several threads. A second process that wants the same entry waits for the first. Raises UserError where
  the cache cannot be written; a UserError of `begin` or `decode` passes, and leaves nothing behind.
  """
  entries = Path(cache_dir) / "decoded"
  entry = entries / fingerprint
  if (arrays := _opened(entry, size)) is not None:
    return arrays
  try:
    entries.mkdir(parents=True, exist_ok=True)
    with _locked(entries / f"{fingerprint}.lock", lambda: progress(f"waiting for another process to decode {name}")):
      _remove_leftovers(entries, fingerprint)
      if (arrays := _opened(entry, size)) is not None:  # made while we waited
        return arrays
      if entry.exists():
        progress(f"the cached copy of {name} is damaged or outdated and is made again")
        _remove(entry)
      progress(f"decoding {name}: {size:,} examples, once")
      partial = entries / f"{fingerprint}.partial-{os.getpid()}-{os.urandom(4).hex()}"
      try:
        _write(partial, size, *begin())
        os.replace(partial, entry)
        _sync(entries)
      finally:
        shutil.rmtree(partial, ignore_errors=True)
  except OSError as error:
    raise UserError(
      f"data: cannot keep decoded {name} in {entries} ({error.strerror or error}); name another folder"
      " as --data.cache_dir"
    ) from error
  if (arrays := _opened(entry, size)) is None:
    raise UserError(f"data: what was just written to {entry} does not read back; the disk or file system is faulty")
  return arrays


def _write(partial: Path, size: int, features: Features, decode: Decode) -> None:
  """Plain sequential writes: through a memory map, a full disk would be a SIGBUS instead of an error."""
  partial.mkdir()
  manifest = {}
  with contextlib.ExitStack() as stack:
    files = {key: stack.enter_context(open(partial / f"{key}.npy", "wb")) for key in features}
    checks = {}  # CRC-32: damage is accidental, and SHA-256 is five times slower
    for key, feature in features.items():
      header = {"descr": np.dtype(feature.dtype).str, "fortran_order": False, "shape": (size, *feature.shape)}
      np.lib.format.write_array_header_1_0(files[key], header)
      files[key].flush()
      checks[key] = zlib.crc32((partial / f"{key}.npy").read_bytes())
    written = 0
    for chunk in _threaded(decode, (range(i, min(i + _CHUNK, size)) for i in range(0, size, _CHUNK))):
      for key, feature in features.items():
        array = np.ascontiguousarray(chunk[key], feature.dtype)
        if array.shape[1:] != feature.shape:
          raise ValueError(f"decoded {key} has shape {array.shape[1:]}, not {feature.shape}")
        files[key].write(array.data)
        checks[key] = zlib.crc32(array.data, checks[key])
      written += len(array)
    if written != size:
      raise ValueError(f"decoded {written} of {size} examples")
    for key, file in files.items():
      file.flush()
      os.fsync(file.fileno())
      manifest[key] = {"bytes": file.tell(), "crc32": checks[key]}
  with open(partial / "manifest.json", "w") as file:
    json.dump({"format": _FORMAT, "size": size, "arrays": manifest}, file)
    file.flush()
    os.fsync(file.fileno())
  _sync(partial)


def _opened(entry: Path, size: int) -> dict[str, np.ndarray] | None:
  """The entry's arrays, or None where it is missing, incomplete or not what its manifest says."""
  manifest = fingerprints.read_json(entry / "manifest.json")
  if manifest.get("format") != _FORMAT or manifest.get("size") != size:
    return None
  arrays = {}
  try:
    recorded = manifest["arrays"]
    paths = {key: entry / f"{key}.npy" for key in recorded}
    if any(paths[key].stat().st_size != recorded[key]["bytes"] for key in paths):
      return None
    if sum(path.stat().st_size for path in paths.values()) <= _CHECK_BYTES and any(
      _crc32(paths[key]) != recorded[key]["crc32"] for key in paths
    ):
      return None
    for key, path in paths.items():
      array = np.load(path, mmap_mode="r", allow_pickle=False)
      if len(array) != size:
        return None
      arrays[key] = np.asarray(array)  # a plain array over the map: gathering from a memmap makes memmaps
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None
  return arrays


def _crc32(path: Path) -> int:
  check = 0
  with open(path, "rb") as file:
    while piece := file.read(1 << 22):
      check = zlib.crc32(piece, check)
  return check


def _threaded(decode: Decode, ranges: Iterator[range]) -> Iterator[dict[str, np.ndarray]]:
  """decode(range) for each range in order, a few ahead at a time, so that memory stays small."""
  workers = min(16, len(os.sched_getaffinity(0)))
  with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
    ahead = collections.deque(pool.submit(decode, part) for part in itertools.islice(ranges, 2 * workers))
    try:
      while ahead:
        yield ahead.popleft().result()
        ahead.extend(pool.submit(decode, part) for part in itertools.islice(ranges, 1))
    finally:
      for future in ahead:
        future.cancel()


@contextlib.contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
  """Holds an exclusive flock. The kernel frees it when the holder dies; the file stays, as removing it would race."""
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      on_wait()
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _remove_leftovers(entries: Path, held: str) -> None:
  """Partial folders whose writer is dead: those of `held`, whose lock is ours, and those whose lock nobody holds."""
  for partial in entries.glob("*.partial-*"):
    owner = partial.name.split(".")[0]
    if owner == held:
      _remove(partial)
      continue
    with open(entries / f"{owner}.lock", "w") as file, contextlib.suppress(BlockingIOError):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      _remove(partial)


def _remove(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink()


def _sync(folder: Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)

