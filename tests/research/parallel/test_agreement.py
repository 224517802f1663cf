"""Three real processes: one answer for all, all or none, and one call at which all stop."""

import json

import pytest

from tests import started

WORKER = """
import json, sys, time
from research.errors import UserError
from research.parallel import agreement, processes

processes.join()
me, found = processes.index(), {}

def caught(act):
  try:
    return act()
  except Exception as error:
    return [type(error).__name__, str(error)]

def refuse(*indices, error=UserError):
  if me in indices:
    raise error(f"no {me}")
  return me

found["first"] = agreement.by_first(lambda: [me, "é"])
found["refused by the first"] = caught(lambda: agreement.by_first(lambda: refuse(0, 1, 2)))
found["each"] = agreement.together(refuse)
found["one refuses"] = caught(lambda: agreement.together(lambda: refuse(2)))
found["all refuse"] = caught(lambda: agreement.together(lambda: refuse(0, 1, 2)))
found["one crashes"] = caught(lambda: agreement.together(lambda: refuse(1, error=KeyError)))
found["same"] = agreement.same({"a": "1"}, "mend it")
found["other"] = caught(lambda: agreement.same({"a": "1", "b": str(me // 2), "c": "3"}, "mend it"))
calls, began = 0, time.monotonic()
stop = agreement.stop(lambda: me == 2 and calls >= 40)
while not stop():
  calls += 1
  time.sleep(0.002 * (me + 1))  # out of step, as far as decisions let them
found["stopped after"] = calls
processes.wait_for_all()
print(json.dumps(found), file=sys.stderr)  # stdout is process 0's alone
sys.exit(processes.leave(0))
"""


@pytest.fixture(scope="module")
def found():
  ended = started.run(3, ["-c", WORKER])
  assert [code for code, *_ in ended] == [0, 0, 0], ended
  return [json.loads(err.splitlines()[-1]) for _, _, err in ended]


def test_the_first_answers_for_all(found):
  assert [each["first"] for each in found] == [[0, "é"]] * 3
  assert [each["refused by the first"] for each in found] == [["UserError", "no 0"]] * 3


def test_all_do_it_or_none(found):
  assert [each["each"] for each in found] == [0, 1, 2]
  assert [each["one refuses"] for each in found] == [["UserError", "process 2: no 2"]] * 3
  assert [each["all refuse"] for each in found] == [["UserError", f"no {number}"] for number in range(3)]
  crash = ["FailedElsewhere", "processes: process 1 has crashed: KeyError: 'no 1'"]
  assert [each["one crashes"] for each in found] == [crash, ["KeyError", "'no 1'"], crash]


def test_what_differs_is_named(found):
  assert [each["same"] for each in found] == [None] * 3
  assert [each["other"] for each in found] == [
    ["UserError", "processes: process 2 differs: b=1 (process 0: 0); mend it"]
  ] * 3


def test_all_stop_at_one_call(found):
  calls = {each["stopped after"] for each in found}
  assert len(calls) == 1
  assert 40 <= calls.pop() < 4000
