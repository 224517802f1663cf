"""Train a classifier of texts: averaged embeddings, a convolutional network, LSTM, GRU, or a small transformer."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

import flax.linen as nn

from experiments import origin
from experiments.command import Definition, main
from experiments.schema import AUGMENTATION, Data, Experiment, flag
from experiments.supervised_task import make_task, outputs
from research.data.labelled_text import open_labelled
from research.data.text import FILE, TextSplits
from research.errors import UserError
from research.models.text import Bag, Recurrent, TextCNN, TextTransformer
from research.models.transformer_config import Config as Shape
from research.task import Task

NAMES = ("bag", "cnn", "lstm", "gru", "transformer")


@dataclasses.dataclass(frozen=True)
class Model:
  """The network"""

  name: str = flag("cnn", "architecture", choices=NAMES)
  width: int = flag(128, "width of the embeddings; of all layers of a transformer", low=1)
  hidden_widths: tuple[int, ...] = flag((128,), "bag: hidden widths of the MLP")
  windows: tuple[int, ...] = flag((3, 4, 5), "cnn: sizes of the windows, in tokens")
  filters: int = flag(100, "cnn: filters of each size", low=1)
  layers: int = flag(1, "lstm, gru, transformer: layers", low=1)
  hidden: int = flag(128, "lstm, gru: width of the state", low=1)
  bidirectional: bool = flag(True, "lstm, gru: read from both ends")
  heads: int = flag(4, "transformer: attention heads", low=1)
  dropout: float = flag(0.0, "of embeddings and of what the head sees", low=0.0, high=0.99)
  dtype: str = flag("float32", "what is computed in; parameters stay float32", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Text:
  """How a text becomes tokens"""

  tokenizer: str = flag("word", "what a token is", choices=("word", "char", "byte", "bpe"))
  vocabulary: int = flag(20_000, "most tokens of word and bpe, the commonest in training", low=2)
  length: int = flag(100, "tokens of a text that are looked at, from its beginning", low=1)
  column: str = flag("", "csv and jsonl: where the text stands; empty: the column of the longest")


@dataclasses.dataclass(frozen=True)
class Config(Experiment):
  """Every flag of this experiment."""

  unused: ClassVar = dict.fromkeys(
    AUGMENTATION, "is for images; texts have --model.dropout and --data.label_smoothing"
  )

  data: Data = dataclasses.field(default_factory=lambda: Data(source="python:docstrings"))
  text: Text = dataclasses.field(default_factory=Text)
  model: Model = dataclasses.field(default_factory=Model)

  def check(self) -> None:
    super().check()
    if self.model.name == "transformer":
      _shape(self.model).check()
    if self.model.name == "cnn" and not self.model.windows:
      raise UserError("flags: --model.windows is empty; a convolutional network has at least one size")


def open_data(config: Config, say, workdir: Path | None) -> TextSplits:
  data, text = config.data, config.text
  return open_labelled(
    data.source,
    length=text.length,
    tokenizer=origin.tokenizer(config, workdir, FILE),
    vocabulary=text.vocabulary,
    column=text.column,
    target=data.target,
    data_dir=data.dir,
    cache_dir=data.cache_dir,
    **data.division,
    progress=say,
  )


def build(config: Config, splits: TextSplits, total_steps: int) -> Task:
  network = make_network(config.model, splits.tokenizer.size, outputs(splits))
  return make_task(config, splits, total_steps, network, macro_f1=True)


def make_network(model: Model, vocabulary: int, classes: int) -> nn.Module:
  """The architecture that the flags name."""
  same = {
    "vocabulary": vocabulary, "classes": classes, "width": model.width, "dropout": model.dropout, "dtype": model.dtype
  }  # fmt: skip
  if model.name == "bag":
    return Bag(**same, widths=model.hidden_widths)
  if model.name == "cnn":
    return TextCNN(**same, windows=model.windows, filters=model.filters)
  if model.name == "transformer":
    return TextTransformer(**same, config=_shape(model))
  return Recurrent(**same, cell=model.name, depth=model.layers, hidden=model.hidden, bidirectional=model.bidirectional)


def _shape(model: Model) -> Shape:
  return Shape(
    layers=model.layers,
    width=model.width,
    heads=model.heads,
    rotary=True,
    causal=False,
    dropout=model.dropout,
    dtype=model.dtype,
  )


EXPERIMENT = Definition("text", __doc__, Config, build, Path(__file__).parent, open_data=open_data)

if __name__ == "__main__":
  sys.exit(main(EXPERIMENT))
