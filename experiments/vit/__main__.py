"""Train a vision transformer to classify images."""

import dataclasses
import sys
from pathlib import Path

from experiments.command import Definition, main
from experiments.schema import Experiment, flag
from experiments.supervised_task import make_task, need_images, outputs
from experiments.transformer_flags import Transformer
from research.data.splits import Splits
from research.errors import UserError
from research.models.vit import POOLINGS, POSITIONS, ViT
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Model(Transformer):
  """The network"""

  patch: int = flag(4, "side of a patch, in pixels", low=1)
  pooling: str = flag("mean", "what the head sees: the class token, or the patches' mean", choices=POOLINGS)
  positions: str = flag("learned", "how places are told", choices=POSITIONS)


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  model: Model = dataclasses.field(default_factory=lambda: Model(mlp="gelu"))

  def check(self) -> None:
    super().check()
    self.model.config()
    if self.model.experts:
      raise UserError("flags: --model.experts is for language models, whose loss keeps them balanced")


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  image_shape = need_images("vit", config, splits)
  model = config.model
  network = ViT(
    model.config(initializer="vit", causal=False, norm_epsilon=1e-6),
    classes=outputs(splits),
    patch=model.patch,
    pooling=model.pooling,
    positions=model.positions,
  )
  network.check(image_shape)
  return make_task(config, splits, total_steps, network)


EXPERIMENT = Definition("vit", __doc__, Config, build, Path(__file__).parent)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
