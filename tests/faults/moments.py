"""Moments of a run at which a process dies as by kill -9: each a function (count, rng) that arms this process.

The count-th time that the run comes there is its last. A moment that does not come leaves the run alone.
"""

import os
import shutil
import signal
import threading
from pathlib import Path

from experiments import job
from research import manifest, report, steps
from research.checkpoint import Checkpoints
from research.data import cache, feeds
from research.report import record


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def _before(owner, name, count, do=die):
  """Arms `owner.name`: instead of its count-th call `do` gets the arguments, and then the process dies."""
  call, calls = getattr(owner, name), iter(range(1, count))

  def armed(*arguments, **named):
    if next(calls, None) is None:
      do() if do is die else do(call, *arguments, **named)
      die()
    return call(*arguments, **named)

  setattr(owner, name, armed)


def _after(call, *arguments, **named):
  call(*arguments, **named)


def _soon(seconds):
  timer = threading.Timer(seconds, die)
  timer.daemon = True
  timer.start()


def _half_a_line(call, writer, step, scalars):
  """Metrics that are half on the disk: as where the machine dies."""
  del call, scalars
  writer._file.write(f'{{"step": {step}, "ti'.encode())


def _half_deleted(call, path, *arguments, **named):
  """The first file of an old checkpoint is gone."""
  del call, arguments, named
  for each in Path(path).rglob("*"):
    if each.is_file():
      each.unlink()
      return


def _deleting(count):
  call, calls = shutil.rmtree, iter(range(1, count))

  def armed(path, *arguments, **named):
    if str(path).endswith(".deleting") and next(calls, None) is None:
      _half_deleted(call, path)
      die()
    return call(path, *arguments, **named)

  shutil.rmtree = armed


def _in_compile(count, rng):
  del count
  wait = steps.TrainingCall.wait

  def armed(call):
    _soon(rng.uniform(0.0, 0.3))
    return wait(call)

  steps.TrainingCall.wait = armed


MOMENTS = {
  "compile": _in_compile,
  "cache": lambda count, rng: _before(cache, "_sync", 1),  # all is written, and has not its name yet
  "step": lambda count, rng: _before(steps.TrainingCall, "__call__", 7 * count),
  "data": lambda count, rng: [_before(feed, "inputs", 9 * count) for feed in (feeds.DeviceFeed, feeds.GrainFeed)],
  "evaluation": lambda count, rng: _before(job.Job, "scores", count, _after),
  "metrics": lambda count, rng: _before(record.Writer, "append", 3 * count, _half_a_line),
  "save": lambda count, rng: _before(Checkpoints, "save", count, _after),
  "hash": lambda count, rng: _before(manifest, "write", count),
  "commit": lambda count, rng: _before(manifest, "write", count, _after),
  "committed": lambda count, rng: _before(Checkpoints, "_superfluous", count),
  "clean-up": lambda count, rng: _deleting(count),
  "report": lambda count, rng: _before(report.Report, "finish", 1),
  "any": lambda count, rng: _soon(rng.uniform(0.0, 4.0)),
}
