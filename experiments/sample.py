"""The word sample: pictures or texts from a run's best checkpoint, or its newest, as files in a folder of their own.

It trains nothing, changes nothing in the run but its generated/, and never writes over files that it did not make.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.schema import flag
from research.errors import UserError
from research.parsing import parse_json

if TYPE_CHECKING:
  from experiments.command import Definition, Request
  from research.task import State, Task

MARK = "generated.json"  # says whose files a folder holds
_AT_ONCE = 1000  # asked of one call of the task: a hundred thousand at once would not fit into memory
_SHOWN = 256  # pictures in the grid
_SINGLE = re.compile(r"\d{5,}\.png")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The word sample's own flags, on the command line only"""

  count: int = flag(64, "pictures to make; where data are points, points in the one picture", low=1, high=100_000)
  output: str = flag("", "folder for them; empty: generated/ in the run's directory")
  sample_seed: int = flag(-1, "seed of their noise; -1: the run's own seed", low=-1, high=2**32 - 1)

  def check(self) -> None:
    """No combination of these is impossible."""


def run(definition: "Definition", request: "Request") -> int:
  """Makes the samples and says where they are; returns the exit code. Raises UserError for whatever prevents it."""
  import jax

  from experiments import kept, work
  from experiments.job import make_job

  if definition.generate is not None:
    work.check_trained(request.workdir)
    job = kept.job(definition, request) or make_job(definition, request.config, print, request.workdir)
    state, _ = work.restore(job, request)
    return definition.generate(job, state, request)
  asked = request.sampling
  output = Path(asked.output).expanduser() if asked.output else request.workdir / "generated"
  _check(output)
  job, state, step = work.load(definition, request)
  if job.task.sample is None:
    raise UserError(f"sample: experiments.{definition.name} makes no samples of {request.config.data.source}; use eval")
  seed = request.config.seed if asked.sample_seed < 0 else asked.sample_seed
  folder = _Folder(output, {"experiment": definition.name, "step": step, "sample_seed": seed, "count": asked.count})
  made = make(job.task, state, jax.random.key(seed), asked.count, folder, f"step {step:,}")
  print(f"{request.workdir}, step {step:,}: {made}")
  for line in folder.told():
    print(f"  {line}")
  return work.DONE


def make(task: "Task", state: "State", key: Any, count: int, folder: "_Folder", moment: str) -> str:
  """Asks `task.sample` for `count` in all, _AT_ONCE a call, and writes what it gives; returns what that is, in words.

  The first call has the key itself, and its pictures are those of the grids; later ones only add to the main kind.
  Points are asked for in one call, since they are one picture. A task that has no more to show ends it early.
  """
  import jax

  from research.report import samples

  done, texts, are_points = 0, [], task.sampled == "points"
  at_once = count if are_points else _AT_ONCE
  for call, start in enumerate(range(0, count, at_once)):
    wanted = min(at_once, count - start)
    found = samples.named(task.sample(state, jax.random.fold_in(key, call) if call else key, wanted))
    main = next(iter(found.values()))
    try:
      if call == 0:
        folder.begin(found)
      if isinstance(main, str):
        texts.append(main)
      else:
        pictures = samples.as_uint8(main)
        pictures_NHWC = pictures.reshape(-1, *pictures.shape[-3:])
        if are_points:
          return f"a picture of {count:,} point{'' if count == 1 else 's'}"
        folder.pictures(done, pictures_NHWC)
        done += len(pictures_NHWC)
        if len(pictures_NHWC) < wanted:
          break
    except samples.NotNumbers as error:
      raise UserError(f"sample: what the model makes at {moment} is NaN or infinite: the run diverged") from error
    except ImportError as error:
      raise UserError(f"sample: pictures need Pillow ({error}): pip install Pillow") from error
  if texts:
    folder.text("\n".join(texts))
    return "texts"
  return f"{done:,} picture{'' if done == 1 else 's'}"


def _check(output: Path) -> None:
  """Raises UserError for a folder that holds what the word sample did not write."""
  try:
    ours = not output.exists() or not any(output.iterdir()) or isinstance(_mark(output), dict)
  except NotADirectoryError as error:
    raise UserError(f"sample: {output} is no folder, nor can be one; give another --output") from error
  except OSError as error:
    raise UserError(f"sample: cannot read {output}: {error.strerror or error}; give another --output") from error
  if not ours:
    raise UserError(f"sample: {output} holds files that are not of this command; give another --output")


def _mark(output: Path) -> Any:
  try:
    return parse_json((output / MARK).read_text("utf-8"))
  except (FileNotFoundError, ValueError):
    return None


class _Folder:
  """The files of one command: grids by name, single pictures of the main kind, and the mark that tells them as ours."""

  def __init__(self, path: Path, about: dict):
    self.path, self._about, self._singles = path, about, 0
    self._names: list[str] = []

  def begin(self, found: dict[str, Any]) -> None:
    """Clears what an earlier command left, and writes the mark and every kind but a main text."""
    from research.report import samples

    main, *others = found
    first = "samples" if "samples" not in others else main
    sheets = {}
    for place, (name, content) in enumerate(found.items()):
      is_text, name = isinstance(content, str), name if place else first
      data = content.encode() if is_text else samples.png(samples.sheet(_first(samples.as_uint8(content))))
      sheets[f"{name}.{'txt' if is_text else 'png'}"] = data
    self._names = list(sheets)
    with self._forgiving():
      self._clear()
      self.path.mkdir(parents=True, exist_ok=True)
      (self.path / MARK).write_text(json.dumps({**self._about, "files": self._names}, indent=2) + "\n", "utf-8")
      for name, data in sheets.items():
        (self.path / name).write_bytes(data)

  def pictures(self, start: int, pictures_NHWC: Sequence) -> None:
    """Each picture at its true size: images/00000.png, …"""
    from research.report import samples

    with self._forgiving():
      (self.path / "images").mkdir(exist_ok=True)
      for place, picture_HWC in enumerate(pictures_NHWC, start):
        (self.path / "images" / f"{place:05}.png").write_bytes(samples.png(picture_HWC))
    self._singles = start + len(pictures_NHWC)

  def text(self, text: str) -> None:
    """The whole text of the main kind."""
    with self._forgiving():
      (self.path / self._names[0]).write_text(text, "utf-8")

  def told(self) -> list[str]:
    """Where everything is."""
    lines = [str(self.path / name) for name in self._names]
    if self._singles:
      last = "" if self._singles == 1 else f" … {self._singles - 1:05}.png"
      lines.append(f"{self.path / 'images' / '00000.png'}{last}")
    return lines

  def _clear(self) -> None:
    _check(self.path)
    names = (_mark(self.path) or {}).get("files", [])
    old = [self.path / Path(str(name)).name for name in names]
    old += [path for path in (self.path / "images").glob("*.png") if _SINGLE.fullmatch(path.name)]
    for path in old:
      path.unlink(missing_ok=True)

  @contextlib.contextmanager
  def _forgiving(self):
    try:
      yield
    except OSError as error:
      reason = error.strerror or error
      raise UserError(f"sample: cannot write {self.path}: {reason}; free space or give another --output") from error


def _first(pictures):
  """As many pictures as a grid can show: of rows, whole rows."""
  a_row = pictures.shape[1] if pictures.ndim == 5 else 1
  return pictures[: max(1, _SHOWN // a_row)]
