"""Residual networks: ResNet-18 and ResNet-50 (He et al. 2016), with a stem for small or for large images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.kernels.max_pool import max_pool
from research.models import layers

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}

# He et al. 2015, section 2.2, with fan-out, as the authors' and PyTorch's ResNets have it.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
  """A stem, four stages of residual blocks that halve the image and double the channels, a global mean and a head.

  The scale of each block's last normalisation starts at zero, so that every block starts as the identity
  (Goyal et al. 2017, section 5.1). ResNet-50 strides in its 3×3 convolution, as PyTorch does ("v1.5").

  Attributes:
    outputs: number of classes.
    depth: 18 (two 3×3 convolutions a block) or 50 (1×1, 3×3, 1×1 with four times the channels).
    small_images: a 3×3 stem without striding or pooling, for CIFAR's 32×32 (He et al. 2016, section 4.2); otherwise
      the 7×7 stem with stride 2 and a 3×3 max-pooling for ImageNet's 224×224.
    width: channels of the first stage.
    norm: batch or group.
    dtype: what is computed in; parameters, normalisation and outputs stay float32.
  """

  outputs: int
  depth: int = 18
  small_images: bool = True
  width: int = 64
  norm: str = "batch"
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
    """Images (B, H, W, C) float → logits (B, outputs) float32. Raises UserError for another depth or norm."""
    if self.depth not in STAGES:
      raise UserError(f"model: no ResNet of depth {self.depth} ({', '.join(map(str, STAGES))})")
    if self.norm not in ("batch", "group"):
      raise UserError(f"model: a ResNet's norm is batch or group, not {self.norm!r}")
    block = Block if self.depth == 18 else Bottleneck
    x_BHWC = x_BHWC.astype(self.dtype)
    if self.small_images:
      x_BHWC = _conv(self.width, 3, 1, self.dtype, "stem", input_axis="features")(x_BHWC)
    else:
      x_BHWC = _conv(self.width, 7, 2, self.dtype, "stem", input_axis="features")(x_BHWC)
    x_BHWC = nn.relu(layers.Norm(self.norm, self.dtype, name="stem_norm")(x_BHWC, train=train))
    if not self.small_images:
      x_BHWC = max_pool(x_BHWC, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, blocks in enumerate(STAGES[self.depth]):
      for i in range(blocks):
        strides = 2 if stage > 0 and i == 0 else 1
        name = f"stage_{stage}_block_{i}"
        x_BHWC = block(self.width * 2**stage, strides, self.norm, self.dtype, name=name)(x_BHWC, train=train)
    x_BC = x_BHWC.astype(jnp.float32).mean(axis=(1, 2))
    head = layers.dense(self.outputs, ("embed", "classes"), dtype=self.dtype, name="head")
    return layers.outputs(head(x_BC), squeeze=False)


class Block(nn.Module):
  """relu(x + norm(conv(relu(norm(conv(x)))))), two 3×3 convolutions; the shortcut is projected where shapes change."""

  features: int
  strides: int
  norm: str
  dtype: layers.DType

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
    y_BHWC = _conv(self.features, 3, self.strides, self.dtype, "conv_0")(x_BHWC)
    y_BHWC = nn.relu(layers.Norm(self.norm, self.dtype, name="norm_0")(y_BHWC, train=train))
    y_BHWC = _conv(self.features, 3, 1, self.dtype, "conv_1")(y_BHWC)
    return _add_shortcut(self, x_BHWC, y_BHWC, train)


class Bottleneck(nn.Module):
  """1×1 to `features`, 3×3, 1×1 to four times as many; the shortcut is projected where shapes change."""

  features: int
  strides: int
  norm: str
  dtype: layers.DType

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
    y_BHWC = _conv(self.features, 1, 1, self.dtype, "conv_0")(x_BHWC)
    y_BHWC = nn.relu(layers.Norm(self.norm, self.dtype, name="norm_0")(y_BHWC, train=train))
    y_BHWC = _conv(self.features, 3, self.strides, self.dtype, "conv_1")(y_BHWC)
    y_BHWC = nn.relu(layers.Norm(self.norm, self.dtype, name="norm_1")(y_BHWC, train=train))
    y_BHWC = _conv(4 * self.features, 1, 1, self.dtype, "conv_2")(y_BHWC)
    return _add_shortcut(self, x_BHWC, y_BHWC, train)


def _add_shortcut(block: Block | Bottleneck, x_BHWC: jax.Array, y_BHWC: jax.Array, train: bool) -> jax.Array:
  """relu(shortcut(x) + norm(y)), the norm's scale starting at zero. Called inside the block's compact method."""
  norm = layers.Norm(block.norm, block.dtype, scale_init=nn.initializers.zeros, name="last_norm")
  y_BHWC = norm(y_BHWC, train=train)
  if x_BHWC.shape != y_BHWC.shape:
    x_BHWC = _conv(y_BHWC.shape[-1], 1, block.strides, block.dtype, "projection")(x_BHWC)
    x_BHWC = layers.Norm(block.norm, block.dtype, name="projection_norm")(x_BHWC, train=train)
  return nn.relu(x_BHWC + y_BHWC)


def _conv(
  features: int, kernel: int, strides: int, dtype: layers.DType, name: str, input_axis: str = "conv_in"
) -> nn.Module:
  # PyTorch's padding: with a stride, SAME would pad on the right and below only.
  padding = [(kernel // 2, kernel // 2)] * 2
  return layers.conv(
    features,
    kernel,
    strides=strides,
    padding=padding,
    input_axis=input_axis,
    dtype=dtype,
    kernel_init=he_fan_out,
    name=name,
  )
