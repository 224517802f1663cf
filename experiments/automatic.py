"""--parallel.strategy=auto: of the strategies that fit, the one whose step preflight thinks the fastest."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax

from experiments.schema import Experiment
from research.data.splits import Splits
from research.errors import UserError
from research.parallel.tables import STRATEGIES
from research.parallel.topology import Target
from research.report.measures import say_duration

if TYPE_CHECKING:
  from experiments.command import Definition


def choose(
  definition: "Definition", config: Experiment, splits: Splits, say: Callable[[str], None], target: Target | None
) -> Experiment:
  """The config with a strategy and a mesh, told with why. Each candidate's step is compiled.

  Raises UserError where none fits, or none goes with the model, the batch and the mesh.
  """
  from experiments.job import make_job
  from experiments.preflight import facts

  count = len(jax.devices() if target is None else target.devices)
  found, refused = [], []
  for strategy, mesh in candidates(count, config.parallel.mesh):
    parallel = dataclasses.replace(config.parallel, strategy=strategy, mesh=mesh)
    asked = dataclasses.replace(config, parallel=parallel)
    try:
      told = facts(make_job(definition, asked, lambda line: None, splits=splits, target=target), target)
    except UserError as error:
      refused.append(str(error))
      continue
    found.append((told, asked))
    say(f"auto: {_words(told)}")
  fitting = [each for each in found if each[0]["device memory"]["fits"] is not False]
  if not fitting:
    if not found:
      raise UserError(refused[0])
    least = min((told for told, _ in found), key=lambda told: told["device memory"]["total"])
    raise UserError(f"parallel: no strategy fits; the smallest is {_words(least)}")
  _, best = min(fitting, key=lambda each: each[0]["estimate"]["seconds"])  # of equals the simplest, which came first
  say(f"auto: {best.parallel.strategy} over {best.parallel.mesh} is the fastest that fits")
  return best


def candidates(count: int, mesh: str) -> Iterator[tuple[str, str]]:
  """(strategy, mesh) for so many devices, the simplest first; where a mesh is given, those that use all its axes."""
  if mesh:
    axes = {part.partition(":")[0] for part in mesh.split(",")}
    yield from ((name, mesh) for name, each in STRATEGIES.items() if axes | {"data"} == {*each.mesh_axes, "data"})
    return
  for name, strategy in STRATEGIES.items():
    more = [axis for axis in strategy.mesh_axes if axis != "data"]
    if not more:
      yield name, f"data:{count}"
    for each in (2, 4, 8):
      if more and count % each == 0:
        yield name, f"data:{count // each},{more[0]}:{each}"


def _words(told: dict) -> str:
  devices, memory, guess = told["devices"], told["device memory"], told["estimate"]
  mesh = ",".join(f"{axis}:{size}" for axis, size in devices["mesh"].items())
  fits = "" if memory["fits"] is not False else ", which does not fit"
  return (
    f"{devices['strategy']} over {mesh}: {say_duration(guess['seconds'])} by {guess['bound']},"
    f" {memory['total'] / 1e9:.3g} GB a device{fits}"
  )
