"""Small residual networks that train fast on 32×32 images: ResNet-9 (Page 2018, "How to train your ResNet") and kin."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models import layers, resampling


class FastCNN(nn.Module):
  """A stem, then stages that each halve the image and may add a residual branch, a global maximum and a scaled head.

  A stage is convolution → 2×2 max-pooling → norm → activation, and then x + branch(x), the branch being some
  convolutions with norm and activation at the same width. Pooling comes before the norm, which so sees a quarter of
  the values. The defaults are Page's ResNet-9.

  Attributes:
    outputs: number of classes.
    widths: channels of the stem and of each stage.
    residual_convs: for each stage, how many convolutions its residual branch has; 0 is no branch.
    space_to_depth: fold each 2×2 square of pixels into the channels before the stem, for a quarter of the work after.
    activation: relu, gelu, tanh or sigmoid.
    norm: batch or group.
    logit_scale: what the head's values are multiplied by, which keeps the softmax soft early on.
    dtype: what is computed in; parameters, normalisation and outputs stay float32.
  """

  outputs: int
  widths: tuple[int, ...] = (64, 128, 256, 512)
  residual_convs: tuple[int, ...] = (2, 0, 2)
  space_to_depth: bool = False
  activation: str = "relu"
  norm: str = "batch"
  logit_scale: float = 0.125
  dtype: layers.DType = jnp.float32

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError where an image (H, W, C) is too small for the poolings, or the two tuples do not match."""
    if len(image_shape) != 3:
      raise UserError(f"model: a FastCNN wants images of shape (height, width, channels), not {tuple(image_shape)}")
    if len(self.residual_convs) != len(self.widths) - 1:
      raise UserError(
        f"model: {len(self.widths)} widths are a stem and {len(self.widths) - 1} stages, "
        f"but residual_convs names {len(self.residual_convs)}"
      )
    height, width = image_shape[:2]
    halvings = len(self.residual_convs) + self.space_to_depth
    if min(height, width) < 2**halvings:
      raise UserError(f"model: an image of {height}x{width} cannot be halved {halvings} times; use fewer widths")
    if self.space_to_depth and (height % 2 or width % 2):
      raise UserError(f"model: space_to_depth needs an image of even sides, not {height}x{width}")

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
    """Images (B, H, W, C) float → logits (B, outputs) float32. Raises UserError as `check` does."""
    self.check(x_BHWC.shape[1:])
    x_BHWC = x_BHWC.astype(self.dtype)
    if self.space_to_depth:
      x_BHWC = space_to_depth(x_BHWC)

    def conv(x_BHWC: jax.Array, width: int, name: str, *, pool: bool = False, input_axis: str = "conv_in") -> jax.Array:
      x_BHWC = layers.conv(width, 3, dtype=self.dtype, input_axis=input_axis, name=f"{name}_conv")(x_BHWC)
      if pool:
        x_BHWC = resampling.pool_2x2(x_BHWC)
      x_BHWC = layers.Norm(self.norm, self.dtype, name=f"{name}_norm")(x_BHWC, train=train)
      return layers.activation(self.activation)(x_BHWC)

    x_BHWC = conv(x_BHWC, self.widths[0], "stem", input_axis="features")
    for stage, (width, residual_convs) in enumerate(zip(self.widths[1:], self.residual_convs, strict=True)):
      x_BHWC = branch_BHWC = conv(x_BHWC, width, f"stage_{stage}", pool=True)
      for i in range(residual_convs):
        branch_BHWC = conv(branch_BHWC, width, f"stage_{stage}_residual_{i}")
      if residual_convs:
        x_BHWC = x_BHWC + branch_BHWC
    x_BC = x_BHWC.max(axis=(1, 2))
    head = layers.dense(self.outputs, ("embed", "classes"), dtype=self.dtype, use_bias=False, name="head")
    return self.logit_scale * layers.outputs(head(x_BC), squeeze=False)


def space_to_depth(x_BHWC: jax.Array) -> jax.Array:
  """Each 2×2 square of pixels becomes one pixel: (B, H, W, C) → (B, H/2, W/2, 4·C), rows before columns."""
  batch, height, width, channels = x_BHWC.shape
  squares = x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
  return squares.reshape(batch, height // 2, width // 2, 4 * channels)
