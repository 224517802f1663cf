"""Fit a linear model: linear regression to targets, logistic or softmax regression to labels."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from experiments.command import Definition, main
from experiments.schema import Experiment
from experiments.supervised_task import make_task, outputs
from research.data.splits import Splits
from research.models.linear import Linear
from research.parallel import arrays
from research.task import Key, State, Task

_MOST_WEIGHTS = 20  # more are no longer numbers that one reads


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment; a linear model has none of its own."""


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  regression, classes = splits.train.schema.output == "target", outputs(splits)
  binary = not regression and classes == 2
  network = Linear(outputs=1 if binary else classes, squeeze=regression or binary)
  task = make_task(config, splits, total_steps, network, sigmoid=binary)
  if not regression or "features" not in splits.train.schema.features:
    return task
  return dataclasses.replace(task, judge=against_least_squares(splits))


def against_least_squares(splits: Splits):
  """A judge: the weights in the target's own unit, and how far they are from the least-squares solution (float64)."""
  x_ND = splits.train.column("features").astype(np.float64)
  design_ND = np.concatenate([x_ND, np.ones((len(x_ND), 1))], axis=1)
  solution_D, *_ = np.linalg.lstsq(design_ND, splits.train.column("target").astype(np.float64), rcond=None)
  names = splits.train.schema.feature_names or tuple(f"x{i}" for i in range(x_ND.shape[1]))
  center, scale = splits.target_mean or 0.0, splits.target_std or 1.0

  def judge(state: State, key: Key) -> dict[str, float]:
    del key
    head = arrays.get(state.params["head"])
    weights_D = np.concatenate([head["kernel"][:, 0], head["bias"]]).astype(np.float64) * scale
    weights_D[-1] += center
    found = {"fit/least_squares_gap": float(np.abs(weights_D - solution_D).max())}
    if len(weights_D) <= _MOST_WEIGHTS:
      found |= {f"fit/{name}": float(w) for name, w in zip([*names, "intercept"], weights_D, strict=True)}
    return found

  return judge


EXPERIMENT = Definition("linear", __doc__, Config, build, Path(__file__).parent)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
