"""What the processes of a run do alike: what one finds out for all, what all do or none, and the moment to stop.

Values go through the store of jax.distributed, as JSON, so this works before any device is asked for and beside a step
under way. All processes must come here in the same order. Of a process that is alone, each is the act itself.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from research.errors import UserError
from research.parallel import processes

T = TypeVar("T")

KEPT = 100  # exchanges until one is deleted; no process is so many behind another, for a step waits for all
EVERY_SECONDS = 1.0  # between two moments at which processes agree to go on: a signal waits so long
STOP = "flagship/stop/"

_numbers = itertools.count()  # of exchanges; the same in every process


class FailedElsewhere(Exception):
  """Another process has crashed, so this one cannot go on."""


def by_first(act: Callable[[], T]) -> T:
  """What process 0's act gives, in every process; the others do not act. Where it fails, all fail with its words.

  Args:
    act: gives what JSON can hold; tuples come out as lists.
  """
  if not processes.joined():
    return act()
  key, error, value = f"flagship/{next(_numbers)}", None, None
  if processes.index() == 0:
    value, error = _outcome(act)
    _set(key, [_told(error), value])
    _delete_old(key)
  told, value = json.loads(_get(key))
  _raise([told], error)
  return value


def together(act: Callable[[], T]) -> T:
  """Each process' own act(); where it fails in one, all fail with that one's words."""
  if not processes.joined():
    return act()
  value, error = _outcome(act)
  failures = by_first(_gathered(_told(error)))
  _raise(failures, error)
  return value


def everyone(value: T) -> list[T]:
  """What each process gives, in the processes' order; what JSON can hold."""
  return by_first(_gathered(value)) if processes.joined() else [value]


def same(facts: Mapping[str, str], mend: str) -> None:
  """Raises UserError in every process where one has other facts than process 0, with the names of those that differ."""
  if not processes.joined():
    return
  gather = _gathered(dict(facts))

  def compare() -> None:
    first, *others = gather()
    for number, found in enumerate(others, start=1):
      names = [name for name in {**first, **found} if first.get(name) != found.get(name)]
      if names:
        told = [f"{name}={found.get(name)} (process 0: {first.get(name)})" for name in names]
        raise UserError(f"processes: process {number} differs: {'; '.join(told)}; {mend}")

  by_first(compare)


class Stop:
  """Whether any process was asked to stop: the same answer in all of them, at the same call.

  Process 0 decides at some calls and says, with each decision, which call the next is for: about EVERY_SECONDS later,
  by the rhythm of the calls before. So all have the same answer for each call, and most calls send nothing. The others
  put what they are asked into the store, where process 0 looks before it decides.

  Args:
    own: whether this process was asked.
  """

  def __init__(self, own: Callable[[], bool]):
    self._own, self._stopping, self._told = own, False, False
    self._calls, self._next, self._gap, self._since = 0, 1, 1, time.monotonic()

  def __call__(self) -> bool:
    self._calls += 1
    if self._own() and not self._told:
      self._told = True
      _set(f"{STOP}{processes.index()}", True)
    if not self._stopping and self._calls >= self._next:
      self._stopping, self._next = by_first(self._decide)
    return self._stopping

  def _decide(self) -> tuple[bool, int]:
    now = time.monotonic()
    steady = EVERY_SECONDS * self._gap / max(now - self._since, 1e-6)
    # At most twice as many calls as before: the next ones may be the first that do any work.
    self._gap, self._since = max(1, min(2 * self._gap, int(steady))), now
    return bool(processes.store().key_value_dir_get(STOP)), self._calls + self._gap


def stop(own: Callable[[], bool]) -> Callable[[], bool]:
  """`own`, or where there are several processes what they agree on."""
  return Stop(own) if processes.joined() else own


def _gathered(value: Any) -> Callable[[], list[Any]]:
  """Sends process 0 a value of each process; returns how process 0 gets them, in the processes' order."""
  key = f"flagship/{next(_numbers)}"
  _set(f"{key}/{processes.index()}", value)
  return lambda: [json.loads(_get(f"{key}/{number}")) for number in range(processes.count())]


def _outcome(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
  try:
    return act(), None
  except Exception as error:
    return None, error


def _told(error: Exception | None) -> list[str] | None:
  """[kind, text] of an error."""
  if error is None:
    return None
  return ["user", str(error)] if isinstance(error, UserError) else ["crash", f"{type(error).__name__}: {error}"]


def _raise(failures: list[list[str] | None], own: Exception | None) -> None:
  """Raises this process' own error, else the first of the others'.

  The number of a process is told where only some have failed: what is wrong in all of them is no process' matter.
  """
  failed = [number for number, failure in enumerate(failures) if failure]
  if not failed:
    return
  kind, text = failures[failed[0]]
  alone = len(failures) > len(failed)
  if own is not None and (kind == "crash" or not alone):
    raise own
  if kind == "crash":
    raise FailedElsewhere(f"processes: process {failed[0]} has crashed: {text.splitlines()[0]}")
  raise UserError(f"process {failed[0]}: {text}" if alone else text) from own


def _set(key: str, value: Any) -> None:
  processes.store().key_value_set(key, json.dumps(value))


def _get(key: str) -> str:
  return processes.get(key)


def _delete_old(key: str) -> None:
  number = int(key.rpartition("/")[2]) - KEPT
  if number >= 0:
    processes.store().key_value_delete(f"flagship/{number}")
