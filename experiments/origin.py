"""What --init_from names: another run, or hf:DIR, whose parameters this one begins with in place of a draw.

Arrays go over by their names. Only what a definition calls its heads may be missing, left over, or of another shape.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import flags, interchange, run_directory
from research.checkpoint import Checkpoints, named
from research.errors import UserError
from research.parallel import arrays as placing
from research.task import State

_AVERAGE = "extra/ema/"  # where a state has the averages of its params
_SHOWN = 6  # arrays in an error line


def model_flags(definition: Any, value: str) -> list[str]:
  """The --model flags of `value`, as run.flags or config.json has them, where this experiment has them."""
  if (pretrained := interchange.directory_of(value)) is not None:
    return interchange.model_flags(definition, pretrained)
  directory = _run(definition, value)
  known = {leaf.name for leaf in flags.leaves(definition.schema)}
  lines = flags.read_lines(directory / "run.flags")
  return [line for line in lines if line.startswith("--model.") and line[2:].partition("=")[0] in known]


def arrays(
  definition: Any, config: Any, splits: Any, abstract: State, say: Callable[[str], None]
) -> dict[str, np.ndarray]:
  """{path in the state: array} of --init_from: of a run its best checkpoint's, averaged parameters where it has them.

  Args:
    definition: the experiment.
    config: its flags.
    splits: refuse an origin whose tokens mean something else.
    abstract: the state that is to begin with them.
    say: is told what stays as it was drawn.

  Raises:
    UserError: there is no such run or checkpoint, or an array that is no head's has no partner; all are named.
  """
  value = config.init_from
  if (pretrained := interchange.directory_of(value)) is not None:
    splits.check_origin(pretrained)
    theirs, left_out = interchange.arrays(definition, pretrained, config, splits)
    if left_out:
      say(f"left out of {value}: {', '.join(left_out)}")
  else:
    directory = _run(definition, value)
    splits.check_origin(directory)
    theirs = _arrays(directory)
  ours = named({"params": abstract.params, "extra": abstract.extra})
  averaged = {name: f"params/{name.removeprefix(_AVERAGE)}" for name in ours if name.startswith(_AVERAGE)}
  taken, drawn, wrong = {}, [], []
  for name, array in ours.items():
    if name in averaged:
      continue
    source = _source(name, theirs)
    found = None if source is None else theirs[source]
    if found is not None and found.shape == array.shape:
      taken[name] = found.astype(array.dtype)
    elif name.startswith("params/") or source is not None:
      (drawn if _is_head(definition, name) else wrong).append(_difference(name, found, array))
  left = [name for name in theirs if name.startswith("params/") and name not in ours]
  wrong += [f"{name} only there" for name in left if not _is_head(definition, name)]
  if wrong:
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise UserError(f"init_from: {value} is of another model: {'; '.join(wrong[:_SHOWN])}{more}")
  say(f"{len(taken)} arrays from {value}" + (f"; as drawn: {'; '.join(drawn)}" if drawn else ""))
  return taken | {name: taken[param] for name, param in averaged.items() if param in taken}


def begin(state: State, taken: dict[str, np.ndarray]) -> State:
  """A fresh state with those arrays in it, where its own lay. The optimizer's state stays as it was made."""

  def placed(path: Any, array: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return placing.put(taken[name], array.sharding) if name in taken else array

  new = jax.tree_util.tree_map_with_path(placed, {"params": state.params, "extra": state.extra})
  return state.replace(params=new["params"], extra=new["extra"])


def kept(value: str, workdir: Path | None, file: str) -> Path:
  """Where `file` stands, which a run keeps: in `workdir` where it is there already, else in --init_from's `value`."""
  if workdir is not None and (workdir / file).exists():
    return workdir / file
  path = (interchange.directory_of(value) or Path(value).expanduser()) / file
  if not path.exists():
    raise UserError(f"init_from: {value} has no {file}")
  return path


def tokenizer(config: Any, workdir: Path | None, file: str) -> str | Path:
  """--text.tokenizer, or where the tokenizer stands that need not be learned: --init_from's, or the run's own."""
  if config.text.tokenizer == "init":
    return kept(config.init_from, workdir, file)
  own = workdir is not None and (workdir / file).exists() and run_directory.experiment_of(workdir) is not None
  return workdir / file if own and not run_directory.differing(workdir, config) else config.text.tokenizer


def _run(definition: Any, value: str) -> Path:
  directory = Path(value).expanduser()
  name = run_directory.experiment_of(directory)
  if name is None:
    raise UserError(f"init_from: {value} is no run's directory: it has no run.flags of Flagship's")
  if name != definition.name:
    raise UserError(f"init_from: {value} is a run of experiments.{name}, not of experiments.{definition.name}")
  return directory


def _arrays(directory: Path) -> dict[str, np.ndarray]:
  """{name: array} of the params, averaged ones where there are, and what else the model carries."""
  if not (directory / "checkpoints").is_dir():
    raise UserError(f"init_from: {directory} has no checkpoints; train it first")
  metric = run_directory.best_metric(directory)
  with contextlib.closing(Checkpoints(directory / "checkpoints", read_only=True)) as checkpoints:
    steps = run_directory.judged_steps(directory, metric, checkpoints.steps)
    step = next((step for step in steps if checkpoints.is_whole(step)), None)
    if step is None:
      raise UserError(f"init_from: {directory} has no whole checkpoint")
    return checkpoints.arrays(step, ("params", "extra"))


def _source(name: str, theirs: dict[str, np.ndarray]) -> str | None:
  """Which of their arrays stands for ours."""
  choices = [f"{_AVERAGE}{name.removeprefix('params/')}", name] if name.startswith("params/") else [name]
  return next((choice for choice in choices if choice in theirs), None)


def _is_head(definition: Any, name: str) -> bool:
  return any(part in definition.heads for part in name.split("/"))


def _difference(name: str, found: np.ndarray | None, array: jax.Array) -> str:
  if found is None:
    return f"{name} only here"
  return f"{name} is {list(found.shape)} there and {list(array.shape)} here"
