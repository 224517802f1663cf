"""The plain convolutional network: blocks of convolutions and a 2×2 pooling, then a dense head (LeCun et al. 1998)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models import layers, resampling


class CNN(nn.Module):
  """For each width a block of `convs_per_block` × (convolution → norm → activation) and a 2×2 pooling; then the head.

  Attributes:
    outputs: number of classes.
    widths: channels of each block.
    kernel: side of the convolutions, which keep the image's size.
    convs_per_block: convolutions before each pooling.
    separable: every convolution but the first is one of each channel by itself and then a 1×1 across channels, each
      with norm and activation (Howard et al. 2017, MobileNets, section 3.1): an eighth of the work for a kernel of 3.
    pooling: max or avg.
    norm: none, batch or group.
    activation: relu, gelu, tanh or sigmoid.
    conv_dropout: dropout after each pooling.
    head_widths: hidden dense layers between the flattened image and the logits.
    dropout: dropout after each hidden dense layer (after flattening where there is none).
    dtype: what is computed in; parameters, normalisation and outputs stay float32.
  """

  outputs: int
  widths: tuple[int, ...] = (32, 64)
  kernel: int = 3
  convs_per_block: int = 1
  separable: bool = False
  pooling: str = "max"
  norm: str = "none"
  activation: str = "relu"
  conv_dropout: float = 0.0
  head_widths: tuple[int, ...] = (128,)
  dropout: float = 0.0
  dtype: layers.DType = jnp.float32

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError where an image (H, W, C) is too small: a kernel larger than it, or nothing left to pool."""
    if len(image_shape) != 3:
      raise UserError(f"model: a CNN wants images of shape (height, width, channels), not {tuple(image_shape)}")
    height, width = image_shape[:2]
    for block in range(len(self.widths)):
      size = f"{height}x{width}"
      where = "the image" if block == 0 else f"what {block} poolings leave of the image"
      if self.kernel > min(height, width):
        raise UserError(
          f"model: a kernel of {self.kernel} is larger than {where} ({size}); use a smaller kernel or fewer widths"
        )
      height, width = height // 2, width // 2
      if min(height, width) == 0:
        raise UserError(f"model: {where} ({size}) is too small to pool; "
                        + (f"use at most {block} widths" if block else "a multilayer perceptron can take it"))

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
    """Images (B, H, W, C) float → logits (B, outputs) float32. Raises UserError as `check` does."""
    self.check(x_BHWC.shape[1:])
    activation = layers.activation(self.activation)
    kernel_init = layers.activation_initializer(self.activation)
    x_BHWC = x_BHWC.astype(self.dtype)
    # A normalisation brings its own bias.
    options = {"use_bias": self.norm == "none", "dtype": self.dtype, "kernel_init": kernel_init}
    for i, width in enumerate(self.widths):
      for j in range(self.convs_per_block):
        first, kernel = i == j == 0, self.kernel
        if self.separable and not first:
          depthwise = layers.depthwise_conv(x_BHWC.shape[-1], kernel, **options, name=f"depthwise_{i}_{j}")
          norm = layers.Norm(self.norm, self.dtype, name=f"depthwise_norm_{i}_{j}")
          x_BHWC, kernel = activation(norm(depthwise(x_BHWC), train=train)), 1
        input_axis = "features" if first else "conv_in"
        conv = layers.conv(width, kernel, input_axis=input_axis, **options, name=f"conv_{i}_{j}")
        x_BHWC = activation(layers.Norm(self.norm, self.dtype, name=f"norm_{i}_{j}")(conv(x_BHWC), train=train))
      x_BHWC = layers.Dropout(self.conv_dropout)(resampling.pool_2x2(x_BHWC, self.pooling), train=train)
    x_BD = x_BHWC.reshape(x_BHWC.shape[0], -1)
    if not self.head_widths:
      x_BD = layers.Dropout(self.dropout)(x_BD, train=train)
    for i, width in enumerate(self.head_widths):
      hidden = layers.dense(width, ("embed", "mlp"), dtype=self.dtype, kernel_init=kernel_init, name=f"hidden_{i}")
      x_BD = layers.Dropout(self.dropout)(activation(hidden(x_BD)), train=train)
    head = layers.dense(self.outputs, ("embed", "classes"), dtype=self.dtype, name="head")
    return layers.outputs(head(x_BD), squeeze=False)
