"""BERT's two networks from the flags: one that guesses tokens, one that classifies texts. Both read texts alike."""

import dataclasses
from typing import Any

from experiments.schema import flag
from experiments.supervised_task import outputs
from experiments.transformer_flags import Transformer
from research.data.tokenizers import Tokenizer
from research.models.bert import SPECIALS, Bert, TextClassifier
from research.models.language_model import POSITIONS
from research.models.transformer_config import Config


@dataclasses.dataclass(frozen=True)
class Model(Transformer):
  """The network"""

  mlp: str = flag("gelu_exact", "nonlinearity of the MLPs", choices=("gelu", "gelu_exact", "relu", "swiglu"))
  norm_first: bool = flag(False, "normalise what a branch reads; no: the sum that it gives")
  norm_epsilon: float = flag(1e-12, "what it adds to the variance", low=0.0)
  dropout: float = flag(0.1, "of attention weights, branches and what a classifier's head sees", low=0.0, high=0.99)
  context: int = flag(128, "tokens that it sees at once, [CLS] before the text included", low=2)
  positions: str = flag("learned", "how places are told", choices=POSITIONS)
  token_types: int = flag(0, "kinds of token that there are embeddings of, as in a BERT of pairs; 0: none", low=0)

  @property
  def length(self) -> int:
    """Tokens of a text that are looked at."""
    return self.context - 1

  def shape(self) -> Config:
    """The stack. Raises UserError where the flags do not fit together."""
    return self.config(rotary=self.positions == "rotary", causal=False, initializer="bert")


def make_guesser(model: Model, tokenizer: Tokenizer) -> Bert:
  """With the head of Devlin et al.'s code: a dense layer, a norm, the embedding's transpose and a bias."""
  return Bert(**_shared(model, tokenizer), transform=True, head_bias=True)


def make_classifier(model: Model, tokenizer: Tokenizer, classes: int, pooling: str) -> TextClassifier:
  return TextClassifier(**_shared(model, tokenizer), classes=classes, pooling=pooling)


def make_network(config: Any, splits: Any) -> Bert:
  """The one of `config`'s task. Raises UserError where the flags do not fit together."""
  if config.task == "pretrain":
    return make_guesser(config.model, splits.tokenizer)
  return make_classifier(config.model, splits.tokenizer, outputs(splits), config.classify.pooling)


def _shared(model: Model, tokenizer: Tokenizer) -> dict:
  return {
    "config": model.shape(),
    "vocabulary": tokenizer.size + SPECIALS,
    "context": model.context,
    "positions": model.positions,
    "token_types": model.token_types,
    "embedding_norm": True,
  }
