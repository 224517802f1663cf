"""A family of networks, WIDTHxDEPTH each: their flags, what preflight says of each, and a training run as a point."""

import contextlib
import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command
from launch.scaling import points
from launch.scaling.points import Point, Row
from research.errors import UserError

TABLES = ("embedding", "positions", "class_token")  # parameters that are looked up or added, and multiply nothing

EXAMPLES = {"config": "stdlib", "sizes": "32x2,64x3", "budgets": "1e12,3e12", "rates": "1e-3,2e-3,4e-3"}


@dataclasses.dataclass(frozen=True, order=True)
class Size:
  """A member of the family."""

  width: int
  depth: int

  def __str__(self) -> str:
    return f"{self.width}x{self.depth}"


@dataclasses.dataclass(frozen=True)
class Measures:
  """What a size costs, of its own preflight.

  Attributes:
    parameters: all of them.
    non_embedding: those but TABLES; a tied table, which is the head as well, does not count either.
    flops: model FLOPs of an update.
    tokens: predicted in an update; of images, examples.
  """

  parameters: int
  non_embedding: int
  flops: float
  tokens: int


@dataclasses.dataclass(frozen=True)
class Family:
  """Whose runs a study is made of.

  Attributes:
    experiment: "gpt", "bert" or "vit".
    flags: --config and what else is the same for all runs.
    head_width: of the heads, of which wider networks have more; 0: all have as many.
    metric: of result.json, what a run is told by.
    folder: where runs and points are kept.
  """

  experiment: str
  flags: tuple[str, ...]
  head_width: int
  metric: str
  folder: Path

  def flags_of(self, size: Size) -> tuple[str, ...]:
    found = (f"--model.width={size.width}", f"--model.layers={size.depth}")
    if not self.head_width:
      return found
    return (*found, f"--model.heads={size.width // self.head_width}", f"--model.head_width={self.head_width}")

  def check(self, sizes: Sequence[Size], more: Sequence[str] = ()) -> None:
    """Raises UserError for flags that the experiment would refuse, before anything is run."""
    definition = importlib.import_module(f"experiments.{self.experiment}.__main__").EXPERIMENT
    for size in sizes:
      if self.head_width and size.width % self.head_width:
        raise UserError(f"laws: heads of {self.head_width} do not fill a width of {size.width}, in --sizes")
      command.read(definition, [*self.flags, *more, *self.flags_of(size)]).config.check()

  def least_flops(self, size: Size) -> float:
    """What an update takes at least, by the flags alone: 6 for each token and parameter of its blocks' products. Of
    images, whose tokens the flags do not tell, one token each."""
    definition = importlib.import_module(f"experiments.{self.experiment}.__main__").EXPERIMENT
    config = command.read(definition, [*self.flags, *self.flags_of(size)]).config
    shape, tokens = config.model.config(), config.data.batch_size * getattr(config.model, "context", 1)
    attention = shape.width * shape.k * 2 * (shape.heads + shape.groups)
    mlp = (3 if shape.mlp == "swiglu" else 2) * shape.width * shape.f
    mlps = mlp * (shape.experts_per_token if shape.experts else 1)
    return 6.0 * shape.layers * (attention + mlps) * tokens

  def training(self, name: str, size: Size, flags: Sequence[str], about: Mapping[str, Any]) -> Point:
    """A run from its beginning to its end in a directory of its own."""
    own = (*self.flags, *self.flags_of(size), *flags, f"--workdir={self.folder / 'runs' / name}")
    return Point(name, (sys.executable, "-m", f"experiments.{self.experiment}", *own), {}, about)

  def loss_of(self, point: Point, out: str) -> dict[str, float]:
    """What a finished run found. Raises ValueError where it has no such metric."""
    del out
    result = json.loads((self.folder / "runs" / point.name / "result.json").read_text(encoding="utf-8"))
    metrics = result["metrics"]
    if not isinstance(metrics.get(self.metric), float):
      raise ValueError(f"no {self.metric} in its result.json, which has {', '.join(metrics)}")
    return {"loss": metrics[self.metric]}

  def measure(self, sizes: Sequence[Size], say: Callable[[str], None]) -> dict[Size, Measures]:
    """Each size's preflight, in a fresh process. Raises UserError where one fails."""
    start = (sys.executable, "-m", f"experiments.{self.experiment}", "preflight", "--json")
    wanted = [Point(str(size), (*start, *self.flags, *self.flags_of(size))) for size in sizes]
    rows = points.run_all(wanted, self.folder / "sizes", self._measures_of, say=say, retry=True)
    for row in rows:
      if not row["ok"]:
        raise UserError(f"laws: preflight of {row['name']} failed: {row['reason']}")
    names = [field.name for field in dataclasses.fields(Measures)]
    return {size: Measures(*(row[name] for name in names)) for size, row in zip(sizes, rows, strict=True)}

  def _measures_of(self, point: Point, out: str) -> dict[str, Any]:
    del point
    facts = json.loads(out[out.index("{\n") :])
    if facts["FLOPs"]["model"] is None:
      raise ValueError("the task counts no model FLOPs")
    arrays, batch = facts["parameters"], facts["run"]["batch"]
    if "tokens" in batch:
      examples, length = map(int, re.findall(r"\d+", batch["tokens"].partition("[")[2]))
      tokens = examples * (length - 1 if self.experiment == "gpt" else length)  # a GPT's windows hold what comes next
    else:
      tokens = int(re.findall(r"\d+", batch["image"].partition("[")[2])[0])
    return {
      "parameters": sum(array["count"] for array in arrays),
      "non_embedding": sum(array["count"] for array in arrays if array["name"].split("/")[-1] not in TABLES),
      "flops": facts["FLOPs"]["model"],
      "tokens": tokens,
    }


def sizes_of(text: str) -> list[Size]:
  """ "32x2,64x3" → sizes. Raises UserError for anything else."""
  found = []
  for part in filter(None, text.split(",")):
    match = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", part)
    if not match:
      raise UserError(f"flags: --sizes={text} is not WIDTHxDEPTH,…, as in {EXAMPLES['sizes']}")
    found.append(Size(int(match[1]), int(match[2])))
  if len(set(found)) < len(found):
    raise UserError(f"flags: --sizes={text} names a size twice")
  return found


def numbers_of(text: str, flag: str) -> list[float]:
  """ "1e12,3e12" → numbers above 0. Raises UserError for anything else, with an example of that flag's."""
  found = []
  for part in filter(None, text.split(",")):
    with contextlib.suppress(ValueError):
      found.append(float(part))
  if len(found) != len([*filter(None, text.split(","))]) or not all(0 < number < float("inf") for number in found):
    raise UserError(f"flags: --{flag}={text} is not numbers above 0 with commas between them, as in {EXAMPLES[flag]}")
  if len(set(found)) < len(found):
    raise UserError(f"flags: --{flag}={text} names a number twice")
  return found


def losses(rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
  """The rows that have a loss; tells how many have none."""
  good = [row for row in rows if row["ok"]]
  if len(good) < len(rows):
    say(f"{len(rows) - len(good)} of {len(rows)} points failed and are left out; --retry runs them again")
  return good
