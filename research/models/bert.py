"""BERT (Devlin et al. 2019): the language model that sees both ways, guessing tokens, and classifying texts.

A vocabulary of V has V − SPECIALS tokens of a tokenizer; behind them stand [MASK] and [CLS]. Texts come without either:
[CLS] is put before each here, [MASK] by research.masking. What both tasks have in common has the same names in both, so
that one begins with what the other has learned. Axes: B batch, L tokens of a text, T = L + 1 with [CLS], K places that
are guessed, D width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers
from research.models.language_model import LanguageModel, Unscored
from research.models.text import mean
from research.models.transformer_config import head_initializer, initializers

SPECIALS = 2
POOLINGS = ("first", "mean")


def mask_id(vocabulary: int) -> int:
  """[MASK] of a vocabulary of V."""
  return vocabulary - 2


def first_id(vocabulary: int) -> int:
  """[CLS] of a vocabulary of V."""
  return vocabulary - 1


class Bert(LanguageModel):
  """A `LanguageModel` whose `context` is T, the longest text and [CLS]."""

  def encoded(self, tokens_BL: jax.Array, *, train: bool, segments_BL: jax.Array | None = None) -> jax.Array:
    """(B, L) int32, negative where there is no text → the last block's values of [CLS] and of the text, x_BTD.

    Args:
      tokens_BL: the texts.
      train: whether dropout drops.
      segments_BL: int32, documents that do not see each other; [CLS] belongs to the first.
    """
    batch = tokens_BL.shape[0]
    segments_BL = jnp.zeros_like(tokens_BL) if segments_BL is None else segments_BL
    segments_BL = jnp.where(tokens_BL >= 0, segments_BL, -1)
    first_B1 = jnp.full((batch, 1), first_id(self.vocabulary), jnp.int32)
    tokens_BT = jnp.concatenate([first_B1, jnp.maximum(tokens_BL, 0)], axis=1)
    segments_BT = jnp.concatenate([jnp.maximum(segments_BL[:, :1], 0), segments_BL], axis=1)
    x_BTD, *_ = self.hidden(tokens_BT, train=train, segments_BL=segments_BT)
    return x_BTD

  def guesses(
    self, tokens_BL: jax.Array, places_BK: jax.Array, *, train: bool, segments_BL: jax.Array | None = None
  ) -> jax.Array:
    """Logits of what stands at `places_BK`, int32 in [0, L), of each text: (B, K, V) float32. No other place costs a
    product with the vocabulary."""
    return self.logits(self._at(tokens_BL, places_BK, train, segments_BL))

  def unscored_guesses(
    self, tokens_BL: jax.Array, places_BK: jax.Array, *, train: bool, segments_BL: jax.Array | None = None
  ) -> Unscored:
    """The same before their logits, x of (B, K, D)."""
    return self.before_head(self._at(tokens_BL, places_BK, train, segments_BL))

  def _at(self, tokens_BL, places_BK, train, segments_BL) -> jax.Array:
    x_BLD = self.encoded(tokens_BL, train=train, segments_BL=segments_BL)[:, 1:]
    # A product with ones and zeros, whose gradient is another one; that of a gather would be a scatter.
    is_place_BKL = jax.lax.broadcasted_iota(jnp.int32, (*places_BK.shape, x_BLD.shape[1]), 2) == places_BK[..., None]
    return jnp.einsum("bkl,bld->bkd", is_place_BKL.astype(x_BLD.dtype), x_BLD)


class TextClassifier(Bert):
  """(B, L) tokens → logits_BC float32.

  Attributes:
    classes: C.
    pooling: what the head sees: "first", [CLS] through a dense layer and tanh (Devlin et al. 2019), or "mean" over the
      text.
  """

  classes: int = 2
  pooling: str = "first"

  def setup(self):
    super().setup()
    config = self.config
    kernel_init, _ = initializers(config)
    if self.pooling == "first":
      self.pooler = layers.dense(config.width, ("embed", "mlp"), dtype=config.dtype, kernel_init=kernel_init)
    self.head = layers.dense(
      self.classes, ("embed", "classes"), dtype=config.dtype, kernel_init=head_initializer(config)
    )

  def __call__(self, tokens_BL: jax.Array, *, train: bool) -> jax.Array:
    x_BTD = self.encoded(tokens_BL, train=train)
    x_BD = nn.tanh(self.pooler(x_BTD[:, 0])) if self.pooling == "first" else mean(x_BTD[:, 1:], tokens_BL >= 0)
    x_BD = self.dropout(x_BD, train=train)
    if self.config.width_multiplier != 1.0:
      x_BD = x_BD / self.config.width_multiplier
    return self.head(x_BD).astype(jnp.float32)
