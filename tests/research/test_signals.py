"""A signal is heard whatever the main thread does, and the process ends in time with what could be saved.

Each part in a process of its own, which is stuck where Python runs no handlers. Switched off once: without the wakeup
file descriptor nothing is heard there, and all but the last of these wait until they are killed.
"""

import signal
import subprocess
import sys
import time

import pytest

STUCK = """
import ctypes, pathlib, sys, time
from research.signals import Rescue, StopRequest

def stuck():  # in C, holding no lock, without looking at signals: as a compiler is
  print("stuck", flush=True)
  libc = ctypes.CDLL(None)
  while True:
    libc.sleep(60)

def save(step, state):
  assert state == "state"
  pathlib.Path(sys.argv[1]).write_text(str(step))

def settle():
  pathlib.Path(sys.argv[1] + ".lines").write_text("settled")

grace = float(sys.argv[2])
with StopRequest(grace) as asked:
  asked.rescue = Rescue(save)
  {body}
"""
HOLDING = "with asked.rescue.holding(7, {state}, settle): stuck()"


@pytest.fixture
def stuck(tmp_path):
  started = []

  def start(body, grace=2.0):
    command = [sys.executable, "-c", STUCK.replace("{body}", body), str(tmp_path / "saved"), str(grace)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout.readline() == "stuck\n"
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def ended(process, seconds=20):
  began = time.monotonic()
  _, told = process.communicate(timeout=seconds)
  return process.returncode, told.strip(), time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_stuck_thread_holds_is_saved_for_it(stuck, tmp_path, number):
  process = stuck(HOLDING.replace("{state}", "'state'"))
  process.send_signal(number)
  code, told, _ = ended(process)
  assert (code, told) == (75, "stopped by a signal; step 7 is saved")
  assert (tmp_path / "saved").read_text() == "7"
  assert (tmp_path / "saved.lines").exists()


def test_where_nothing_is_held_the_deadline_ends_it(stuck, tmp_path):
  process = stuck("stuck()")
  process.send_signal(signal.SIGTERM)
  code, told, seconds = ended(process)
  assert code == 75
  assert told == "stopped by a signal: its 2 s are over; run the same command again"
  assert seconds > 1
  assert not (tmp_path / "saved").exists()


def test_before_an_update_there_is_nothing_to_wait_for(stuck, tmp_path):
  process = stuck(HOLDING.replace("{state}", "None"), grace=15)
  process.send_signal(signal.SIGTERM)
  code, told, seconds = ended(process, seconds=14)
  assert (code, told) == (75, "stopped by a signal before an update was made")
  assert seconds < 14  # RESCUE of the grace, and not all of it
  assert not (tmp_path / "saved").exists()


def test_a_second_signal_ends_it_at_once(stuck, tmp_path):
  process = stuck(HOLDING.replace("{state}", "'state'"), grace=1000)
  process.send_signal(signal.SIGTERM)
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  code, told, _ = ended(process)
  assert (code, told) == (128 + signal.SIGTERM, "")
  assert not (tmp_path / "saved").exists()


def test_who_asks_in_time_is_left_alone(tmp_path):
  from research.signals import StopRequest

  before = signal.getsignal(signal.SIGTERM)
  with StopRequest(30.0) as asked:
    assert not asked()
    signal.raise_signal(signal.SIGTERM)
    assert asked()
  assert signal.getsignal(signal.SIGTERM) is before
