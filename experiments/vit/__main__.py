"""Train a vision transformer to classify images."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.command import Definition, main
from experiments.interchange import Interchange
from experiments.schema import Experiment, flag
from experiments.supervised_task import make_task, need_images, outputs
from experiments.transformer_flags import Transformer
from research.data.splits import Splits
from research.data.statistics import channel_statistics
from research.errors import UserError
from research.interchange.family import fields_of
from research.interchange.vit import VIT
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

  model: Model = dataclasses.field(default_factory=lambda: Model(mlp="gelu", norm_epsilon=1e-6))

  def check(self) -> None:
    super().check()
    self.model.config()
    if self.model.experts:
      raise UserError("flags: --model.experts is for language models, whose loss keeps them balanced")


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  image_shape = need_images("vit", config, splits)
  network = make_network(config.model, outputs(splits))
  network.check(image_shape)
  growth = config.model.growth(network, jnp.zeros((1, *image_shape)))
  return make_task(config, splits, total_steps, network, growth=growth)


def make_network(model: Model, classes: int) -> ViT:
  """Raises UserError where the flags do not fit together."""
  return ViT(
    model.config(initializer="vit", causal=False),
    classes=classes,
    patch=model.patch,
    pooling=model.pooling,
    positions=model.positions,
  )


def fields(config: Config, splits: Splits) -> dict[str, Any]:
  """What layouts of other libraries name: the network's, and the images'."""
  *sides, channels = need_images("vit", config, splits)
  network = make_network(config.model, outputs(splits))
  return {**fields_of(network), "image_size": tuple(sides), "channels": channels}


def beside(config: Config, splits: Splits) -> dict[str, Any]:
  """The classes' names, and how an image becomes what the network sees."""
  names = dict(enumerate(splits.train.schema.class_names))
  height, width, _ = need_images("vit", config, splits)
  statistics = channel_statistics(splits.train, config.data.cache_dir)
  processor = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": height, "width": width},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [mean / 255 for mean in statistics.mean_C],
    "image_std": [std / 255 for std in statistics.std_C],
  }
  labels = {"id2label": names, "label2id": {name: place for place, name in names.items()}}
  return {"config.json": labels, "preprocessor_config.json": processor}


EXPERIMENT = Definition(
  "vit", __doc__, Config, build, Path(__file__).parent, interchange=Interchange((VIT,), fields, beside)
)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
