"""Train a convolutional network to classify images: the classic CNN, ResNets, and a fast residual network."""

import dataclasses
import sys
from pathlib import Path

from experiments.command import Definition, main
from experiments.schema import Experiment, flag
from experiments.supervised_task import make_task, need_images, outputs
from research.data.splits import Splits
from research.models.cnn import CNN
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Model:
  """The network"""

  name: str = flag("cnn", "architecture", choices=("cnn",))
  widths: tuple[int, ...] = flag((32, 64), "channels of each block")
  head_widths: tuple[int, ...] = flag((128,), "cnn: hidden widths of the dense head")
  kernel: int = flag(3, "cnn: side of the convolutions, in pixels", low=1)
  convs_per_block: int = flag(1, "cnn: convolutions before each pooling", low=1)
  pooling: str = flag("max", "cnn: how a block halves the image", choices=("max", "avg"))
  norm: str = flag("none", "normalisation", choices=("none", "batch", "group"))
  activation: str = flag("relu", "nonlinearity", choices=("relu", "gelu", "tanh", "sigmoid"))
  conv_dropout: float = flag(0.0, "cnn: dropout after each block", low=0.0, high=0.99)
  dropout: float = flag(0.0, "dropout in the head", low=0.0, high=0.99)
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  model: Model = dataclasses.field(default_factory=Model)


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  model = config.model
  image_shape = need_images("cnn", config, splits)
  network = CNN(
    outputs=outputs(splits),
    widths=model.widths,
    kernel=model.kernel,
    convs_per_block=model.convs_per_block,
    pooling=model.pooling,
    norm=model.norm,
    activation=model.activation,
    conv_dropout=model.conv_dropout,
    head_widths=model.head_widths,
    dropout=model.dropout,
    dtype=model.dtype,
  )
  network.check(image_shape)
  return make_task(config, splits, total_steps, network)


EXPERIMENT = Definition("cnn", __doc__, Config, build, Path(__file__).parent)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
