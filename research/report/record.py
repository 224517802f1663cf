"""metrics.jsonl: one strict-JSON object a line with "step", "time" (unix seconds) and the scalars of one moment.

It never edits a line in place, and it refuses a file that is damaged anywhere but in its last line.
Numbers that JSON cannot hold are written as the strings "NaN", "Infinity" and "-Infinity" (the spelling of protobuf's
JSON mapping), and read back as floats: a run that diverged says so, and every JSON reader can still open the file.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from research.errors import UserError
from research.parsing import parse_json
from research.report.atomic import cannot_write, write_atomically

Record = dict[str, float]  # "step" is an int
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict(value: object) -> object:
  """`value` with every number as JSON allows it: numpy and jax scalars become Python's, NaN and infinity strings."""
  if isinstance(value, Mapping):
    return {str(key): strict(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [strict(item) for item in value]
  if value is None or isinstance(value, (str, bool, int)):
    return value
  number = value.item() if hasattr(value, "item") else value
  if isinstance(number, float) and not math.isfinite(number):
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
  return number


def number(value: object) -> float:
  """A number as `strict` wrote it, as a float. Raises ValueError for any other thing."""
  if isinstance(value, str) and value in _SPELLED:
    return _SPELLED[value]
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  raise ValueError(f"{value!r} is not a number")


def read(path: Path) -> list[Record]:
  """The records of `path` in their order; a torn last line (the writer was killed) is left out.

  Raises UserError for a missing file and for damage anywhere else.
  """
  try:
    lines = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"report: cannot read {path}: {error.strerror or error}") from error
  while lines and not lines[-1].strip():
    lines.pop()
  records = []
  for place, line in enumerate(lines, start=1):
    try:
      records.append(_parse(line))
    except ValueError as error:
      if place == len(lines):
        break
      raise UserError(f"report: {path}, line {place} is damaged ({error}); delete that line") from error
  return records


def _parse(line: bytes) -> Record:
  content = parse_json(line, parse_constant=_refuse)
  if not isinstance(content, dict) or not isinstance(content.get("step"), int):
    raise ValueError("no object with an integer step")
  return {name: value if name == "step" else number(value) for name, value in content.items()}


def _refuse(constant: str) -> float:
  raise ValueError(f"{constant} is not JSON")


def truncate_after(path: Path, step: int) -> list[Record]:
  """Drops, atomically, what lies after `step` and a torn last line; returns what stays. A missing file is empty.

  A run resumed from checkpoint `step` calls it first, so that the steps which it repeats are recorded once.
  """
  if not path.exists():
    return []
  records = [record for record in read(path) if record["step"] <= step]
  write_atomically(path, b"".join(map(_line, records)))
  return records


def _line(record: Mapping[str, float]) -> bytes:
  return json.dumps(strict(record), allow_nan=False).encode() + b"\n"


class Writer:
  """Appends to metrics.jsonl. Each record is one write to the file, so kill -9 loses none that was appended."""

  def __init__(self, path: Path):
    self._path = path
    try:
      self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (held open for the length of the run)
    except OSError as error:
      raise cannot_write(path, error) from error

  def append(self, step: int, scalars: Mapping[str, float]) -> Record:
    """Writes one line and returns it as a record. Raises UserError where the disk is full."""
    record = {"step": int(step), "time": time.time(), **{name: float(value) for name, value in scalars.items()}}
    line = _line(record)
    try:
      if self._file.write(line) != len(line):
        raise OSError("the disk is full")
    except OSError as error:
      raise cannot_write(self._path, error) from error
    return record

  def close(self) -> None:
    """Closes the file, synced where the file system can do that. Harmless when repeated."""
    if not self._file.closed:
      with contextlib.suppress(OSError):
        os.fsync(self._file.fileno())
      self._file.close()


def curves(records: Iterable[Record]) -> dict[str, tuple[list[int], list[float]]]:
  """Per metric its steps and values, in the order of first appearance; of a repeated step the last value counts."""
  by_name: dict[str, dict[int, float]] = {}
  for record in records:
    for name, value in record.items():
      if name not in ("step", "time"):
        by_name.setdefault(name, {})[int(record["step"])] = value
  return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in by_name.items()}
