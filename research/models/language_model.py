"""Token ids in, logits over the vocabulary out: the transformer as a GPT or a BERT.

Axes: B batch, L length, D width, V vocabulary.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import attention, layers, ngrams
from research.models.attention import Cache
from research.models.transformer import Transformer
from research.models.transformer_config import Config, head_initializer, initializers

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
NEVER = -1e9  # a logit of no probability, and finite: zero times it is zero


class Unscored(NamedTuple):
  """Tokens before their logits, which are softcap(x · kernel + bias): what `losses.token_scores` takes.

  Attributes:
    x_BLD: of the network's dtype.
    kernel_DV: of the same.
    bias_V: float32, or None.
    softcap: s in s·tanh(logits / s); 0: none.
  """

  x_BLD: jax.Array
  kernel_DV: jax.Array
  bias_V: jax.Array | None
  softcap: float


class LanguageModel(nn.Module):
  """Logits for each position: of the next token with a causal `config`, of the token itself (BERT) with another.

  Attributes:
    config: of the stack; `rotary` there is what positions="rotary" means.
    vocabulary: V.
    context: the longest input, for learned positions.
    positions: one of POSITIONS; learned and sinusoidal ones are added to the embeddings.
    token_types: BERT's sentence A and B: how many kinds of token there are; 0: none.
    embedding_norm: normalise the sum of embeddings (BERT).
    transform: a dense layer, its nonlinearity and a norm before the head (BERT's masked-language head).
    tied: the head is the embedding's transpose (Press and Wolf 2017). Under maximal update too: table 8 gives both the
      same initialisation and the same steps, and divides the logits.
    head_bias: a bias of V values.
    logit_softcap: s·tanh(logits / s); 0: none.
    ngrams: lengths of n-grams whose embeddings are added to a token's; (): none.
    ngram_rows: of the table of each length.
    unused: how many of the last tokens are none and have no probability: rows that make V divide.
  """

  config: Config
  vocabulary: int
  context: int
  positions: str = "learned"
  token_types: int = 0
  embedding_norm: bool = False
  transform: bool = False
  tied: bool = True
  head_bias: bool = False
  logit_softcap: float = 0.0
  ngrams: tuple[int, ...] = ()
  ngram_rows: int = 16_384
  unused: int = 0

  def setup(self):
    config = self.config
    kernel_init, _ = initializers(config)
    normal = nn.initializers.normal(0.02)
    embedding = functools.partial(nn.Embed, features=config.width, dtype=config.dtype, param_dtype=jnp.float32)
    named = nn.with_logical_partitioning
    self.embed = embedding(self.vocabulary, embedding_init=named(normal, ("vocab", "embed")))
    if self.positions == "learned":
      self.position_embed = embedding(self.context, embedding_init=named(normal, (None, "embed")))
    if self.ngrams:
      self.ngram_embed = ngrams.NgramEmbedding(self.ngrams, self.ngram_rows, config.width, config.dtype)
    if self.token_types:
      self.type_embed = embedding(self.token_types, embedding_init=named(normal, (None, "embed")))
    norm = functools.partial(layers.Norm, config.norm, config.dtype, epsilon=config.norm_epsilon)
    if self.embedding_norm:
      self.embed_norm = norm()
    self.dropout = layers.Dropout(config.dropout)
    self.transformer = Transformer(config)
    if self.transform:
      self.transform_dense = layers.dense(config.width, ("embed", "mlp"), dtype=config.dtype, kernel_init=kernel_init)
      self.transform_norm = norm()
    if not self.tied:
      self.head = layers.dense(
        self.vocabulary,
        ("embed", "vocab"),
        use_bias=False,
        dtype=config.dtype,
        kernel_init=head_initializer(config),
      )
    if self.head_bias:
      self.head_offset = self.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (self.vocabulary,))

  def __call__(
    self,
    tokens_BL: jax.Array,
    *,
    train: bool,
    positions_BL: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, Cache | None, Mapping[str, jax.Array]]:
    """int32 (B, L) → (logits_BLV float32, cache, statistics), as `Transformer` has them."""
    x_BLD, cache, statistics = self.hidden(
      tokens_BL, train=train, positions_BL=positions_BL, segments_BL=segments_BL, types_BL=types_BL, cache=cache
    )
    return self.logits(x_BLD), cache, statistics

  def hidden(self, tokens_BL, *, train, positions_BL=None, segments_BL=None, types_BL=None, cache=None):
    """The same up to the last block's values, x_BLD."""
    config = self.config
    batch, length = tokens_BL.shape
    given_BL = positions_BL
    if positions_BL is None:
      positions_BL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    x_BLD = self.embed(tokens_BL)
    remembered = {}
    if self.ngrams:
      tokens_BS, places_BL = tokens_BL, jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
      if cache is not None:
        tokens_BS, places_BL = attention.write(cache["tokens"][0], tokens_BL, positions_BL), positions_BL
        remembered = {"tokens": tokens_BS[None]}
      x_BLD = x_BLD + self.ngram_embed(ngrams.preceding(tokens_BS, places_BL, max(self.ngrams), segments_BL))
    if self.positions == "learned":
      x_BLD = x_BLD + self.position_embed(positions_BL)
    if self.positions == "sinusoidal":
      x_BLD = x_BLD + sinusoids(positions_BL, config.width).astype(x_BLD.dtype)
    if self.token_types:
      x_BLD = x_BLD + self.type_embed(jnp.zeros_like(tokens_BL) if types_BL is None else types_BL)
    if self.embedding_norm:
      x_BLD = self.embed_norm(x_BLD, train=train)
    x_BLD = self.dropout(x_BLD, train=train)
    if cache is not None:
      cache = {name: cache[name] for name in ("key", "value")}
    x_BLD, cache, statistics = self.transformer(
      x_BLD, train=train, positions_BL=given_BL, segments_BL=segments_BL, cache=cache
    )
    return x_BLD, None if cache is None else {**cache, **remembered}, statistics

  def empty_cache(self, batch: int, length: int) -> Cache:
    """For `length` positions of each text: keys and values, and where n-grams are embedded "tokens" (1, B, S)."""
    tokens = {"tokens": jnp.zeros((1, batch, length), jnp.int32)} if self.ngrams else {}
    return {**attention.empty_cache(self.config, batch, length), **tokens}

  def unscored(
    self, tokens_BL: jax.Array, *, train: bool, segments_BL: jax.Array | None = None
  ) -> tuple[Unscored, Mapping[str, jax.Array]]:
    """(what the loss is made of, statistics); for a long batch and a large vocabulary logits are too many to hold."""
    x_BLD, _, statistics = self.hidden(tokens_BL, train=train, segments_BL=segments_BL)
    return self.before_head(x_BLD), statistics

  def before_head(self, x_BLD: jax.Array) -> Unscored:
    """The last block's values and the head that makes `logits` of them. The parameters have been drawn before."""
    dtype = self.config.dtype
    kernel_DV = self.embed.embedding.T if self.tied else self.head.variables["params"]["kernel"]
    bias_V = self._offsets()
    return Unscored(self._transformed(x_BLD).astype(dtype), kernel_DV.astype(dtype), bias_V, self.logit_softcap)

  def _transformed(self, x_BLD: jax.Array) -> jax.Array:
    """What the head multiplies. Dividing here by maximal update's m lets a tied table be no larger when it is wider."""
    if self.transform:
      activation = layers.activation(self.config.mlp if self.config.mlp in layers.ACTIVATIONS else "gelu")
      x_BLD = self.transform_norm(activation(self.transform_dense(x_BLD)), train=False)
    return x_BLD if self.config.width_multiplier == 1.0 else x_BLD / self.config.width_multiplier

  def _offsets(self) -> jax.Array | None:
    """What is added to every position's logits."""
    bias_V = self.head_offset if self.head_bias else None
    if not self.unused:
      return bias_V
    never_V = jnp.where(jnp.arange(self.vocabulary) < self.vocabulary - self.unused, 0.0, NEVER)
    return never_V if bias_V is None else bias_V + never_V

  def logits(self, x_BLD: jax.Array) -> jax.Array:
    """The last block's values → logits_BLV float32."""
    x_BLD = self._transformed(x_BLD)
    logits_BLV = self.embed.attend(x_BLD) if self.tied else self.head(x_BLD)
    logits_BLV = logits_BLV.astype(jnp.float32)
    if (bias_V := self._offsets()) is not None:
      logits_BLV = logits_BLV + bias_V[None, None]
    if self.logit_softcap:
      logits_BLV = self.logit_softcap * jnp.tanh(logits_BLV / self.logit_softcap)
    return logits_BLV


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
  """Sines in the first half of the width and cosines in the second, of wavelengths 2π to 10000·2π; (B, L, D) float32.

  Vaswani et al. 2017, section 3.5, where sines and cosines alternate: the same values in another order.
  """
  half = width // 2
  frequency = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BL.astype(jnp.float32)[:, :, None] * frequency[None, None]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
