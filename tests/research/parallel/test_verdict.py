"""Who is named, and when: the judge alone, with beats and times that are made up."""

import dataclasses

import pytest

from research.parallel.verdict import ENDED, FAILING, Beat, Bounds, Judge

BOUNDS = Bounds(beat=2.0, silent=20.0, suspected=8.0, stall=600.0)


def judge(count=4, **changes):
  return Judge(count, dataclasses.replace(BOUNDS, **changes), 0.0)


def beats(number, at=None, **changes):
  """Of four processes at step 140; `at` has others."""
  all_alike = {process: Beat(number, f"host{process}", 140, "step", 280) for process in range(4)}
  return {process: dataclasses.replace(beat, **changes) for process, beat in all_alike.items()} | (at or {})


def test_who_lives_is_not_named():
  found = judge()
  for second in range(0, 2000, 2):
    found.hear(beats(second), second)
    assert found.verdict(second) is None


@pytest.mark.parametrize("dead", range(4))
def test_the_silent_one_is_named_after_the_bound_and_not_before(dead):
  """Mutation: a judge whose `_silent` gives None, or that takes a repeated beat for a sign of life, names nobody."""
  found = judge()
  last = beats(1)[dead]
  for second in range(0, 20, 2):
    found.hear(beats(10 + second, {dead: last}), second)
    assert found.verdict(second) is None, second
  found.hear(beats(99, {dead: last}), 20.0)
  verdict = found.verdict(20.0)
  assert (verdict.process, verdict.code, verdict.own) == (dead, 77, False)
  assert verdict.line == (
    f"processes: process {dead} (host{dead}) has not been heard of for 20 s at step 140 (step);"
    " ending; run the same command again"
  )


def test_of_two_the_one_that_was_silent_first_is_named():
  found = judge()
  found.hear(beats(1), 0.0)
  found.hear(beats(2, {3: beats(1)[3]}), 3.0)  # 2 lives longer than 3
  found.hear(beats(3, {2: beats(2)[2], 3: beats(1)[3]}), 24.0)
  assert found.verdict(24.0).process == 3


def test_where_a_collective_has_broken_the_dead_one_is_named_sooner():
  """Mutation: without the shorter bound it takes 20 s; without waiting for it at all, the one that failed is named."""
  found, dead = judge(), beats(1)[3]
  found.hear(beats(1), 0.0)
  broken = {1: dataclasses.replace(beats(2)[1], status=FAILING, code=1, text="Gloo"), 3: dead}
  for number, second in enumerate((2.0, 4.0, 6.0), start=2):
    found.hear(beats(number, {**broken, 1: dataclasses.replace(broken[1], number=number)}), second)
    assert found.verdict(second) is None
  found.hear(beats(9, {3: dead}), 8.0)
  assert (found.verdict(8.0).process, found.verdict(8.0).code) == (3, 77)


def test_an_error_while_all_live_is_of_the_process_that_has_it():
  found = judge()
  for second in range(0, 12, 2):
    own = Beat(second + 1, "host2", status=FAILING, code=1, text="OOM: x")
    found.hear(beats(second + 1, {2: own}), second)
    assert found.verdict(second) is None
  verdict = found.verdict(12.0)
  assert (verdict.process, verdict.code, verdict.own) == (2, 1, True)
  assert verdict.line == "processes: process 2 (host2) has crashed: OOM: x"


def test_a_process_that_has_ended_says_how():
  found = judge()
  found.hear(beats(1, {1: Beat(1, "host1", status=ENDED, code=2, text="data: no file\nmore")}), 0.0)
  verdict = found.verdict(0.0)
  assert (verdict.code, verdict.own) == (2, True)
  assert verdict.line == "processes: process 1 (host1) has ended with 2: data: no file"


def test_the_process_that_the_others_wait_for_is_named_with_what_it_does():
  """They have dispatched a call more, and wait in it. Mutation: with the bound off nobody is named, for ever."""
  found = judge()
  behind = Beat(1, "host2", 139, "data", 277, 601.0)
  found.hear(beats(1, {2: behind}, idle=600.5), 0.0)
  verdict = found.verdict(0.0)
  assert (verdict.process, verdict.code) == (2, 77)
  assert "process 2 (host2) lives and has made no progress for 601 s at step 139 (data); ending" in verdict.line


def test_a_process_that_is_not_heard_of_is_not_said_to_live():
  """Whatever bound is the shorter. Mutation: with the time since its last beat added it "lives" after 8 s."""
  found = judge(stall=8.0)
  behind = dataclasses.replace(beats(1)[3], marks=279)
  found.hear(beats(1, {3: behind}), 0.0)
  for second in range(2, 20, 2):
    found.hear(beats(second, {3: behind}), second)
    assert found.verdict(second) is None, second
  found.hear(beats(99, {3: behind}), 20.0)
  assert "process 3 (host3) has not been heard of for 20 s" in found.verdict(20.0).line


def test_where_all_wait_alike_no_process_is_behind():
  found = judge()
  found.hear(beats(1, idle=601.0), 0.0)
  assert "no process has made any progress for 601 s at step 140 (step)" in found.verdict(0.0).line


@pytest.mark.parametrize(
  ("phase", "longest"), [("starting", 1e9), ("evaluation", 5999.0), ("saving", 5999.0), ("step", 599.0)]
)
def test_what_takes_long_by_right_may(phase, longest):
  found = judge()
  found.hear(beats(1, phase=phase, idle=longest), 0.0)
  assert found.verdict(0.0) is None


def test_the_bound_is_that_of_the_one_behind():
  """Process 0 draws pictures while the others wait in the next step."""
  found = judge()
  found.hear(beats(1, {0: Beat(1, "host0", 140, "evaluation", 279, 700.0)}, idle=690.0), 0.0)
  assert found.verdict(0.0) is None


def test_no_bound_where_it_is_0():
  found = judge(stall=0.0)
  found.hear(beats(1, idle=1e9), 0.0)
  assert found.verdict(0.0) is None
