"""Train BERT: guess the tokens that were taken out of texts, then classify texts with what that has taught.

--task=pretrain, and --task=classify with --init_from=RUN; without it the same network is trained from scratch.
"""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp

from experiments import origin
from experiments.bert.filling import Filling, fill
from experiments.bert.layouts import beside
from experiments.bert.network import Model, make_network
from experiments.command import Definition, main
from experiments.interchange import Interchange
from experiments.schema import AUGMENTATION, Data, Experiment, flag
from experiments.supervised_task import make_task
from research import optim
from research.data import corpus, labelled_text
from research.data.text import FILE, TextSplits, open_text, without_text
from research.errors import UserError
from research.interchange.bert import BERT, BERT_CLASSIFIER, BERT_ENCODER
from research.interchange.family import fields_of
from research.masked_language import masked_language_modelling
from research.masking import masking_of
from research.models.bert import POOLINGS, mask_id
from research.task import Task


@dataclasses.dataclass(frozen=True)
class Text:
  """How texts become tokens"""

  tokenizer: str = flag(
    "bpe", "what a token is; init: that of --init_from", choices=("bpe", "word", "char", "byte", "init")
  )
  vocabulary: int = flag(4096, "most tokens of bpe and word, learned from the training texts", low=2)
  column: str = flag("", "csv and jsonl with classes: where the text stands; empty: the column of the longest")
  packed: bool = flag(False, "running text: no document sees another")


@dataclasses.dataclass(frozen=True)
class Masks:
  """Pretraining: what is guessed"""

  share: float = flag(0.15, "of a text's tokens", low=0.01, high=0.9)
  whole_words: bool = flag(False, "all tokens of a word or none")


@dataclasses.dataclass(frozen=True)
class Classify:
  """Classifying: from which examples, and how"""

  pooling: str = flag("first", "what the head sees: [CLS], or the mean over the text", choices=POOLINGS)
  labels: int = flag(0, "training examples that are used, each class by its share; 0: all", low=0)
  labels_seed: int = flag(0, "of which these are", low=0, high=2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  unused: ClassVar = dict.fromkeys(AUGMENTATION, "is for images; texts have --model.dropout and --masks.share")

  task: str = flag("pretrain", "what is learned", choices=("pretrain", "classify"))
  data: Data = dataclasses.field(
    default_factory=lambda: Data(source="python:docstrings", validation_fraction=0.1, eval_batch_size=256)
  )
  text: Text = dataclasses.field(default_factory=Text)
  model: Model = dataclasses.field(default_factory=Model)
  masks: Masks = dataclasses.field(default_factory=Masks)
  classify: Classify = dataclasses.field(default_factory=Classify)

  def check(self) -> None:
    super().check()
    self.model.shape()
    if self.model.experts:
      raise UserError("flags: --model.experts is for experiments.gpt, whose loss keeps them balanced")
    if self.text.tokenizer == "init" and not self.init_from:
      raise UserError("flags: --text.tokenizer=init is the tokenizer of --init_from, which is not given")
    if self.task == "pretrain" and self.classify != Classify():
      raise UserError("flags: --classify… belongs to --task=classify")
    if self.task == "pretrain" and self.data.label_smoothing:
      raise UserError("flags: --data.label_smoothing belongs to --task=classify")
    if self.task == "classify" and self.masks != Masks():
      raise UserError("flags: --masks… belongs to --task=pretrain")
    if self.text.packed and not self.reads_running_text:
      raise UserError(f"flags: --text.packed is for running text; in {self.data.source} each text is an example")

  @property
  def reads_running_text(self) -> bool:
    """Whether windows are cut from text:, jsonl: or python:stdlib; of a set with classes each text is an example."""
    scheme, _, rest = self.data.source.partition(":")
    named = self.data.target or self.text.column
    is_set = scheme in labelled_text.SCHEMES and (scheme not in corpus.SCHEMES or rest == "docstrings" or named)
    return self.task == "pretrain" and not is_set


def open_data(config: Config, say, workdir: Path | None) -> TextSplits:
  """Pretraining on a set with classes reads its training texts, and divides it as classifying does."""
  data, text = config.data, config.text
  shared = {
    "length": config.model.length,
    "tokenizer": origin.tokenizer(config, workdir, FILE),
    "vocabulary": text.vocabulary,
    "validation_fraction": data.validation_fraction,
    "test_fraction": data.test_fraction,
    "split_seed": data.split_seed,
    "progress": say,
  }
  if config.reads_running_text:
    return open_text(data.source, **shared, packed=text.packed, ahead=0)
  splits = labelled_text.open_labelled(
    data.source,
    **shared,
    column=text.column,
    target=data.target,
    data_dir=data.dir,
    cache_dir=data.cache_dir,
    labels=config.classify.labels,
    labels_seed=config.classify.labels_seed,
  )
  return splits if config.task == "classify" else labelled_text.without_labels(splits)


def open_kept(config: Config, workdir: Path) -> TextSplits | None:
  """A classifier's classes stand in its data alone."""
  if config.task == "classify":
    return None
  length, size = config.model.length, config.data.batch_size
  return without_text(workdir, length=length, size=size, packed=config.text.packed, ahead=0)


def build(config: Config, splits: TextSplits, total_steps: int) -> Task:
  network, place = make_network(config, splits), jnp.zeros((1, 1), jnp.int32)
  if config.task == "classify":
    growth = config.model.growth(network, place)
    return make_task(config, splits, total_steps, network, macro_f1=True, growth=growth)
  masks = config.masks
  return masked_language_modelling(
    network,
    optim.make_optimizer(
      config.optim.over(total_steps), total_steps, config.model.growth(network, place, place, method="guesses")
    ),
    masking_of(splits.tokenizer, mask_id(network.vocabulary), share=masks.share, whole_words=masks.whole_words),
    micro_batches=config.optim.micro_batches,
    ema_decay=config.optim.ema_decay,
  )


EXPERIMENT = Definition(
  "bert",
  __doc__,
  Config,
  build,
  Path(__file__).parent,
  open_data=open_data,
  samples="the likeliest tokens for each [MASK], printed",
  open_kept=open_kept,
  sampling=Filling,
  generate=fill,
  heads=("transform_dense", "transform_norm", "head_bias", "pooler", "head"),
  interchange=Interchange(
    (BERT, BERT_CLASSIFIER, BERT_ENCODER), lambda config, splits: fields_of(make_network(config, splits)), beside
  ),
)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
