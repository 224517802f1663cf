"""Classifiers of token sequences: averaged embeddings, a convolutional network, recurrent networks, a transformer.

All take (B, L) int32 tokens, negative where a text has ended, and give logits (B, classes) float32. Axes: B batch,
L length, D width of an embedding, F features.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.kernels.max_over_time import greatest
from research.models import layers
from research.models.transformer import Transformer
from research.models.transformer_config import Config


class Embedded(nn.Module):
  """What the four share: tokens → vectors, dropout, and a head.

  Attributes:
    vocabulary: number of tokens.
    classes: width of the head.
    width: D.
    dropout: of the embeddings and of what the head sees.
    dtype: what is computed in; parameters stay float32.
  """

  vocabulary: int
  classes: int
  width: int = 128
  dropout: float = 0.0
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, tokens_BL: jax.Array, *, train: bool) -> jax.Array:
    init = nn.with_logical_partitioning(nn.initializers.normal(0.1), ("vocab", "embed"))
    embed = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="embed")
    real_BL = tokens_BL >= 0
    x_BLD = embed(jnp.maximum(tokens_BL, 0))
    x_BLD = layers.Dropout(self.dropout, name="embed_dropout")(x_BLD, train=train)
    features_BF = self.features(x_BLD, real_BL, train=train)
    features_BF = layers.Dropout(self.dropout, name="dropout")(features_BF, train=train)
    head = layers.dense(self.classes, ("embed", "classes"), dtype=self.dtype, name="head")
    return head(features_BF).astype(jnp.float32)

  def features(self, x_BLD: jax.Array, real_BL: jax.Array, *, train: bool) -> jax.Array:
    """(B, L, D) and which places are text → (B, F)."""
    raise NotImplementedError


class Bag(Embedded):
  """The mean of the embeddings and an MLP: order does not count (Iyyer et al. 2015).

  Attributes:
    widths: of the MLP's hidden layers.
  """

  widths: tuple[int, ...] = (128,)

  @nn.compact
  def features(self, x_BLD: jax.Array, real_BL: jax.Array, *, train: bool) -> jax.Array:
    x_BF = mean(x_BLD, real_BL)
    for i, width in enumerate(self.widths):
      hidden = layers.dense(width, ("embed", "mlp"), kernel_init=layers.he_normal, dtype=self.dtype, name=f"hidden_{i}")
      x_BF = nn.relu(hidden(x_BF))
    return x_BF


class TextCNN(Embedded):
  """Convolutions over windows of several sizes, the greatest value of each filter over the text (Kim 2014).

  Attributes:
    windows: sizes of the windows, in tokens.
    filters: of each size.
  """

  windows: tuple[int, ...] = (3, 4, 5)
  filters: int = 100

  @nn.compact
  def features(self, x_BLD: jax.Array, real_BL: jax.Array, *, train: bool) -> jax.Array:
    x_BLD = jnp.where(real_BL[..., None], x_BLD, jnp.zeros((), x_BLD.dtype))
    # All windows in one convolution, the smaller ones with zeros around them: for 3, 4 and 5 words a quarter more to
    # multiply, but a CPU is quicker with one product of 300 columns than with three of 100, and copies x once.
    widest, kernels, biases = max(self.windows), [], []
    for window in self.windows:
      kernel_KDF, bias_F = Filters(window, self.filters, name=f"window_{window}")(x_BLD.shape[-1])
      before = (widest - 1) // 2 - (window - 1) // 2
      kernels.append(jnp.pad(kernel_KDF, ((before, widest - window - before), (0, 0), (0, 0))))
      biases.append(bias_F)
    kernel_KDF = jnp.concatenate(kernels, axis=-1).astype(self.dtype)
    greatest_BF = greatest(x_BLD, kernel_KDF, real_BL)
    # A bias and a rectifier change no order, so they may come after the greatest value.
    return nn.relu(greatest_BF + jnp.concatenate(biases).astype(self.dtype)[None])


class Filters(nn.Module):
  """The parameters of a dense layer over a window's words side by side: kernel (window·D, F) and bias (F,).

  Attributes:
    window: its size, in tokens.
    filters: F.
  """

  window: int
  filters: int

  @nn.compact
  def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
    """D → (kernel (window, D, F), bias (F,)), float32."""
    named = nn.with_logical_partitioning
    shape = (self.window * width, self.filters)
    kernel = self.param("kernel", named(layers.he_normal, ("embed", "mlp")), shape, jnp.float32)
    bias_F = self.param("bias", named(nn.initializers.zeros, ("mlp",)), shape[1:], jnp.float32)
    return kernel.reshape(self.window, width, self.filters), bias_F


class Recurrent(Embedded):
  """LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho et al. 2014) layers, and the mean over the text of the last's.

  Attributes:
    cell: "lstm" or "gru".
    depth: layers.
    hidden: width of the state, in each direction.
    bidirectional: whether each layer reads the text from both ends.
  """

  cell: str = "lstm"
  depth: int = 1
  hidden: int = 128
  bidirectional: bool = True

  @nn.compact
  def features(self, x_BLD: jax.Array, real_BL: jax.Array, *, train: bool) -> jax.Array:
    length_B = real_BL.sum(axis=1)
    for i in range(self.depth):
      x_BLD = recurrent_layer(
        x_BLD, length_B, cell=self.cell, hidden=self.hidden, bidirectional=self.bidirectional, dtype=self.dtype,
        name=f"{self.cell}_{i}",
      )  # fmt: skip
      x_BLD = layers.Dropout(self.dropout, name=f"dropout_{i}")(x_BLD, train=train)
    return mean(x_BLD, real_BL)


class TextTransformer(Embedded):
  """The transformer of all the others, bidirectional, and the mean over the text of its values.

  Attributes:
    config: of the stack; its width is D.
  """

  config: Config = dataclasses.field(default_factory=Config)

  @nn.compact
  def features(self, x_BLD: jax.Array, real_BL: jax.Array, *, train: bool) -> jax.Array:
    segments_BL = jnp.where(real_BL, 0, -1).astype(jnp.int32)
    x_BLD, *_ = Transformer(self.config, name="transformer")(x_BLD, train=train, segments_BL=segments_BL)
    return mean(x_BLD, real_BL)


def recurrent_layer(
  x_BLD: jax.Array,
  length_B: jax.Array | None,
  *,
  cell: str,
  hidden: int,
  bidirectional: bool,
  dtype: layers.DType,
  name: str,
  input_axis: str = "embed",
) -> jax.Array:
  """(B, L, D) → (B, L, hidden), or twice that from both ends; called within a module's compact method.

  `length_B` says where each row ends; None: all are L long.
  """
  make = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[cell]

  def network(direction: str, reverse: bool) -> Callable[[jax.Array], jax.Array]:
    named = nn.with_logical_partitioning
    unit = make(
      hidden,
      dtype=dtype,
      param_dtype=jnp.float32,
      kernel_init=named(layers.glorot_uniform, (input_axis, "mlp")),
      recurrent_kernel_init=named(nn.initializers.orthogonal(), ("mlp", "mlp")),
      bias_init=named(nn.initializers.zeros, ("mlp",)),
      name=f"{name}_{direction}_cell",
    )
    # Zeros in the compute dtype: flax would carry parameters' float32 along with bfloat16.
    zeros = unit.initialize_carry(jax.random.key(0), (x_BLD.shape[0], x_BLD.shape[2]))
    carry = jax.tree.map(lambda array: array.astype(dtype), zeros)
    rnn = nn.RNN(unit, reverse=reverse, keep_order=True, name=f"{name}_{direction}")
    return functools.partial(rnn, seq_lengths=length_B, initial_carry=carry)

  made = [network("forward", False)(x_BLD)]
  if bidirectional:
    made.append(network("backward", True)(x_BLD))
  return jnp.concatenate(made, axis=-1)


def mean(x_BLD: jax.Array, real_BL: jax.Array) -> jax.Array:
  """Over the places that are text; zero where there is none. (B, D)."""
  total_BD = jnp.where(real_BL[..., None], x_BLD, jnp.zeros((), x_BLD.dtype)).sum(axis=1)
  return total_BD / jnp.maximum(real_BL.sum(axis=1, keepdims=True), 1).astype(x_BLD.dtype)
