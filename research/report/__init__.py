"""What a run leaves behind and shows while it goes on: numbers, TensorBoard events, a live line, pictures, one page.

It measures nothing and decides nothing: the loop hands it numbers. Importing it is cheap; each heavy library comes in
where it is first used, and a run without matplotlib or TensorBoard still finishes.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from research.report import alarms, predictions, record, samples
from research.report.atomic import cannot_write, write_atomically
from research.report.events import Events
from research.report.measures import say, say_seconds
from research.report.terminal import open_terminal

if TYPE_CHECKING:
  from research.task import Sample


class Report:
  """The reporting of one run; a context manager, so that the terminal is restored however the run ends.

  Opening it drops what the run directory holds after `start_step` (everything if 0), because the loop is about to
  repeat those steps: no step is ever recorded twice. Numbers that the loop repeats at `start_step` itself are
  ignored, so it may evaluate again right after a resume.

  Args:
    workdir: the run directory; made if missing.
    header: what is trained, shown once: {"data": "digits, 1,437 examples", "parameters": "…"}.
    total_steps: where the run ends.
    start_step: finished updates in the checkpoint that the run goes on from.
    batch_size: examples a step, for examples/s.
    headline: the metric to show first.
    quiet: print nothing.

  Raises:
    UserError: the directory cannot be written, or its metrics.jsonl is damaged before its last line.
  """

  def __init__(
    self,
    workdir: Path | str,
    *,
    header: Mapping[str, str],
    total_steps: int,
    start_step: int = 0,
    batch_size: int,
    headline: str = "test/accuracy",
    quiet: bool = False,
  ):
    self.workdir, self.headline = Path(workdir), headline
    self._began = time.monotonic()
    self._terminal = open_terminal(total_steps, start_step, batch_size, headline, quiet=quiet)
    try:
      self.workdir.mkdir(parents=True, exist_ok=True)
      if start_step < total_steps:
        (self.workdir / "result.json").unlink(missing_ok=True)  # it would call an unfinished run finished
    except OSError as error:
      raise cannot_write(self.workdir, error) from error
    self._terminal.header(header)
    self._open_files(start_step)

  def _open_files(self, start_step: int) -> None:
    """Everything that is kept of a run, as far as `start_step`."""
    metrics = self.workdir / "metrics.jsonl"
    try:
      kept_samples = samples.truncate_after(self.workdir / "samples", start_step)
    except OSError as error:
      raise cannot_write(self.workdir, error) from error
    kept = record.truncate_after(metrics, start_step if start_step > 0 else -1)
    self._start = start_step
    self._known = {name for line in kept if line["step"] == start_step for name in line}
    self._kept_samples = {path for paths in kept_samples.values() for path in paths}
    self._watch = alarms.Watch()
    for line in kept:
      self._watch.see(line)  # what they were alarming about was told then
    self._writer = record.Writer(metrics)
    self._events = Events(self.workdir / "tensorboard", kept, kept_samples, self.note)

  def __enter__(self) -> "Report":
    self._terminal.open()
    return self

  def __exit__(self, *_exception) -> None:
    self.close()

  def close(self) -> None:
    """Restores the terminal and closes the files. Harmless when repeated."""
    with contextlib.ExitStack() as stack:
      stack.callback(self._writer.close)
      stack.callback(self._events.close)
      stack.callback(self._terminal.close)

  def train(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records what was measured while training, under full names: {"train/loss": 0.3}. Reads each value at once."""
    found = self._append(step, scalars)
    self._terminal.train(step, scalars)
    self._alarm(found)

  def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records what was measured on held-out data after `step` updates: {"validation/accuracy": 0.97}."""
    found = self._append(step, scalars)
    self._terminal.evaluation(step, scalars)
    self._alarm(found)

  def _append(self, step: int, scalars: Mapping[str, float]) -> list[alarms.Alarm]:
    if step <= self._start and self._known:
      scalars = {name: value for name, value in scalars.items() if name not in self._known}
    if not scalars:
      return []
    line = self._writer.append(step, scalars)
    self._events.scalars(line)
    return self._watch.see(line)

  def _alarm(self, found: Sequence[alarms.Alarm]) -> None:
    for alarm in found:
      self.note(f"alarm: {alarm.text}")

  def sample(self, step: int, sample: "Sample") -> None:
    """Keeps what the model makes under samples/: pictures as one grid, a text, or several of them by name.

    The first of several is the main kind, samples/000500.png; another is samples/NAME/000500.png. Where nothing can be
    drawn (the pictures are NaN, Pillow is missing) a note says so and the run goes on.

    Raises ValueError for what is no `task.Sample`, UserError if the folder cannot be written.
    """
    try:
      written = samples.write(self.workdir / "samples", step, sample)
    except (ImportError, samples.NotNumbers) as error:
      self.note(f"no samples of step {step:,}: {error}")
      return
    for kind, path in written.items():
      if path not in self._kept_samples:  # the event of a step that is repeated after a resume is there already
        self._events.sample(step, kind, path)

  def rewind(self, step: int) -> None:
    """Drops what was recorded after `step`, a checkpoint's, that the loop has gone back to; as opening a run does."""
    self._writer.close()
    self._events.close()
    self._open_files(step)
    self._terminal.progress(step)

  def progress(self, step: int) -> None:
    """Moves the bar: `step` updates are finished. Costs less than a microsecond."""
    self._terminal.progress(step)

  def note(self, text: str) -> None:
    """Says one line, above the bar where there is one."""
    self._terminal.note(text)

  def finish(
    self,
    result: Mapping,
    *,
    rows: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] = (),
    images: Callable[[np.ndarray], np.ndarray] | None = None,
    wall: Callable[[], float] | None = None,
  ) -> Path:
    """Writes predictions.npz, pictures/, report.html and, last of all, result.json; returns the page's path.

    Args:
      result: {"step", "metrics": {"test/accuracy": …}, "best": {…}}.
      rows: values_N of each example of the final split: "label", "prediction", "loss", "probability" and "index" of
        a classifier; "target", "prediction", "loss" of a regression; a forecaster's are in forecasts.py.
      class_names: of the labels 0, 1, …; the numbers themselves if empty.
      images: indices_M (from rows["index"]) → images_MHWC uint8, for the worst mistakes.
      wall: the run's seconds so far, asked before the page is drawn and once more when it is; else this start's.
    """
    metrics = result.get("metrics", {})
    ordered = {name: metrics[name] for name in sorted(metrics, key=self._importance)}
    seconds = wall() if wall else time.monotonic() - self._began
    result = record.strict({**result, "wall_seconds": seconds, "metrics": ordered})
    self._terminal.close()
    if rows is not None:
      predictions.write(self.workdir / "predictions.npz", predictions.collect(rows, class_names, images))
    try:
      page = rebuild(self.workdir, result, note=self.note)
    finally:
      # The numbers are worth more than the page: a fault in drawing is loud, but it must not cost the run its result.
      result["wall_seconds"] = wall() if wall else seconds
      text = json.dumps(result, indent=2, allow_nan=False)
      write_atomically(self.workdir / "result.json", text + "\n")
    self._terminal.summary(self._summary(result, page))
    return page

  def _importance(self, name: str) -> tuple[bool, bool]:
    """Sorts the headline's measure first, and of each measure the test split (what is generated) first."""
    return name.rsplit("/", 1)[-1] != self.headline.rsplit("/", 1)[-1], not name.startswith(("test/", "generated/"))

  def _summary(self, result: Mapping, page: Path) -> dict[str, str]:
    measured = result["metrics"] or dict([self._terminal.loss] if self._terminal.loss else [])
    rows = {name: say(name, record.number(value)) for name, value in measured.items()}
    return {**rows, "wall time": say_seconds(float(result["wall_seconds"])), "report": str(page)}


def rebuild(workdir: Path, result: Mapping | None = None, note: Callable[[str], None] = print) -> Path:
  """Draws pictures/, the film in it and report.html anew from a run directory's files; returns the page's path.

  Args:
    result: what result.json will say, where it is not there yet.
    note: told one line if pictures or the film cannot be drawn; the page is then made without them.

  Raises:
    UserError: the directory holds no run, or its files are damaged.
  """
  from research.report import film, page, pictures, run_directory

  run = run_directory.open_run(workdir, result)
  try:
    pictures.write_all(run, workdir / "pictures")
  except ImportError as error:
    note(f"no pictures: {error}")
  try:
    film.write(run.samples.get(samples.MAIN, []), workdir / film.PATH)
  except (ImportError, film.CannotFilm) as error:
    note(f"no film of the samples: {error}")
  write_atomically(workdir / "report.html", page.render(run))
  return workdir / "report.html"
