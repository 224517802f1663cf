"""A model, the optimizer's flags and the data's schema as a supervised task."""

import flax.linen as nn

from experiments.schema import Experiment
from research import mup, optim
from research.data.splits import Splits
from research.errors import UserError
from research.supervised import supervised
from research.task import Task


def outputs(splits: Splits) -> int:
  """The head's width: the number of classes, or 1 for a regression. Raises UserError where all are of one class."""
  names = splits.train.schema.class_names
  if len(names) == 1:
    raise UserError(f"data: {splits.train.name}: all examples are of one class, {names[0]!r}; two are needed to tell")
  return len(names) or 1


def make_task(
  config: Experiment,
  splits: Splits,
  total_steps: int,
  model: nn.Module,
  *,
  sigmoid: bool = False,
  macro_f1: bool = False,
  mirrored: bool = False,
  growth: mup.Growth | None = None,
) -> Task:
  """Softmax cross-entropy for labels (sigmoid's where asked), mean squared error for targets."""
  regression = splits.train.schema.output == "target"
  return supervised(
    model,
    optim.make_optimizer(config.optim.over(total_steps), total_steps, growth),
    loss="mean_squared_error" if regression else "sigmoid" if sigmoid else "softmax",
    micro_batches=config.optim.micro_batches,
    ema_decay=config.optim.ema_decay,
    target_center=splits.target_mean or 0.0,
    target_scale=splits.target_std or 1.0,
    macro_f1=macro_f1,
    mirrored=mirrored,
  )


def need_images(experiment: str, config: Experiment, splits: Splits) -> tuple[int, ...]:
  """(H, W, C) of the data's images. Raises UserError where there are none."""
  feature = splits.train.schema.features.get("image")
  if feature is None or splits.train.schema.output != "label":
    raise UserError(
      f"model: {experiment} classifies images, and {config.data.source} has"
      f" {', '.join(splits.train.schema.features)}; python -m experiments.mlp takes it"
    )
  return feature.shape
