"""An experiment's command in which one phase is stuck for ever, deep in C, or asked to stop; started by tests.

Usage: stuck.py PHASE -m experiments.NAME FLAGS…
"""

import ctypes
import importlib
import os
import signal
import sys

from experiments import command, job, work
from research import manifest, steps
from research.data import feeds


def stuck(*_arguments, **_named):
  print("stuck", flush=True)
  while True:
    ctypes.CDLL(None).sleep(60)


def at(count, call, instead=stuck):
  """`call`, but the count-th time `instead`."""
  calls = iter(range(1, count))
  return lambda *arguments, **named: (call if next(calls, None) else instead)(*arguments, **named)


def asked(call):
  """`call`, at whose beginning the process is asked to stop."""

  def armed(*arguments, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    return call(*arguments, **named)

  return armed


PHASES = {
  "compiling": lambda: setattr(steps.TrainingCall, "wait", stuck),
  "waiting for data": lambda: setattr(feeds.GrainFeed, "inputs", at(20, feeds.GrainFeed.inputs)),
  "evaluating": lambda: setattr(job.Job, "scores", at(2, job.Job.scores)),
  "asked in evaluation": lambda: setattr(job.Job, "scores", at(2, job.Job.scores, asked(job.Job.scores))),
  "saving": lambda: setattr(manifest, "write", at(2, manifest.write)),
  "reading data": lambda: setattr(work, "open_job", stuck),
  "ending": lambda: setattr(work, "_rows", stuck),
}

if __name__ == "__main__":
  phase, _, module, *flags = sys.argv[1:]
  PHASES[phase]()
  sys.argv = [sys.argv[0], *flags]
  sys.exit(command.main(importlib.import_module(f"{module}.__main__").EXPERIMENT))
