"""Each process says every few seconds that it lives and how far it is, and learns when another does not.

Process 0 judges, for all beats lie in its store; the others watch process 0 alone. Who ends does so at once and from a
thread of its own: the main thread may wait in a collective for ever. A save under way is then not committed.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from research.errors import UserError
from research.parallel import verdict
from research.parallel.verdict import Beat, Bounds, Judge, Verdict
from research.watchdog import Watchdog

VARIABLE = "FLAGSHIP_SILENT_SECONDS"  # for tests: another bound than 20 s, the others in proportion
BEATS, JUDGE = "flagship/beats/", "flagship/judge/"
CLOSED_SECONDS = 1.0  # a connection that has closed stays so; the judge's last word may still be under way
WORDS_SECONDS = 2.0  # to say why: a terminal that nobody reads must not keep a process


class Pulse:
  """The heartbeat of this process.

  Args:
    store: jaxlib's key-value store.
    index: which process this is.
    count: of how many.
    bounds: seconds.
    lost_seconds: since when the connection to process 0 is closed; 0 while it is not.
    end: ends the process: (code, line). It does not return.
  """

  def __init__(
    self,
    store: Any,
    index: int,
    count: int,
    bounds: Bounds,
    lost_seconds: Callable[[], float] = float,
    end: Callable[[int, str], None] | None = None,
  ):
    self._store, self._index, self._count, self.bounds = store, index, count, bounds
    self._lost_seconds, self._end = lost_seconds, end or end_process
    self._watched: Watchdog | None = None
    self._error: Exception | None = None
    self._said, self._number = (verdict.RUNNING, 0, ""), 0
    self._kick, self._own, self._closed, self._watching = threading.Event(), threading.Event(), False, True
    now = time.monotonic()
    self._judge, self._lock = Judge(count, bounds, now), threading.Lock()
    self._first, self._first_heard, self._exchanged = Beat(0), now, now
    self._verdict: Verdict | None = None

  def begin(self) -> None:
    """Starts to beat and to watch."""
    for act in (self._exchange_all, self._watch):
      threading.Thread(target=act, daemon=True, name="heartbeat").start()

  def follow(self, watched: Watchdog | None, stall: float = 0.0) -> None:
    """From now on the beats tell how far `watched` is, and a process that does not come on for `stall` s is stalled."""
    self._watched = watched
    with self._lock:
      self._judge.bounds = self.bounds = dataclasses.replace(self.bounds, stall=stall if watched else 0.0)

  def fail(self, error: Exception) -> None:
    """Returns where the error is this process' own. Where another's death has caused it, this process ends here."""
    if self._error is not None:
      return
    self._error, broken, known = error, may_be_broken(error), isinstance(error, UserError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    self._say(verdict.FAILING if broken else verdict.ENDED, 2 if known else verdict.CRASHED, text)
    if broken:
      self._own.wait(self.bounds.silent + self.bounds.suspected)

  def leave(self, code: int) -> None:
    """This process is about to end with a code of its own, which ends the others too where it is not 0."""
    if self._said[0] != verdict.ENDED and code:
      self._say(verdict.ENDED, code, self._said[2])
    self._watching = False
    if code and self._index == 0:
      self._publish(verdict.own_end(0, self._beat()))

  def close(self) -> None:
    """No more of it: the others may end as they like."""
    self._watching, self._closed = False, True
    self._kick.set()

  def _say(self, status: str, code: int, text: str) -> None:
    self._said = (status, code, text.strip().split("\n")[0][:500])
    self._kick.set()

  def _beat(self) -> Beat:
    self._number += 1
    at = {} if self._watched is None else self._watched.at()
    status, code, text = self._said
    return Beat(self._number, socket.gethostname(), status=status, code=code, text=text, **at)

  def _exchange_all(self) -> None:
    while not self._closed:
      with contextlib.suppress(Exception):  # whether the store is gone, the watching thread finds by the time
        self._exchange()
      self._kick.wait(self.bounds.beat)
      self._kick.clear()

  def _exchange(self) -> None:
    beat = self._beat()
    if self._index == 0:
      self._set(f"{JUDGE}0", beat)
      told = {0: beat}
      for key, text in self._store.key_value_dir_get(BEATS):
        told[int(key.rpartition("/")[2])] = Beat(**json.loads(text))
      with self._lock:
        self._exchanged = time.monotonic()
        self._judge.hear(told, self._exchanged)
      return
    self._set(f"{BEATS}{self._index}", beat)
    found = {key.rpartition("/")[2]: json.loads(text) for key, text in self._store.key_value_dir_get(JUDGE)}
    if "0" in found and (first := Beat(**found["0"])).number != self._first.number:
      self._first, self._first_heard = first, time.monotonic()
    if "verdict" in found:
      self._verdict = Verdict(**found["verdict"])

  def _set(self, key: str, value: Any) -> None:
    self._store.key_value_set(key, json.dumps(dataclasses.asdict(value)), allow_overwrite=True)

  def _watch(self) -> None:
    last = time.monotonic()
    while self._watching:
      time.sleep(min(0.5, self.bounds.beat / 4))
      last, gap = time.monotonic(), time.monotonic() - last
      if not self._watching:
        return
      if gap >= self.bounds.silent:
        self._finish(
          f"processes: this process ({self._index}) stood still for {gap:.0f} s and was given up by the others;"
          f" {verdict.RESTART}"
        )
      elif self._index == 0:
        self._judge_all(last)
      elif self._verdict is not None:
        self._obey(self._verdict)
      elif self._lost_seconds() > CLOSED_SECONDS:
        self._finish(verdict.gone(0, self._first))
      elif last - self._first_heard >= self.bounds.silent:
        self._finish(verdict.silent(0, self._first, last - self._first_heard))

  def _judge_all(self, now: float) -> None:
    """Process 0: looks at all, and tells what it finds before it acts on it itself."""
    with self._lock:
      found = self._judge.verdict(self._exchanged)
    if found is None and now - self._exchanged >= self.bounds.silent:
      self._finish(f"processes: this process (0) has not reached its own store; {verdict.RESTART}")
    if found is not None:
      self._publish(found)
      time.sleep(2 * self.bounds.beat + 0.5)  # with this process the store ends, and the others look once a beat
      self._obey(found)

  def _publish(self, found: Verdict) -> None:
    within(WORDS_SECONDS, lambda: self._set(f"{JUDGE}verdict", found))

  def _obey(self, found: Verdict) -> None:
    if not found.own:
      given_up = f"processes: this process was given up: {found.line.removeprefix('processes: ')}"
      self._finish(given_up if found.process == self._index else found.line)
      return
    # The main thread may have words of its own, or be about to; but what it does on its way may wait for the others.
    until = time.monotonic() + self.bounds.grace
    while time.monotonic() < until:
      if self._said[0] != verdict.RUNNING:
        self._own.set()
      if not self._watching:
        return
      time.sleep(0.1)
    if self._error is None:
      self._end(found.code, found.line)
    else:
      told = [str(self._error)] if isinstance(self._error, UserError) else traceback.format_exception(self._error)
      self._end(self._said[1], "".join(told).rstrip())

  def _finish(self, line: str) -> None:
    if self._watched is not None:
      within(WORDS_SECONDS, lambda: self._watched.dump(line))
    self._end(verdict.AGAIN, line)


def may_be_broken(error: BaseException | None) -> bool:
  """Whether an error, or what it was raised from, may come of a connection: those of jaxlib and Gloo, and of barriers.

  A mistake of the program's (a KeyError, a TypeError …) is none, whoever has died meanwhile.
  """
  import jax

  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    barrier = any(word in str(error) for word in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "arrier"))
    if isinstance(error, jax.errors.JaxRuntimeError) or (barrier and not isinstance(error, LookupError | TypeError)):
      return True
    error = error.__cause__ or error.__context__
  return False


def within(seconds: float, act: Callable[[], Any]) -> bool:
  """Does it, and says whether it was done in that time; if not, it may still be at it."""
  done = []

  def quietly() -> None:
    with contextlib.suppress(Exception):
      act()
      done.append(True)

  thread = threading.Thread(target=quietly, daemon=True)
  thread.start()
  thread.join(seconds)
  return bool(done)


def end_process(code: int, line: str) -> None:
  """Says the line on standard error and ends, whatever the other threads do."""

  def say() -> None:
    if sys.stdout.isatty():
      print("\x1b[?25h")  # the line that is drawn anew hides the cursor
    os.write(2, f"{line}\n".encode(errors="replace"))
    sys.stdout.flush()

  within(WORDS_SECONDS, say)
  os._exit(code)


def bounds(environment: Any = os.environ) -> Bounds:
  """The constants, or for tests smaller ones."""
  usual = Bounds()
  share = float(environment.get(VARIABLE) or usual.silent) / usual.silent
  return Bounds(**{name: value * share for name, value in dataclasses.asdict(usual).items()})
