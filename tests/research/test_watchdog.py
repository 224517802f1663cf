"""A step that hangs is written down once, and nothing else is."""

import time

import pytest

from research.watchdog import Watchdog


def make_steps(watchdog, count, seconds=0.001, start=0):
  for step in range(start, start + count):
    watchdog.enter(step, "data")
    watchdog.enter(step, "step")
    time.sleep(seconds)


def hang_here(seconds):
  time.sleep(seconds)


def test_a_step_that_hangs_is_told_once_with_what_every_thread_does(tmp_path):
  """Mutation: with factor 0, or a `_watch` that returns, there is neither file nor line."""
  said, path = [], tmp_path / "stacks-0.txt"
  with Watchdog(path, 20.0, said.append, least=0.2) as watchdog:
    make_steps(watchdog, 10)
    watchdog.enter(10, "data")
    hang_here(0.8)
    make_steps(watchdog, 10, start=11)
  assert len(said) == 1
  assert said[0].startswith("watchdog: step 10 has taken 0")
  assert said[0].endswith(f"(data); what each thread does is in {path}")
  text = path.read_text()
  assert text.count("step 10 (data)") == 1
  assert "hang_here" in text
  assert "test_watchdog.py" in text


@pytest.mark.parametrize("phase", ["compile", "evaluation", "saving"])
def test_what_is_no_step_may_take_long(tmp_path, phase):
  said = []
  with Watchdog(tmp_path / "stacks", 20.0, said.append, least=0.1) as watchdog:
    make_steps(watchdog, 10)
    watchdog.enter(10, phase)
    time.sleep(0.4)
  assert said == []
  assert not (tmp_path / "stacks").exists()


def test_a_slow_run_is_measured_by_its_own_steps(tmp_path):
  """A step of 0.3 s is long beside ones of 1 ms, and usual among others of 0.1 s."""
  for usual, count in ((0.001, 1), (0.1, 0)):
    said = []
    with Watchdog(tmp_path / "stacks", 20.0, said.append, least=0.05) as watchdog:
      make_steps(watchdog, 8, usual)
      make_steps(watchdog, 1, 0.3, start=8)
    assert len(said) == count, said


@pytest.mark.parametrize(("factor", "steps"), [(0.0, 20), (20.0, 3)])
def test_off_or_with_too_few_steps_nothing_is_long(tmp_path, factor, steps):
  said = []
  with Watchdog(tmp_path / "stacks", factor, said.append, least=0.05) as watchdog:
    make_steps(watchdog, steps)
    watchdog.enter(steps, "data")
    time.sleep(0.3)
  assert said == []


def test_a_file_that_cannot_be_written_is_said(tmp_path):
  said = []
  with Watchdog(tmp_path / "missing" / "stacks", 20.0, said.append, least=0.05) as watchdog:
    make_steps(watchdog, 10)
    watchdog.enter(10, "data")
    time.sleep(0.3)
  assert "cannot be written: No such file or directory" in said[0]


def test_where_it_is():
  watchdog = Watchdog("nowhere", 0.0)
  assert (watchdog.at()["phase"], watchdog.at()["marks"]) == ("starting", 0)
  watchdog.enter(3, "saving")
  time.sleep(0.01)
  found = watchdog.at()
  assert (found["step"], found["phase"], found["marks"]) == (3, "saving", 1)
  assert 0.01 <= found["idle"] < 5
