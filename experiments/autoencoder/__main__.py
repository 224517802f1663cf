"""Train an autoencoder on images or a table: plain, denoising or variational. Labels are not looked at."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.command import Definition, main
from experiments.schema import Experiment, flag
from research import optim
from research.autoencoding import COLUMNS, Noise, Variational, autoencoding
from research.data.splits import Splits
from research.data.statistics import channel_statistics
from research.errors import UserError
from research.models.autoencoder import LIKELIHOODS, Autoencoder
from research.task import Task

NOISES = ("none", "gaussian", "masking", "missing")
SHOWN = 4 * COLUMNS  # held-out images with their reconstructions


@dataclasses.dataclass(frozen=True)
class Model:
  """The network, and the likelihood of a variational one"""

  kind: str = flag("plain", "what is learned", choices=("plain", "denoising", "variational"))
  network: str = flag("mlp", "dense layers, or convolutions that halve the image", choices=("mlp", "conv"))
  widths: tuple[int, ...] = flag((512, 256), "encoder's hidden widths, or channels at each halving; reversed to decode")
  latent: int = flag(32, "width of the code; 0: conv's last feature map", low=0)
  activation: str = flag("relu", "nonlinearity", choices=("relu", "gelu", "tanh", "sigmoid"))
  likelihood: str = flag("bernoulli", "variational: of a value given the code", choices=LIKELIHOODS)
  binarize: bool = flag(False, "bernoulli: draw each pixel anew as 0 or 1, with its brightness as probability")
  sigma: float = flag(0.0, "gaussian: standard deviation of a value; 0: learned", low=0.0)
  beta: float = flag(1.0, "variational: weight of the KL divergence", low=0.0)
  beta_warmup: float = flag(0.0, "variational: share of the run over which that weight rises from 0", low=0.0, high=1.0)
  iwae_samples: int = flag(0, "variational: draws of iwae_bound at each evaluation; 0: none", low=0, curve=False)
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class NoiseFlags:
  """What a denoising autoencoder's input goes through"""

  kind: str = flag("none", "added, or values lost as 0 or as missing", choices=NOISES)
  sigma: float = flag(0.0, "gaussian: standard deviation; pixels are in [0, 1], columns have deviation 1", low=0.0)
  rate: float = flag(0.0, "masking, missing: probability of losing a pixel or a column", low=0.0, high=0.99)


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  pixels: ClassVar[str] = "unit"
  unused: ClassVar = dict.fromkeys(
    ("data.cutout", "data.mixup", "data.label_smoothing"),
    "is for classifiers; an autoencoder has --noise.kind, and no labels",
  )

  model: Model = dataclasses.field(default_factory=Model)
  noise: NoiseFlags = dataclasses.field(default_factory=NoiseFlags)

  def check(self) -> None:
    super().check()
    model, noise = self.model, self.noise
    if (model.kind == "denoising") != (noise.kind != "none"):
      raise UserError(
        f"flags: --model.kind={model.kind} with --noise.kind={noise.kind}: a denoising autoencoder, and no other, needs"
        " --noise.kind=gaussian, masking or missing"
      )
    if (noise.kind == "gaussian") != (noise.sigma > 0):
      raise UserError(
        f"flags: --noise.kind={noise.kind} with --noise.sigma={noise.sigma:g}: gaussian noise alone has one above 0"
      )
    if (noise.kind in ("masking", "missing")) != (noise.rate > 0):
      raise UserError(
        f"flags: --noise.kind={noise.kind} with --noise.rate={noise.rate:g}: masking and missing, and no other, have a"
        " rate above 0"
      )
    if model.kind == "variational":
      self._check_variational()
    for name in ("likelihood", "binarize", "sigma", "beta", "beta_warmup", "iwae_samples"):
      if model.kind != "variational" and getattr(model, name) != getattr(Model(), name):
        raise UserError(f"flags: --model.{name} is for --model.kind=variational, not {model.kind}")

  def _check_variational(self) -> None:
    model = self.model
    if not model.latent:
      raise UserError("flags: --model.kind=variational needs a code of --model.latent=1 or more")
    if model.binarize and model.likelihood != "bernoulli":
      raise UserError(f"flags: --model.binarize is for --model.likelihood=bernoulli, not {model.likelihood}")
    if model.sigma and model.likelihood != "gaussian":
      raise UserError(f"flags: --model.sigma is for --model.likelihood=gaussian, not {model.likelihood}")
    if model.beta_warmup and not model.beta:
      raise UserError("flags: --model.beta_warmup needs a --model.beta to rise to")


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  model, noise = config.model, config.noise
  features = splits.train.schema.features
  images = "image" in features
  shape = features["image" if images else "features"].shape
  is_variational = model.kind == "variational"
  if is_variational and not images and model.likelihood != "gaussian":
    raise UserError(
      f"model: --model.likelihood={model.likelihood} is of values in [0, 1], and {config.data.source} is a table of any"
      " numbers; --model.likelihood=gaussian takes it"
    )
  network = Autoencoder(
    shape=shape,
    latent=model.latent,
    widths=model.widths,
    network=model.network,
    activation=model.activation,
    posterior=is_variational,
    dtype=model.dtype,
  )
  network.check(shape)
  fill = _means(config, splits, images) if noise.kind == "missing" else (0.0,)
  variational = Variational(
    model.likelihood, model.binarize, model.sigma, model.beta, int(model.beta_warmup * total_steps), model.iwae_samples
  )
  return autoencoding(
    network,
    optim.make_optimizer(config.optim.over(total_steps), total_steps),
    noise=Noise(noise.kind, noise.sigma, noise.rate, fill) if model.kind == "denoising" else None,
    variational=variational if is_variational else None,
    micro_batches=config.optim.micro_batches,
    ema_decay=config.optim.ema_decay,
    examples=_shown(splits) if images and shape[-1] in (1, 3) else None,
  )


def _means(config: Config, splits: Splits, images: bool) -> tuple[float, ...]:
  """What stands for a missing value: the training mean of its channel, in [0, 1], or of its column."""
  if images:
    return tuple(mean / 255 for mean in channel_statistics(splits.train, config.data.cache_dir).mean_C)
  return tuple(splits.train.column("features").mean(axis=0, dtype=np.float64).tolist())


def _shown(splits: Splits) -> np.ndarray:
  """Held-out images, evenly spaced, so that data sorted by class show more than one: a multiple of COLUMNS."""
  source = splits.test or splits.validation or splits.train
  places = np.linspace(0, source.size - 1, SHOWN).astype(np.int64)
  return source.gather(places)["image"]


EXPERIMENT = Definition(
  "autoencoder",
  __doc__,
  Config,
  build,
  Path(__file__).parent,
  samples="pictures and what a run makes of them, as files",
)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
