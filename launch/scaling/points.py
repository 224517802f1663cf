"""The points of a study: each a command in a fresh process, its outcome a line of points.jsonl as soon as it is there.

A study is resumed by running it again: what has a line is not run twice, and a point that failed is a line with the
reason. It refuses a directory whose points of the same name had another command, and one that another study is using.
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run_directory import locked
from launch.scaling import process
from launch.scaling.process import Stopped
from research.errors import UserError
from research.parsing import parse_json
from research.report.atomic import cannot_write, write_atomically
from research.report.record import strict

STOPPED = 75  # what a point exits with that was interrupted and saved; it is no outcome
FILE = "points.jsonl"
Row = dict[str, Any]  # "name", "command", "environment", "ok", "reason", "seconds"; what the point is, what it found


@dataclasses.dataclass(frozen=True)
class Point:
  """One measurement.

  Attributes:
    name: unlike all others of the study; a file's name.
    command: the whole command line.
    environment: what is set beside the study's own environment.
    about: what the point is, as columns: sizes, rates, devices.
  """

  name: str
  command: tuple[str, ...]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Found = Callable[[Point, str], Mapping[str, Any]]  # what a point found, from what it printed; ValueError: nothing


def run_all(
  points: Sequence[Point],
  folder: Path,
  found: Found,
  *,
  say: Callable[[str], None],
  retry: bool = False,
  timeout_s: float | None = None,
) -> list[Row]:
  """Runs the points that have no line yet, one after the other, and returns the rows of all of them in their order.

  Args:
    points: of one study.
    folder: the study's; gets points.jsonl and logs/NAME.out, logs/NAME.err.
    found: from a point that exited with 0 and what it printed, its numbers.
    say: is told of each outcome.
    retry: run again what failed.
    timeout_s: the longest that a point may take; longer is a failure.

  Raises:
    UserError: the folder is another study's, in use, or cannot be written.
    Stopped: a point exited with 75, or this process was told to stop: then so was the point, and it has ended.
  """
  with locked(folder, "study"):
    known = {row["name"]: row for row in read(folder / FILE)}
    _check_same(points, known, folder)
    waiting = [point for point in points if point.name not in known or (retry and not known[point.name]["ok"])]
    for place, point in enumerate(waiting, start=1):
      say(f"{place} of {len(waiting)}: {point.name}")
      row = run(point, folder / "logs", found, timeout_s)
      _append(folder / FILE, row)
      known[point.name] = row
      say(f"  {row['seconds']:.1f} s" + ("" if row["ok"] else f", failed: {row['reason']}"))
    return [known[point.name] for point in points]


def run(point: Point, logs: Path, found: Found, timeout_s: float | None = None) -> Row:
  """Runs one point; returns its row. Raises Stopped where it was interrupted."""
  began = time.monotonic()
  paths = logs / f"{point.name}.out", logs / f"{point.name}.err"
  with contextlib.ExitStack() as files:
    try:
      logs.mkdir(parents=True, exist_ok=True)
      out, err = (files.enter_context(open(path, "wb")) for path in paths)
    except OSError as error:
      raise cannot_write(logs, error) from error
    try:
      environment = {**os.environ, **point.environment}
      code = process.run(point.command, environment, out, err, timeout_s)
      reason = "" if code == 0 else _reason(code, paths[1])
    except subprocess.TimeoutExpired:
      code, reason = None, f"took longer than {timeout_s:g} s"
    except OSError as error:
      code, reason = None, f"cannot start {point.command[0]}: {error.strerror or error}"
  if code == STOPPED:
    raise Stopped(point.name)
  seconds, numbers = time.monotonic() - began, {}
  if not reason:
    try:
      numbers = dict(found(point, paths[0].read_text(encoding="utf-8", errors="replace")))
    except (ValueError, KeyError, OSError) as error:
      reason = f"exit code 0, but no result ({type(error).__name__}: {error})"
  return {
    "name": point.name,
    "command": list(point.command),
    "environment": dict(point.environment),
    "ok": not reason,
    "reason": reason,
    "seconds": round(seconds, 2),
    **point.about,
    **numbers,
  }


def read(path: Path) -> list[Row]:
  """The rows of points.jsonl, of each name the latest. A torn last line, whose writer was killed, is left out.

  Raises UserError for damage anywhere else. A missing file has no rows.
  """
  try:
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"study: cannot read {path}: {error}") from error
  rows: dict[str, Row] = {}
  for place, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = parse_json(line)
      rows[row["name"]] = row
    except (ValueError, KeyError, TypeError) as error:
      if place < len(lines):  # the last line is what follows the last line break
        raise UserError(f"study: {path}, line {place} is damaged ({error}); delete that line") from error
  return list(rows.values())


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
  """The rows as a table with those columns; what a row lacks is empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_atomically(path, text.getvalue())


def _check_same(points: Sequence[Point], known: Mapping[str, Row], folder: Path) -> None:
  for point in points:
    row = known.get(point.name)
    if row and (row["command"] != list(point.command) or row["environment"] != dict(point.environment)):
      theirs, ours = _parts(row["command"], row["environment"]), _parts(point.command, point.environment)
      there, here = " ".join(sorted(theirs - ours)), " ".join(sorted(ours - theirs))
      raise UserError(
        f"study: {point.name} in {folder} is of another study ({there or 'nothing'} there, {here or 'nothing'} here);"
        " give another --workdir"
      )


def _parts(command: Sequence[str], environment: Mapping[str, str]) -> set[str]:
  return {*command, *(f"{name}={value}" for name, value in environment.items())}


def _append(path: Path, row: Row) -> None:
  """One write, synced; a torn line of an earlier process is cut off first."""
  line = json.dumps(strict(row), allow_nan=False, ensure_ascii=False).encode() + b"\n"
  try:
    with open(path, "ab+") as file:
      file.seek(0)
      whole = file.read().rfind(b"\n") + 1
      file.truncate(whole)
      file.write(line)
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise cannot_write(path, error) from error


def _reason(code: int, stderr: Path) -> str:
  lines = [line.strip() for line in stderr.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
  last = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1])[:300] if lines else "nothing on stderr"
  return f"{f'killed by signal {-code}' if code < 0 else f'exit code {code}'}: {last}"
