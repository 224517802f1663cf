"""Processes that beat, as threads of this one, in a store of a dictionary: who ends, how and with which words."""

import threading
import time

import jax
import pytest

from research.errors import UserError
from research.parallel import heartbeat
from research.parallel.heartbeat import Pulse, may_be_broken, within
from research.parallel.verdict import Bounds

QUICK = Bounds(beat=0.05, silent=2.0, suspected=0.4, grace=0.3)


class Store:
  """As much of jaxlib's as is used."""

  def __init__(self):
    self._values, self._lock, self.cut = {}, threading.Lock(), False

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite
    with self._lock:
      self._values[key] = value

  def key_value_dir_get(self, prefix):
    with self._lock:
      return [(key, value) for key, value in self._values.items() if key.startswith(prefix)]


class Cut:
  """The way of one process to the store, until it is cut; then a call does not return, as through a dead link."""

  def __init__(self, store):
    self._store, self.cut = store, threading.Event()

  def __getattr__(self, name):
    def call(*arguments, **named):
      if self.cut.is_set():
        time.sleep(3600)
      return getattr(self._store, name)(*arguments, **named)

    return call


@pytest.fixture
def job():
  """Three processes that live: (their pulses, their ways to the store, how each has ended)."""
  store, ended, pulses, ways = Store(), {}, [], []
  for index in range(3):
    ways.append(Cut(store))

    def end(code, line, index=index):
      ended.setdefault(index, (code, line))
      pulses[index].close()

    pulses.append(Pulse(ways[index], index, 3, QUICK, end=end))
  for pulse in pulses:
    pulse.begin()
  yield pulses, ways, ended
  for pulse in pulses:
    pulse.close()


def wait_for(found, seconds=10):
  until = time.monotonic() + seconds
  while not found():
    assert time.monotonic() < until
    time.sleep(0.02)


def test_who_lives_goes_on(job):
  time.sleep(2 * QUICK.silent)
  assert job[2] == {}


@pytest.mark.parametrize("dead", [1, 2])
def test_all_name_the_one_that_is_cut_off_and_it_names_process_0(job, dead):
  """Mutation: where the judge does not publish its verdict, the third process lives on until process 0 is gone."""
  _, ways, ended = job
  ways[dead].cut.set()
  wait_for(lambda: len(ended) == 3)
  for index, (code, line) in ended.items():
    assert code == 77
    assert f"process {0 if index == dead else dead} (" in line
    assert "has not been heard of for" in line


def test_without_process_0_the_others_name_it(job):
  pulses, _, ended = job
  pulses[0].close()
  wait_for(lambda: len(ended) == 2)
  assert all(code == 77 and line.startswith("processes: process 0 (") for code, line in ended.values())


def test_a_closed_connection_is_noticed_at_once():
  """Mutation: a pulse that does not look whether it is closed takes as long as for one that is silent."""
  ended, began = [], time.monotonic()
  quiet = Bounds(beat=0.05, silent=60.0)
  lost = lambda: max(time.monotonic() - began - 0.3, 0.0)  # noqa: E731
  pulse = Pulse(Store(), 1, 2, quiet, lost, lambda code, line: (ended.append((code, line)), pulse.close()))
  pulse.begin()
  wait_for(lambda: ended)
  assert time.monotonic() - began < 5
  assert ended[0][0] == 77
  assert "process 0 is gone at step 0 (starting): its connection closed" in ended[0][1]


def test_a_process_that_stood_still_ends_when_it_wakes(monkeypatch):
  """As after SIGSTOP and SIGCONT. Mutation: without the look at its own clock it goes on beating."""
  ended, real, ahead = [], time.monotonic, [0.0]
  monkeypatch.setattr(heartbeat.time, "monotonic", lambda: real() + ahead[0])
  pulse = Pulse(
    Store(), 0, 1, Bounds(beat=0.05, silent=30.0), end=lambda code, line: (ended.append((code, line)), pulse.close())
  )
  pulse.begin()
  time.sleep(0.2)
  assert not ended
  ahead[0] = 40.0
  wait_for(lambda: ended)
  assert ended[0][0] == 77
  assert "this process (0) stood still for 40 s and was given up by the others" in ended[0][1]


def test_a_mistake_in_one_is_its_own_and_the_others_name_it(job):
  """The one with the error goes on to its own words; the others have its exit code."""
  pulses, _, ended = job
  pulses[1].fail(KeyError("a mistake"))
  pulses[1].leave(1)
  wait_for(lambda: len(ended) == 2)
  assert set(ended) == {0, 2}
  assert all(code == 1 and line.endswith("has crashed: KeyError: 'a mistake'") for code, line in ended.values())


def test_an_error_of_a_connection_waits_for_who_is_dead(job):
  """Mutation: where `fail` does not wait, the main thread comes back from it and would print a trace."""
  pulses, ways, ended = job
  returned = threading.Event()
  broken = jax.errors.JaxRuntimeError("Gloo AllReduce failed: Connection closed by peer")
  ways[2].cut.set()
  threading.Thread(target=lambda: (pulses[1].fail(broken), returned.set()), daemon=True).start()
  wait_for(lambda: {0, 1} <= set(ended))
  assert not returned.is_set()
  assert all(ended[index][0] == 77 and "process 2 (" in ended[index][1] for index in (0, 1))


def test_the_same_error_while_all_live_is_its_own(job):
  pulses, _, ended = job
  pulses[1].fail(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
  assert 1 not in ended
  pulses[1].leave(1)
  wait_for(lambda: len(ended) == 2)
  assert all("process 1" in line and "RESOURCE_EXHAUSTED" in line for _, line in ended.values())


def test_who_cannot_get_away_after_its_own_error_is_ended_with_its_words(job):
  """Its clean-up may wait for the others. Mutation: without it the process stays for ever."""
  pulses, _, ended = job
  pulses[2].fail(UserError("run: cannot save"))
  wait_for(lambda: len(ended) == 3)
  assert ended[2] == (2, "run: cannot save")
  assert ended[0][1].endswith("has ended with 2: run: cannot save")


@pytest.mark.parametrize(
  ("error", "broken"),
  [
    (jax.errors.JaxRuntimeError("INTERNAL: x"), True),
    (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), True),
    (KeyError("barrier"), False),
    (ValueError("x"), False),
    (FileNotFoundError("x"), False),
  ],
)
def test_what_may_come_of_a_connection(error, broken):
  assert may_be_broken(error) == broken
  told = UserError("checkpoint 3 cannot be read")
  told.__cause__ = error
  assert may_be_broken(told) == broken


def test_what_does_not_return_is_not_waited_for():
  began = time.monotonic()
  assert not within(0.1, lambda: time.sleep(60))
  assert time.monotonic() - began < 5
  assert within(5, lambda: None)


def test_the_bound_of_tests_keeps_proportions():
  assert heartbeat.bounds({}) == Bounds()
  assert heartbeat.bounds({heartbeat.VARIABLE: "10"}) == Bounds(1.0, 10.0, 4.0, 2.5, 0.0)
