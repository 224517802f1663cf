"""What a checkpoint's files are: SHA-256 and length of each, in a file beside them that is written last.

A folder without a whole manifest is no checkpoint. Nothing of a folder is read by anybody before all of it is what its
manifest says: Orbax alone loads an array file with a flipped bit without a word.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from research.parsing import parse_json
from research.report.atomic import write_atomically

NAME = "manifest.json"
MOST_BYTES = 2**26  # of a manifest; 64 MB are files for 400,000 arrays


class Damaged(Exception):
  """A folder is not what its manifest says; the message names the file and what is wrong with it."""


def write(folder: Path, step: int, about: Mapping[str, Any]) -> None:
  """Hashes what is in `folder` and writes its manifest, all of it on the disk when this returns.

  Args:
    folder: holds regular files, in folders of its own or not.
    step: whose checkpoint it is, so that folders cannot be mistaken for each other.
    about: what else belongs to it, as JSON.
  """
  names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
  files = {name: _digest(folder / name, keep=True) for name in names if name != NAME}
  content = {"step": step, **about, "files": files}
  write_atomically(folder / NAME, _text(content))


def amend(folder: Path, step: int, about: Mapping[str, Any]) -> None:
  """Changes what `write` was told, without looking at the files."""
  content = {**read(folder, step), **about}
  write_atomically(folder / NAME, _text(content))


def is_in(folder: Path) -> bool:
  """Whether the folder claims to be a checkpoint."""
  return (folder / NAME).exists()


def check(folder: Path, step: int) -> dict[str, Any]:
  """What `write` wrote, once every file is found to be what it says. Raises Damaged with the first that is not."""
  content = read(folder, step)
  for name, known in content["files"].items():
    path = folder / name
    if any(each.is_symlink() for each in (path, *path.parents) if each != folder and each.is_relative_to(folder)):
      raise Damaged(f"{name} is a link")
    try:
      found = _digest(path, length=known["bytes"])
    except OSError as error:
      raise Damaged(f"{name} cannot be read ({error.strerror or error})") from error
    if found["bytes"] != known["bytes"]:
      raise Damaged(f"{name} has {found['bytes']:,} bytes of {known['bytes']:,}")
    if found["sha256"] != known["sha256"]:
      raise Damaged(f"{name} has other content than was written")
  return content


def read(folder: Path, step: int) -> dict[str, Any]:
  """The manifest alone; the files are not looked at. Raises Damaged where there is none, or it was changed."""
  path = folder / NAME
  try:
    if folder.is_symlink() or path.is_symlink():
      raise Damaged(f"{NAME} is a link" if path.is_symlink() else "it is a link")
    if path.stat().st_size > MOST_BYTES:
      raise Damaged(f"{NAME} is larger than {MOST_BYTES // 10**6} MB")
    text = path.read_text(encoding="utf-8")
    content = parse_json(text)
    del content["sha256"]
    good = text == _text(content)
  except FileNotFoundError as error:
    raise Damaged(f"it has no {NAME}: it was not finished, or not written by this version") from error
  except OSError as error:
    raise Damaged(f"{NAME} cannot be read ({error.strerror or error})") from error
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise Damaged(f"{NAME} has other content than was written") from error
  if not good:
    raise Damaged(f"{NAME} has other content than was written")
  files = content.get("files")
  if not isinstance(files, dict) or not files or not content.keys() >= {"step", "best", "about"}:
    raise Damaged(f"{NAME} does not say what belongs to it")
  if content["step"] != step:
    raise Damaged(f"{NAME} is of step {content['step']}")
  for name in _outside(content["files"]):
    raise Damaged(f"{NAME} names {name!r}, which is not in the folder")
  return content


def _outside(names: Iterable[str]) -> list[str]:
  """Those that are no plain path below the folder."""
  return [name for name in names if not name or name.startswith("/") or ".." in PurePosixPath(name).parts]


def _digest(path: Path, *, keep: bool = False, length: int | None = None) -> dict[str, Any]:
  """{"sha256", "bytes"} of a file; with `keep` it is on the disk afterwards. One of another length is not read."""
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    if length is not None and size != length:
      return {"sha256": "", "bytes": size}
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # lets other threads run meanwhile
    if keep:
      os.fsync(file.fileno())
  return {"sha256": digest, "bytes": size}


def _text(content: Mapping[str, Any]) -> str:
  """The one way to write it, with its own hash."""
  own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
  return json.dumps({**content, "sha256": own}, indent=1)
