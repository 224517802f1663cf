"""Some updates of a run, traced: a file that XProf and TensorBoard open, and what it says in a few lines.

The trace begins and ends when no update is under way, so it holds whole updates and nothing of others. It alters no
number of the run, and a trace that cannot be made or read costs the run nothing but a note.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from research.profiling import trace
from research.profiling.instructions import Program
from research.report.atomic import write_atomically
from research.report.measures import say_seconds

TOLD = 5  # operations in the log; summary.json has KEPT
KEPT = 50


class Profile:
  """A context for `loop.fit`: `end` and `begin` are told every step at which the loop comes to rest and goes on.

  What it does between them, evaluating and saving, is in the trace and not in the summary.

  Args:
    updates: (first, last): the updates that start from first … last − 1 are traced, those of them that this process
      makes; () for none.
    directory: where the trace and summary.json go; whatever an earlier one left there is taken away.
    text: → the training program as XLA prints it. It waits until that is compiled, so that no trace holds compiling.
    note: is told the summary.
  """

  def __init__(
    self,
    updates: tuple[int, int] | tuple[()],
    directory: Path,
    text: Callable[[], str],
    note: Callable[[str], None],
  ):
    # One process of several traces: two on one machine would write one file.
    self._updates = range(*updates) if updates and jax.process_index() == 0 else range(0)
    self._directory, self._text, self._note = directory, text, note
    self._program = Program("")
    self._first: int | None = None  # of the trace that goes on
    self._reached = 0
    self._pause: jax.profiler.TraceAnnotation | None = None  # from an `end` to the next `begin`

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_exception) -> None:
    """Ends a trace that the run did not come to the end of: stopped, or out of patience."""
    self._go_on()
    if self._first is not None:
      self._finish()

  def begin(self, step: int) -> None:
    """Before the update that starts from `step`."""
    self._go_on()
    if self._first is not None or step not in self._updates:
      return
    self._program = Program(self._text())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of Python's would take longer, and the device would wait for it
    try:
      shutil.rmtree(self._directory, ignore_errors=True)
      jax.profiler.start_trace(self._directory, profiler_options=options)
    except (OSError, RuntimeError) as error:  # another trace of this process goes on
      self._note(f"no profile: {error}")
      self._updates = range(0)
      return
    self._first = self._reached = step

  def end(self, step: int) -> None:
    """After `step` updates, all of them finished."""
    self._reached = step
    if self._first is None:
      return
    if step >= self._updates.stop:
      self._finish()
    else:
      self._pause = jax.profiler.TraceAnnotation(trace.PAUSE)
      self._pause.__enter__()

  def _go_on(self) -> None:
    if self._pause is not None:
      self._pause.__exit__(None, None, None)
      self._pause = None

  def _finish(self) -> None:
    first, self._first = self._first, None
    try:
      jax.profiler.stop_trace()
      if self._reached == first:
        return
      (path,) = self._directory.rglob("*.xplane.pb")
      found = trace.read(path)
      self._keep(first, path, found)
    except Exception as error:  # another version's format, a full disk: training goes on
      self._note(f"the profile in {self._directory} cannot be read: {type(error).__name__}: {error}")
      return
    for line in self._said(first, found):
      self._note(line)

  def _keep(self, first: int, path: Path, found: trace.Summary) -> None:
    summary = {
      "updates": [first, self._reached],
      "seconds": found.seconds,
      "outside_device": found.outside,
      "devices": found.devices,
      "operations": [
        {"name": self._program.name(each.program, each.instruction), **dataclasses.asdict(each)}
        for each in found.operations[:KEPT]
      ],
      "trace": str(path.relative_to(self._directory)),
    }
    write_atomically(self._directory / "summary.json", json.dumps(summary, indent=1) + "\n")

  def _said(self, first: int, found: trace.Summary) -> list[str]:
    """The log's lines."""
    updates = self._reached - first
    lines = [
      f"profile of {updates:,} updates from step {first:,} on: {_say(found.seconds / updates)} each,"
      f" {100 * found.outside:.1f}% of the time outside the device; see tensorboard --logdir={self._directory.parent}"
    ]
    for place, each in enumerate(found.operations[:TOLD], 1):
      name = self._program.name(each.program, each.instruction)
      times = f"{each.count / updates:g} times" if each.count != updates else "once"
      instruction = f" ({each.instruction})" if each.instruction not in name else ""
      lines.append(
        f"{place}. {name}{instruction}: {_say(each.seconds / updates)} an update, {times}, {100 * each.share:.1f}% of"
        " all operations"
      )
    return lines


def _say(seconds: float) -> str:
  return say_seconds(seconds) if seconds >= 1 else f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else (
    f"{1e6 * seconds:.3g} µs"
  )  # fmt: skip
