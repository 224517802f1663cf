"""One dense layer: linear regression, logistic regression and softmax regression. It applies no link function."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers


class Linear(nn.Module):
  """y = xW + b of the flattened input.

  The parameters start at zero: the problem is convex, so the start does not matter, and runs with different seeds then
  differ by their data alone.

  Attributes:
    outputs: 1 for regression and for binary logistic regression, the number of classes for softmax regression.
    squeeze: return (B,) instead of (B, 1).
  """

  outputs: int
  squeeze: bool = False
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """(B, …) float → predictions or logits (B, outputs), or (B,) with `squeeze`; float32."""
    del train
    x_BD = x.reshape(x.shape[0], -1)
    head = layers.dense(
      self.outputs, ("features", "classes"), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head"
    )
    return layers.outputs(head(x_BD), self.squeeze)
