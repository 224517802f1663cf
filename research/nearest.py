"""What the user probably meant: the known name, or the file that exists, nearest to one that does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from research.errors import UserError


def hint(name: str, known: Iterable[str]) -> str:
  """What ends an error line: " (did you mean X?)", or the known names where none is near and they are few, or ""."""
  known = sorted(known)
  return meant(name, known) or (f" (known: {', '.join(known)})" if 0 < len(known) <= 12 else "")


def meant(name: str, known: Iterable[str]) -> str:
  """The part of `hint` that names one, "" where none is near: for lines that tell the known names anyway."""
  known = sorted(known)
  lower = {candidate.lower(): candidate for candidate in reversed(known)}
  if found := difflib.get_close_matches(name.lower(), lower, n=3):
    # Among equally near names, the one as long: cifar11 is a slip for cifar10 rather than for cifar10_1.
    scores = [difflib.SequenceMatcher(None, name.lower(), match).ratio() for match in found]
    near = [match for match, score in zip(found, scores, strict=True) if score > scores[0] - 0.03]
    return f" (did you mean {lower[min(near, key=lambda match: abs(len(match) - len(name)))]}?)"
  return ""


def existing(text: str, kind: str) -> Path:
  """The path as given, ~ expanded. `kind` is "file" or "folder". Raises UserError, with the nearest name, where there
  is no such thing."""
  path = Path(text).expanduser()
  if path.is_dir() if kind == "folder" else path.is_file():
    return path
  if path.exists():
    raise UserError(f"data: {path} is not a {kind}")
  parent, missing = path.parent, path.name
  while not parent.is_dir():
    parent, missing = parent.parent, parent.name
  try:
    names = [found.name for found in parent.iterdir()]
  except OSError:
    names = []
  near = meant(missing, names)
  where = "" if parent == path.parent else f", nor folder {missing!r} in {parent}"
  raise UserError(f"data: there is no {kind} {path}{where}{near}")
