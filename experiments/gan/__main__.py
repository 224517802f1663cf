"""Train a generative adversarial network: DCGAN, SNGAN, WGAN-GP, conditional ones, and MLPs on points."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

from experiments.command import Definition, main
from experiments.gan import judging, looking
from experiments.gan.networks import Model, classes_of, make_players
from experiments.schema import Experiment, flag
from research import optim
from research.adversarial import Game, adversarial
from research.data.splits import Splits
from research.errors import UserError
from research.gan_losses import LOSSES
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Play:
  """How generator and discriminator play"""

  loss: str = flag("non_saturating", "what they play for", choices=tuple(LOSSES))
  critic_steps: int = flag(1, "discriminator's updates for one of the generator, each on a part of the batch", low=1)
  updates: str = flag(
    "alternating", "generator after discriminator, or both at once", choices=("alternating", "simultaneous")
  )
  gradient_penalty: float = flag(0.0, "weight of (slope − 1)² between real and fake (WGAN-GP); 0: none", low=0.0)
  r1: float = flag(0.0, "weight of half the squared slope at real images; 0: none", low=0.0)
  r2: float = flag(0.0, "weight of half the squared slope at fakes; 0: none", low=0.0)
  discriminator_learning_rate: float = flag(0.0, "the discriminator's, where it differs from --optim's", low=0.0)


@dataclasses.dataclass(frozen=True)
class Metrics:
  """How the generator is judged"""

  features: str = flag("", "classifier that judges: EXPERIMENT:PRESET, trained if need be, or a run; empty: none")
  count: int = flag(10_000, "most examples that are made and compared at an evaluation", low=2)


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  pixels: ClassVar[str] = "signed"
  unused: ClassVar = {
    **dict.fromkeys(("data.mixup", "data.label_smoothing"), "softens labels, and a GAN has none to predict"),
    "optim.micro_batches": "is not for a GAN, whose batch is divided by --gan.critic_steps",
  }

  model: Model = dataclasses.field(default_factory=Model)
  gan: Play = dataclasses.field(default_factory=Play)
  metrics: Metrics = dataclasses.field(default_factory=Metrics)

  @property
  def batch_parts(self) -> int:
    return self.gan.critic_steps

  def check(self) -> None:
    super().check()
    play, data = self.gan, self.data
    if data.batch_size % play.critic_steps:
      raise UserError(
        f"flags: --data.batch_size={data.batch_size} does not divide into --gan.critic_steps={play.critic_steps} parts;"
        f" {-(-data.batch_size // play.critic_steps) * play.critic_steps} would"
      )
    if play.updates == "simultaneous" and play.critic_steps > 1:
      raise UserError("flags: --gan.updates=simultaneous means one step of each; --gan.critic_steps must be 1")
    bounded = play.gradient_penalty or self.model.spectral_norm or play.r1
    if play.loss == "wasserstein" and not bounded:
      raise UserError(
        "flags: --gan.loss=wasserstein needs a discriminator of bounded slope: --gan.gradient_penalty=10 or"
        " --model.spectral_norm"
      )
    penalties = [name for name in ("gradient_penalty", "r1", "r2") if getattr(play, name)]
    if penalties and self.model.discriminator_norm == "batch":
      raise UserError(
        f"flags: --gan.{penalties[0]} is of each example alone, which --model.discriminator_norm=batch mixes; group or"
        " none would do"
      )


def build(config: Config, splits: Splits, total_steps: int) -> Task:
  schema = splits.train.schema
  players = make_players(config.model, config.data.source, schema)
  made = looking.Maker(players, splits.train if classes_of(config.model, schema) else None)
  updates = {"generator": total_steps, "discriminator": total_steps * config.gan.critic_steps}
  rates = {"generator": config.optim.learning_rate, "discriminator": config.gan.discriminator_learning_rate}
  game = Game(
    loss=LOSSES[config.gan.loss],
    critic_steps=config.gan.critic_steps,
    simultaneous=config.gan.updates == "simultaneous",
    gradient_penalty=config.gan.gradient_penalty,
    r1=config.gan.r1,
    r2=config.gan.r2,
    spectral_norm=config.model.spectral_norm,
    ema_decay=config.optim.ema_decay,
  )
  optimizers = {}
  for name, count in updates.items():
    rule = dataclasses.replace(config.optim.over(count), learning_rate=rates[name] or config.optim.learning_rate)
    optimizers[name] = optim.make_optimizer(rule, count)
  if "image" in schema.features:
    return adversarial(players, optimizers, game, sample=looking.images(made, schema.class_names))
  task = adversarial(players, optimizers, game, sample=looking.points(made, splits))
  return dataclasses.replace(task, sampled="points")


EXPERIMENT = Definition(
  "gan",
  __doc__,
  Config,
  build,
  Path(__file__).parent,
  judging.make_judge,
  samples="pictures that a run makes, as files",
)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
