"""Hex sha-256 digests of data: equal content gives equal digests on any machine, numpy version or byte order.

Digests of large files are remembered by (size, modification time), so that a start does not read gigabytes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from research.parsing import parse_json

_CHUNK_BYTES = 1 << 24
_REMEMBER_BYTES = 1 << 20  # reading less than this is quicker than asking whether we have


def text(*parts: object) -> str:
  """Digest of a sequence of strings (or what prints as them); lengths are hashed too, so no two sequences collide."""
  digest = hashlib.sha256()
  for part in parts:
    encoded = str(part).encode()
    digest.update(f"{len(encoded)}:".encode() + encoded)
  return digest.hexdigest()


def arrays(named: Mapping[str, np.ndarray]) -> str:
  """Digest of names, dtypes, shapes and values, names sorted; memory layout and byte order do not count."""
  digest = hashlib.sha256()
  for name in sorted(named):
    array = np.asarray(named[name])
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
    rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes)) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 1, rows):
      digest.update(np.ascontiguousarray(array[start : start + rows] if array.ndim else array).tobytes())
  return digest.hexdigest()


def files(root: str | Path, names: Iterable[str], cache_dir: str | Path) -> str:
  """Digest of the files `names` under `root`: their relative names and bytes. Read once, then remembered in `cache_dir`
  until a size or modification time (ns) changes; a cache that cannot be written only costs the reading."""
  root, names = Path(root).resolve(), sorted(names)
  stats = [(name, (root / name).stat()) for name in names]
  stamp = text(root, *[f"{name}|{stat.st_size}|{stat.st_mtime_ns}" for name, stat in stats])
  memo = Path(cache_dir) / "fingerprints" / f"{text(root, *names)}.json"
  large = sum(stat.st_size for _, stat in stats) >= _REMEMBER_BYTES
  if large and (digest := _remembered(memo, stamp)):
    return digest
  digest = text(*[part for name in names for part in (name, file(root / name))])
  if large:
    write_json(memo, {"stamp": stamp, "sha256": digest})
  return digest


def file(path: str | Path) -> str:
  """Digest of one file's bytes."""
  with open(path, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _remembered(memo: Path, stamp: str) -> str | None:
  found = read_json(memo)
  digest = found.get("sha256") if found.get("stamp") == stamp else None
  return digest if isinstance(digest, str) and len(digest) == 64 else None


def read_json(path: Path) -> dict:
  """The object in `path`, or {} where there is none or it is damaged: what is remembered can be worked out again."""
  try:
    found = parse_json(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write_json(path: Path, content: dict) -> None:
  """Best effort, atomic: readers see the old file or the new one, and a full or read-only disk is no error."""
  partial = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(content))
    os.replace(partial, path)
  except OSError:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
