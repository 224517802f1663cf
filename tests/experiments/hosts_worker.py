"""An experiment that a fault meets: `hosts_worker.py '{"rank": 1, "step": 30, "what": "kill"}' EXPERIMENT FLAGS …`.

It happens where process `rank` is about to make the batch after `step` updates.
"""

import importlib
import json
import os
import signal
import sys
import time

from experiments import command
from research.parallel import processes
from research.watchdog import Watchdog


def fail(what):
  if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
  if what == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
  if what == "hang":
    time.sleep(600)
  if what == "error":
    raise KeyError("a mistake")


fault = json.loads(sys.argv[1])
enter = Watchdog.enter


def enter_or_fail(watchdog, step, phase):
  enter(watchdog, step, phase)
  if phase == "data" and step == fault.get("step") and processes.index() == fault["rank"]:
    fail(fault["what"])
  time.sleep(fault.get("slow", 0.0))


if __name__ == "__main__":
  Watchdog.enter = enter_or_fail
  experiment = importlib.import_module(f"experiments.{sys.argv[2]}.__main__").EXPERIMENT
  sys.exit(command.main(experiment, sys.argv[3:]))
