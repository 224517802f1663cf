"""Train a multilayer perceptron on a table or on small images: classification or regression."""

import dataclasses
import sys
from pathlib import Path

from experiments.command import Definition, main
from experiments.schema import Experiment, flag
from experiments.supervised_task import make_task, outputs
from research.data.splits import Splits
from research.models.mlp import MLP
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Model:
  """The network"""

  widths: tuple[int, ...] = flag((128, 128), "hidden widths")
  activation: str = flag("relu", "nonlinearity", choices=("relu", "gelu", "tanh", "sigmoid"))
  norm: str = flag("none", "normalisation of hidden values", choices=("none", "batch", "layer"))
  dropout: float = flag(0.0, "probability of zeroing a hidden value", low=0.0, high=0.99)
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  model: Model = dataclasses.field(default_factory=Model)


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  model = config.model
  network = MLP(
    outputs=outputs(splits),
    widths=model.widths,
    activation=model.activation,
    norm=model.norm,
    dropout=model.dropout,
    squeeze=splits.train.schema.output == "target",
    dtype=model.dtype,
  )
  return make_task(config, splits, total_steps, network)


EXPERIMENT = Definition("mlp", __doc__, Config, build, Path(__file__).parent)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
