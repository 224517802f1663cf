"""Where wall time went: the shares add up to it, over deaths and restarts."""

import json
import resource

import pytest

from research import goodput


class Time:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def passes(self, seconds):
    self.now += seconds


def test_every_second_belongs_to_one_share():
  time = Time()
  clock = goodput.Clock(began=97.0, now=time)  # imports took three seconds
  time.passes(2)
  clock.turn("steps")
  time.passes(10)
  with clock.of("evaluation"):
    time.passes(4)
    with clock.of("data"):
      time.passes(1)
    time.passes(2)
  clock.move("compile", 3.0)  # of the ten
  time.passes(5)
  seconds = clock.seconds()
  assert {share: found for share, found in seconds.items() if found} == {
    "start": 5, "steps": 12, "evaluation": 6, "data": 1, "compile": 3,
  }  # fmt: skip
  assert sum(seconds.values()) == time.now - 97.0


def started(folder, time, begin, updates, *, a_step=1.0, startup=5.0):
  """A start that makes updates until it is killed; its lines are there, its end is not."""
  clock = goodput.Clock(now=time)
  time.passes(startup)
  clock.keep(folder, begin)
  clock.turn("steps")
  for step in range(begin + 1, begin + updates + 1):
    time.passes(a_step)
    clock.at(step)
    clock.mark()
  return clock


def test_what_was_done_again_is_lost_once(tmp_path):
  """Killed at 25 with a checkpoint of 20; then at 34 with one of 30; then to the end at 40."""
  time = Time()
  started(tmp_path, time, 0, 25)
  started(tmp_path, time, 20, 14)
  last = started(tmp_path, time, 30, 10)
  last.turn("end")
  time.passes(3)
  last.mark()
  found = goodput.account(goodput.read(tmp_path))
  assert found["steps"] == 40
  assert found["lost"] == 5 + 4
  assert found["start"] == 15
  assert found["end"] == 3
  assert sum(found.values()) == time.now - 100.0
  assert goodput.said(found) == "updates 60%, starting 22%, lost to restarts 13%, ending 4%"


def test_a_start_that_fell_back_further_makes_more_of_the_earlier_ones_lost(tmp_path):
  """The checkpoint that the second start went on from was damaged when the third looked at it."""
  time = Time()
  started(tmp_path, time, 0, 25)
  started(tmp_path, time, 20, 10)
  started(tmp_path, time, 10, 30)
  found = goodput.account(goodput.read(tmp_path))
  assert found["steps"] == 10 + 0 + 30
  assert found["lost"] == 15 + 10
  assert sum(found.values()) == time.now - 100.0


def test_what_is_made_again_within_a_start_is_lost(tmp_path):
  """Bad numbers at 17 lead back to the checkpoint of 10; at 25 it is killed, and goes on from 20.

  Switched off once: where `again` only sets the step, nothing is lost in the first start, and its steps are 32.
  """
  time = Time()
  clock = started(tmp_path, time, 0, 17)
  with clock.of("evaluation"):
    time.passes(2)
  clock.again(10)
  assert sum(clock.seconds().values()) == 0
  clock.turn("steps")
  for step in range(11, 26):
    time.passes(1)
    clock.at(step)
    clock.mark()
  started(tmp_path, time, 20, 5).close()
  found = goodput.account(goodput.read(tmp_path))
  assert found["steps"] == 10 + 10 + 5
  assert found["lost"] == (7 + 2) + 5
  assert found["start"] == 5 + 5
  assert found["evaluation"] == 0
  assert sum(found.values()) == time.now - 100.0


def test_going_back_further_than_a_start_began_from(tmp_path):
  """The second start goes on from 10 and back to 5, whose checkpoint was the newest whole one then."""
  time = Time()
  started(tmp_path, time, 0, 12)
  clock = started(tmp_path, time, 10, 8)
  clock.again(5)
  clock.turn("steps")
  for step in range(6, 21):
    time.passes(1)
    clock.at(step)
    clock.mark()
  found = goodput.account(goodput.read(tmp_path))
  assert found["steps"] == 5 + 0 + 15
  assert found["lost"] == 7 + 8
  assert sum(found.values()) == time.now - 100.0


def test_a_death_costs_the_account_a_tenth_of_a_second(tmp_path):
  """Lines come from a thread, while the main one is stuck in whatever it does."""
  import time

  clock = goodput.Clock()
  clock.keep(tmp_path, 0)
  began = time.monotonic()
  time.sleep(1.0)
  known = sum(goodput.account(goodput.read(tmp_path)).values())
  passed = time.monotonic() - began
  clock.close()
  assert passed - 0.5 < known <= passed + 0.1  # on a busy machine


def test_a_full_disk_costs_the_account_and_nothing_else(tmp_path):
  time = Time()
  clock = started(tmp_path, time, 0, 3)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / goodput.FILE).stat().st_size + 5, before[1]))
  try:
    clock.mark()
    clock.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  time.passes(1)
  started(tmp_path, time, 3, 4)
  assert goodput.account(goodput.read(tmp_path))["steps"] == 7


def test_a_line_that_a_death_has_cut_off_is_left_out(tmp_path):
  time = Time()
  started(tmp_path, time, 0, 3)
  with open(tmp_path / goodput.FILE, "a") as file:
    file.write(json.dumps({"step": 4, "seconds": {"steps": 99}})[:-4])
  assert goodput.account(goodput.read(tmp_path))["steps"] == 3


def test_what_is_compiled_on_the_way_is_no_evaluation():
  import jax
  import jax.numpy as jnp

  clock = goodput.Clock()
  with goodput.compiling(clock), clock.of("evaluation"):
    jax.jit(lambda x: jnp.sin(x) * 17.31)(jnp.ones(7)).block_until_ready()
  seconds = clock.seconds()
  assert seconds["compile"] > 0
  assert sum(seconds.values()) == pytest.approx(clock._now() - clock._since + sum(clock._seconds.values()), abs=0.01)


def test_the_age_of_a_process_is_known():
  assert 0.05 < goodput.process_age() < 86_400
