"""The flags of a generator and a discriminator, and the networks that they name."""

import dataclasses

from experiments.schema import flag
from research.adversarial import Adversaries
from research.data.source import Schema
from research.errors import UserError
from research.models import gan


@dataclasses.dataclass(frozen=True)
class Model:
  """Generator and discriminator"""

  name: str = flag("dcgan", "dcgan, resnet (SNGAN's), or mlp for points", choices=("dcgan", "resnet", "mlp"))
  latent: int = flag(64, "width of the noise", low=1)
  width: int = flag(64, "generator: channels of the last hidden layer (dcgan) or of all (resnet)", low=1)
  discriminator_width: int = flag(64, "discriminator: channels of the first layer (dcgan) or of all (resnet)", low=1)
  widths: tuple[int, ...] = flag((128, 128), "mlp: hidden widths of both networks")
  conditional: bool = flag(False, "learn each class: class-conditional normalisation and a projection discriminator")
  norm: str = flag("batch", "the generator's normalisation", choices=("none", "batch"))
  discriminator_norm: str = flag("none", "the discriminator's normalisation", choices=("none", "batch", "group"))
  spectral_norm: bool = flag(False, "divide the discriminator's kernels by their largest singular value")
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))


def classes_of(model: Model, schema: Schema) -> int:
  """How many classes the networks know: the data's, or 0."""
  return len(schema.class_names) if model.conditional else 0


def make_players(model: Model, source: str, schema: Schema) -> Adversaries:
  """The two networks that the flags name. Raises UserError where they cannot make what the data are."""
  classes = classes_of(model, schema)
  if model.conditional and not classes:
    raise UserError(f"model: --model.conditional needs class labels, and {source} has none")
  image = schema.features.get("image")
  if (image is None) != (model.name == "mlp"):
    has, right = ("images", "dcgan or resnet") if image else ("no images", "mlp")
    raise UserError(f"model: {source} has {has}, which --model.name={model.name} cannot make; {right} would do")
  if model.name == "mlp":
    width = schema.features["features"].shape[-1]
    networks = gan.PointGenerator(width, model.widths, classes), gan.PointDiscriminator(model.widths, classes)
  else:
    gan.halvings(image.shape)
    generator, discriminator = {
      "dcgan": (gan.DCGenerator, gan.DCDiscriminator),
      "resnet": (gan.ResNetGenerator, gan.ResNetDiscriminator),
    }[model.name]
    networks = (
      generator(image.shape, model.width, classes, model.norm, model.dtype),
      discriminator(model.discriminator_width, classes, model.discriminator_norm, model.dtype),
    )
  return Adversaries(*networks, model.latent)
