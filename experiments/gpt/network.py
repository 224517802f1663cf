"""A language model from its flags and the tokenizer."""

import dataclasses

from experiments.schema import flag
from experiments.transformer_flags import Transformer
from research.data.tokenizers import Tokenizer
from research.errors import UserError
from research.models.language_model import POSITIONS, LanguageModel


@dataclasses.dataclass(frozen=True)
class Model(Transformer):
  """The network"""

  context: int = flag(256, "tokens that it sees at once", low=1)
  positions: str = flag("learned", "how places are told", choices=POSITIONS)
  ngrams: tuple[int, ...] = flag((), "lengths of n-grams whose hashed embeddings are added, as in 2,3,4; empty: none")
  ngram_rows: int = flag(16_384, "rows of each length's table", low=1)
  tied: bool = flag(True, "the head is the embedding's transpose")
  embedding_rows: int = flag(0, "rows of the embedding, where they are to be more than the tokenizer's tokens", low=0)
  logit_softcap: float = flag(0.0, "bound of the logits, by tanh; 0: none", low=0.0)


def make_network(model: Model, tokenizer: Tokenizer) -> LanguageModel:
  """Raises UserError where the flags do not fit together."""
  if model.embedding_rows and model.embedding_rows < tokenizer.size:
    raise UserError(
      f"flags: --model.embedding_rows={model.embedding_rows} is less than the tokenizer's {tokenizer.size} tokens;"
      f" {-(-tokenizer.size // 128) * 128} would do"
    )
  return LanguageModel(
    model.config(rotary=model.positions == "rotary"),
    vocabulary=model.embedding_rows or tokenizer.size,
    unused=max(model.embedding_rows - tokenizer.size, 0),
    context=model.context,
    positions=model.positions,
    ngrams=model.ngrams,
    ngram_rows=model.ngram_rows,
    tied=model.tied,
    logit_softcap=model.logit_softcap,
  )
