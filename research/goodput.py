"""Where a run's wall time went, over all its starts: the one place that counts it, and what each share means.

Every second of a start belongs to one of `SHARES`, and what was done for updates that a later start had to repeat is
`lost`. Time between two starts is no wall time of the run. A start's seconds are kept in a line a moment, each with the
updates finished by then, so that a death costs the account a moment's worth and no more.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from research.parsing import parse_json

FILE = "goodput.jsonl"
STEPS = "steps"
SHARES = {  # in words for a page
  STEPS: "updates",
  "compile": "compiling",
  "data": "waiting for data",
  "evaluation": "evaluating",
  "saving": "waiting for checkpoints",
  "start": "starting: imports, data, the checkpoint",
  "end": "ending: the last evaluation, the report",
}
LOST = "lost"  # to restarts
# Between two lines of a thread that looks after a run: what its death costs the account at most.
EVERY, LEAST = 0.005, 0.1  # of the time so far; seconds


class Clock:
  """The seconds of one start; `add` and the contexts are for the main thread, lines may come from another one.

  Args:
    began: on `now`'s clock, when the process was started.
    now: seconds, monotonic.
  """

  def __init__(self, began: float | None = None, now: Callable[[], float] = time.monotonic):
    self._now, self._lock = now, threading.Lock()
    self._seconds = dict.fromkeys(SHARES, 0.0)
    self._share, self._since = "start", now() if began is None else began
    self._step, self._file, self._closed = 0, None, threading.Event()

  def turn(self, share: str) -> str:
    """From now on time is of `share`; the one that it was of before."""
    now, before = self._now(), self._share
    with self._lock:
      self._seconds[before] += now - self._since
      self._share, self._since = share, now
    return before

  @contextlib.contextmanager
  def of(self, share: str) -> Iterator[None]:
    """Within it time is of `share`, whatever it was of before."""
    before = self.turn(share)
    try:
      yield
    finally:
      self.turn(before)

  def move(self, share: str, seconds: float) -> None:
    """Seconds that have just passed were of `share`, and not of the current one."""
    with self._lock:
      self._seconds[share] += seconds
      self._seconds[self._share] -= seconds

  def seconds(self) -> dict[str, float]:
    """{share: seconds} up to now."""
    with self._lock:
      return {**self._seconds, self._share: self._seconds[self._share] + self._now() - self._since}

  def keep(self, workdir: Path, start: int) -> None:
    """Begins to write lines: this start goes on from `start` updates."""
    self._step = start
    path = workdir / FILE
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  it is written as long as the run
    if torn:  # by a full disk, say: the next line shall not be lost with it
      self._file.write("\n")
    self._write({"from": start})
    threading.Thread(target=self._look_after, name="goodput", daemon=True).start()

  def at(self, step: int) -> None:
    """So many updates are finished, as the next line will say."""
    self._step = step

  def again(self, step: int) -> None:
    """Training has gone back to `step`: what was counted so far is as if another start had counted it."""
    self._write({})
    self.turn(self._share)
    with self._lock:
      self._seconds, self._step = dict.fromkeys(SHARES, 0.0), step
    self._write({"from": step})

  def mark(self) -> None:
    """Writes a line."""
    self._write({})

  def close(self) -> None:
    self._closed.set()
    if self._file is not None:
      self._write({})
      with contextlib.suppress(OSError):  # what a full disk has not taken yet
        self._file.close()

  def _look_after(self) -> None:
    while not self._closed.wait(max(LEAST, EVERY * sum(self.seconds().values()))):
      self._write({})

  def _write(self, more: Mapping[str, Any]) -> None:
    file: IO[str] | None = self._file
    if file is None or file.closed:
      return
    told = {share: round(seconds, 4) for share, seconds in self.seconds().items()}
    with contextlib.suppress(OSError, ValueError):  # a full disk is told of by what matters more
      file.write(json.dumps({**more, "step": self._step, "seconds": told}) + "\n")
      file.flush()


@contextlib.contextmanager
def compiling(clock: Clock) -> Iterator[None]:
  """Within it what jax compiles in this thread is time of "compile", wherever it happens to be needed."""
  import jax

  thread = threading.get_ident()

  def hear(name: str, seconds: float, **_: Any) -> None:
    if name.endswith("backend_compile_duration") and threading.get_ident() == thread:
      clock.move("compile", seconds)

  jax.monitoring.register_event_duration_secs_listener(hear)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_duration_listener(hear)


def process_age() -> float:
  """Seconds since this process was started; 0 where the system does not tell."""
  try:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
  except (OSError, ValueError, IndexError, AttributeError):
    return 0.0


def read(workdir: Path) -> list[dict[str, Any]]:
  """The lines of all starts, oldest first; one that a death has cut off is left out."""
  lines = []
  with contextlib.suppress(OSError):
    for text in (workdir / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
      with contextlib.suppress(ValueError):
        lines.append(parse_json(text))
  return [line for line in lines if _whole(line)]


def _whole(line: Any) -> bool:
  """Whether it is a line of `Clock`'s: an account is not worth a run that fails for it."""
  if not isinstance(line, dict) or not isinstance(line.get("seconds"), dict):
    return False
  steps, seconds = (line.get("step"), line.get("from", 0)), line["seconds"].values()
  return all(isinstance(each, int) for each in steps) and all(isinstance(each, int | float) for each in seconds)


def account(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """{share: seconds} over all starts, with what was lost to restarts; their sum is the wall time.

  Of a start that a later one did not go on from the end of, what came after the update that the later one went on from
  is lost.
  """
  starts: list[list[Mapping[str, Any]]] = []
  for line in lines:
    if "from" in line:
      starts.append([])
    if starts:
      starts[-1].append(line)
  total = dict.fromkeys([*SHARES, LOST], 0.0)
  for number, mine in enumerate(starts):
    later = [start[0]["from"] for start in starts[number + 1 :]]
    reached = min(later, default=mine[-1]["step"])
    useful = next((line for line in reversed(mine) if line["step"] <= reached), mine[0])
    for share, seconds in useful["seconds"].items():
      total[share] = total.get(share, 0.0) + seconds
    total[LOST] += sum(mine[-1]["seconds"].values()) - sum(useful["seconds"].values())
  return total


def said(total: Mapping[str, float]) -> str:
  """The account in half a line: "updates 83%, compiling 9%, …", what is less than half a percent left out."""
  wall = sum(total.values())
  names = {**SHARES, LOST: "lost to restarts"}
  shares = sorted(((seconds / wall, names[share].partition(":")[0]) for share, seconds in total.items()), reverse=True)
  return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005) if wall else ""
