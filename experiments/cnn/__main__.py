"""Train a convolutional network to classify images: the classic CNN, ResNets, and a fast residual network."""

import dataclasses
import re
import sys
from pathlib import Path

import flax.linen as nn

from experiments.command import Definition, main
from experiments.schema import Experiment, flag
from experiments.supervised_task import make_task, need_images, outputs
from research.data.splits import Splits
from research.errors import UserError
from research.models.cnn import CNN
from research.models.fast_cnn import FastCNN
from research.models.resnet import ResNet
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Model:
  """The network"""

  name: str = flag("cnn", "architecture", choices=("cnn", "resnet18", "resnet50", "fast"))
  widths: tuple[int, ...] = flag((32, 64), "cnn, fast: channels of each block; resnet: of the first stage")
  head_widths: tuple[int, ...] = flag((128,), "cnn: hidden widths of the dense head")
  kernel: int = flag(3, "cnn: side of the convolutions, in pixels", low=1)
  convs_per_block: int = flag(1, "cnn: convolutions before each pooling", low=1)
  separable: bool = flag(False, "cnn: convolutions but the first by channel, then 1×1 across channels (MobileNets)")
  pooling: str = flag("max", "cnn: how a block halves the image", choices=("max", "avg"))
  norm: str = flag("none", "normalisation; resnet and fast need one", choices=("none", "batch", "group"))
  activation: str = flag("relu", "cnn, fast: nonlinearity", choices=("relu", "gelu", "tanh", "sigmoid"))
  conv_dropout: float = flag(0.0, "cnn: dropout after each block", low=0.0, high=0.99)
  dropout: float = flag(0.0, "cnn: dropout in the head", low=0.0, high=0.99)
  residual_convs: str = flag("", "fast: convolutions in each stage's residual branch, such as 2,0,2")
  space_to_depth: bool = flag(False, "fast: fold squares of 2×2 pixels into channels first")
  large_images: bool = flag(False, "resnet: the stem for 224 pixels instead of the one for 32")
  mirrored: bool = flag(False, "outside training, average the logits of an image and of its mirror image")
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  model: Model = dataclasses.field(default_factory=Model)

  def check(self) -> None:
    super().check()
    model = self.model
    if model.name != "cnn" and model.norm == "none":
      raise UserError(f"flags: --model.name={model.name} needs --model.norm=batch or group")
    if model.name == "fast" and not re.fullmatch(r"\d+(,\d+)*", model.residual_convs):
      raise UserError(
        f"flags: --model.residual_convs={model.residual_convs} is not whole numbers with commas between them, one for"
        f" each of the {len(model.widths) - 1} stages after the first width"
      )
    if not model.widths:
      raise UserError("flags: --model.widths is empty; a convolutional network has at least one block")


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  image_shape = need_images("cnn", config, splits)
  network = make_network(config.model, outputs(splits))
  if hasattr(network, "check"):
    network.check(image_shape)
  return make_task(config, splits, total_steps, network, mirrored=config.model.mirrored)


def make_network(model: Model, classes: int) -> nn.Module:
  """The architecture that the flags name."""
  if model.name.startswith("resnet"):
    return ResNet(
      outputs=classes,
      depth=int(model.name.removeprefix("resnet")),
      small_images=not model.large_images,
      width=model.widths[0],
      norm=model.norm,
      dtype=model.dtype,
    )
  if model.name == "fast":
    return FastCNN(
      outputs=classes,
      widths=model.widths,
      residual_convs=tuple(int(count) for count in model.residual_convs.split(",")),
      space_to_depth=model.space_to_depth,
      activation=model.activation,
      norm=model.norm,
      dtype=model.dtype,
    )
  return CNN(
    outputs=classes,
    widths=model.widths,
    kernel=model.kernel,
    convs_per_block=model.convs_per_block,
    separable=model.separable,
    pooling=model.pooling,
    norm=model.norm,
    activation=model.activation,
    conv_dropout=model.conv_dropout,
    head_widths=model.head_widths,
    dropout=model.dropout,
    dtype=model.dtype,
  )


EXPERIMENT = Definition("cnn", __doc__, Config, build, Path(__file__).parent)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
