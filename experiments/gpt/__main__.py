"""Train a language model on text: characters, bytes or byte pairs, each predicted from those before it."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp

from experiments import origin
from experiments.command import Definition, main
from experiments.gpt.network import Model, make_network
from experiments.gpt.writing import Prompting, sampler, write
from experiments.interchange import Interchange, tokenizer_files
from experiments.schema import AUGMENTATION, Data, Experiment, flag
from research import optim
from research.data.text import FILE, TextSplits, open_text, without_text
from research.errors import UserError
from research.interchange.family import fields_of
from research.interchange.gpt2 import GPT2
from research.interchange.llama import LLAMA, MISTRAL, QWEN3
from research.language import Weights, language_modelling
from research.models import ngrams
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Text:
  """How text becomes tokens and examples"""

  tokenizer: str = flag(
    "byte", "characters of training, bytes, byte pairs, or that of --init_from", choices=("char", "byte", "bpe", "init")
  )
  vocabulary: int = flag(4096, "bpe: tokens, learned from the training text", low=257)
  packed: bool = flag(False, "no document sees another, or is predicted from it")


@dataclasses.dataclass(frozen=True)
class Loss:
  """What is added to the cross-entropy"""

  z: float = flag(0.0, "weight of the squared logarithm of the softmax's normaliser", low=0.0)
  balance: float = flag(0.01, "weight of the experts' balance", low=0.0)


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  unused: ClassVar = dict.fromkeys(
    (*AUGMENTATION, "data.label_smoothing", "data.target"),
    "is for classifiers; a language model has --text.tokenizer, --loss.z …",
  )

  data: Data = dataclasses.field(
    default_factory=lambda: Data(
      source="python:stdlib", validation_fraction=0.1, test_fraction=0.0, batch_size=16, eval_batch_size=64
    )
  )
  text: Text = dataclasses.field(default_factory=Text)
  model: Model = dataclasses.field(default_factory=Model)
  loss: Loss = dataclasses.field(default_factory=Loss)

  def check(self) -> None:
    super().check()
    self.model.config()
    ngrams.check(self.model.ngrams)
    if self.text.tokenizer == "init" and not self.init_from:
      raise UserError("flags: --text.tokenizer=init is the tokenizer of --init_from, which is not given")


def open_data(config: Config, say, workdir: Path | None) -> TextSplits:
  data, text = config.data, config.text
  return open_text(
    data.source,
    length=config.model.context,
    tokenizer=origin.tokenizer(config, workdir, FILE),
    vocabulary=text.vocabulary,
    packed=text.packed,
    **data.division,
    progress=say,
  )


def open_kept(config: Config, workdir: Path) -> TextSplits | None:
  length, size = config.model.context, config.data.batch_size
  return without_text(workdir, length=length, size=size, packed=config.text.packed)


def build(config: Config, splits: TextSplits, total_steps: int) -> Task:
  tokenizer = splits.tokenizer
  network = make_network(config.model, tokenizer)
  growth = config.model.growth(network, jnp.zeros((1, 1), jnp.int32))
  return language_modelling(
    network,
    optim.make_optimizer(config.optim.over(total_steps), total_steps, growth),
    token_bytes_V=tokenizer.bytes_V,
    weights=Weights(config.loss.z, config.loss.balance),
    micro_batches=config.optim.micro_batches,
    ema_decay=config.optim.ema_decay,
    sample=sampler(network, tokenizer),
  )


EXPERIMENT = Definition(
  "gpt",
  __doc__,
  Config,
  build,
  Path(__file__).parent,
  open_data=open_data,
  samples="text that goes on from a prompt, printed",
  open_kept=open_kept,
  sampling=Prompting,
  generate=write,
  heads=(),
  interchange=Interchange(
    (GPT2, LLAMA, MISTRAL, QWEN3),
    lambda config, splits: fields_of(make_network(config.model, splits.tokenizer)),
    tokenizer_files,
  ),
)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
