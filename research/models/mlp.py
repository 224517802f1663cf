"""The multilayer perceptron: dense layers with an activation, and optionally normalisation and dropout between them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers


class MLP(nn.Module):
  """Hidden layers of `widths`, each dense → norm → activation → dropout, and a linear head on the flattened input.

  Attributes:
    outputs: width of the head: classes, or 1 for regression.
    widths: hidden widths; empty makes it a linear model.
    activation: relu, gelu, tanh or sigmoid.
    norm: none, batch or layer.
    dropout: probability of zeroing a hidden value in training; needs the rng "dropout".
    squeeze: return (B,) instead of (B, 1).
    dtype: what is computed in; parameters, normalisation and outputs stay float32.
  """

  outputs: int
  widths: tuple[int, ...] = (128,)
  activation: str = "relu"
  norm: str = "none"
  dropout: float = 0.0
  squeeze: bool = False
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, …) float → predictions or logits (B, outputs), or (B,) with `squeeze`; float32."""
    activation = layers.activation(self.activation)
    kernel_init = layers.activation_initializer(self.activation)
    x_BD = x.reshape(x.shape[0], -1).astype(self.dtype)
    input_axis = "features"
    for i, width in enumerate(self.widths):
      hidden = layers.dense(
        width,
        (input_axis, "mlp"),
        dtype=self.dtype,
        kernel_init=kernel_init,
        use_bias=self.norm == "none",  # a normalisation brings its own
        name=f"hidden_{i}",
      )
      x_BD = layers.Norm(self.norm, self.dtype, name=f"norm_{i}")(hidden(x_BD), train=train)
      x_BD = layers.Dropout(self.dropout)(activation(x_BD), train=train)
      input_axis = "embed"
    head = layers.dense(self.outputs, (input_axis, "classes"), dtype=self.dtype, name="head")
    return layers.outputs(head(x_BD), self.squeeze)
