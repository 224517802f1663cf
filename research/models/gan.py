"""Generators and discriminators: DCGAN, the residual networks of SNGAN, and MLPs for points; each may know classes.

A generator is (z_BZ, label_B, *, train) → images_BHWC in [−1, 1], or points_BD; a discriminator is
(x, label_B, *, train) → logits_B. Without classes the label is not looked at. Spectral normalisation is no part of a
discriminator: it is done to its parameters (`research/spectral.py`).
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models import layers, resampling
from research.models.mlp import MLP

SMALLEST_BASE = 4  # pixels a side of what a generator starts from; at most 7
KERNEL = 4  # a multiple of the stride 2: other kernels draw chequers (Odena et al. 2016)

small_normal = nn.initializers.normal(0.02)  # Radford et al. 2016, section 3
leaky_relu = layers.activation("leaky_relu")


def halvings(image_shape: Sequence[int]) -> int:
  """How often a side is halved down to its base: 28 → 7, 32 → 4, 64 → 4, 8 → 4.

  Raises UserError for an image (H, W, C) that doubling a base of 4 to 7 pixels does not give.
  """
  if len(image_shape) != 3:
    raise UserError(f"model: a GAN of images wants shape (height, width, channels), not {tuple(image_shape)}")
  height, width = image_shape[:2]
  side, count = height, 0
  while side % 2 == 0 and side >= 2 * SMALLEST_BASE:
    side, count = side // 2, count + 1
  if height != width or not count or not SMALLEST_BASE <= side < 2 * SMALLEST_BASE:
    raise UserError(
      f"model: a GAN cannot make images of {height}x{width}: they are square, with a side of 4 to 7 doubled one or more"
      " times, such as 8, 16, 28, 32, 64 or 128"
    )
  return count


class ClassNorm(nn.Module):
  """Batch normalisation with a scale and a bias for each class (Dumoulin et al. 2017); the plain one without."""

  classes: int = 0
  kind: str = "batch"
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None, *, train: bool) -> jax.Array:
    if not self.classes or self.kind == "none":
      return layers.Norm(self.kind, self.dtype, name="norm")(x_BHWC, train=train)
    normal_BHWC = layers.Norm(self.kind, self.dtype, affine=False, name="norm")(x_BHWC, train=train)
    channels = x_BHWC.shape[-1]
    scale_BC = class_table(self.classes, channels, nn.initializers.ones, self.dtype, "scale")(label_B)
    bias_BC = class_table(self.classes, channels, nn.initializers.zeros, self.dtype, "bias")(label_B)
    return normal_BHWC * scale_BC[:, None, None] + bias_BC[:, None, None]


def class_table(classes: int, features: int, init, dtype, name: str) -> nn.Embed:
  """A learned row for each class."""
  partitioned = nn.with_logical_partitioning(init, ("classes", "embed"))
  return nn.Embed(classes, features, dtype=dtype, param_dtype=jnp.float32, embedding_init=partitioned, name=name)


def with_class(z_BZ: jax.Array, label_B: jax.Array | None, classes: int, dtype: layers.DType) -> jax.Array:
  """Noise, and beside it the class as one-hot numbers of the noise's size (Mirza and Osindero 2014)."""
  z_BZ = z_BZ.astype(dtype)
  if not classes:
    return z_BZ
  scale = math.sqrt(z_BZ.shape[-1] / 2)  # as long as half of the noise: a class is no faint addition to it
  return jnp.concatenate([z_BZ, scale * jax.nn.one_hot(label_B, classes, dtype=dtype)], axis=-1)


class DCGenerator(nn.Module):
  """Radford et al. 2016: a dense layer to the base, then 4×4 transposed convolutions that each double the side.

  Attributes:
    image_shape: (H, W, C) of what it makes.
    width: channels of the last hidden layer; each earlier one has twice as many.
    classes: 0 for none.
    norm: batch or none.
    dtype: what is computed in; parameters and images are float32.
  """

  image_shape: tuple[int, int, int]
  width: int = 64
  classes: int = 0
  norm: str = "batch"
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, z_BZ: jax.Array, label_B: jax.Array | None = None, *, train: bool) -> jax.Array:
    count, use_bias = halvings(self.image_shape), self.norm == "none"
    base, channels = self.image_shape[0] >> count, self.width << (count - 1)

    def norm(x_BHWC, name):
      return nn.relu(ClassNorm(self.classes, self.norm, self.dtype, name=name)(x_BHWC, label_B, train=train))

    options = {"dtype": self.dtype, "kernel_init": small_normal}
    z_BZ = with_class(z_BZ, label_B, self.classes, self.dtype)
    start = layers.dense(base * base * channels, ("features", "conv_out"), use_bias=use_bias, name="start", **options)
    x_BHWC = norm(start(z_BZ).reshape(-1, base, base, channels), "norm_start")
    for number in range(count - 1):
      channels //= 2
      up = layers.conv_transpose(channels, KERNEL, use_bias=use_bias, name=f"up_{number}", **options)
      x_BHWC = norm(up(x_BHWC), f"norm_{number}")
    image = layers.conv_transpose(
      self.image_shape[2], KERNEL, use_bias=True, output_axis="channels", name="image", **options
    )
    return jnp.tanh(image(x_BHWC).astype(jnp.float32))


class DCDiscriminator(nn.Module):
  """Radford et al. 2016: 4×4 convolutions that each halve the side, with leaky rectifiers, and a linear head.

  Attributes:
    width: channels of the first convolution; each later one has twice as many.
    classes: with classes the head also projects on a learned row of the label (Miyato and Koyama 2018); 0 for none.
    norm: batch, group or none; the first convolution never has one.
    dtype: what is computed in; parameters and logits are float32.
  """

  width: int = 64
  classes: int = 0
  norm: str = "none"
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None, *, train: bool) -> jax.Array:
    x_BHWC = x_BHWC.astype(self.dtype)
    for number in range(halvings(x_BHWC.shape[1:])):
      norm = self.norm if number else "none"
      down = layers.conv(
        self.width << number, KERNEL, strides=2, padding=((1, 1), (1, 1)), use_bias=norm == "none", dtype=self.dtype,
        input_axis="conv_in" if number else "features", kernel_init=small_normal, name=f"down_{number}",
      )  # fmt: skip
      x_BHWC = leaky_relu(layers.Norm(norm, self.dtype, name=f"norm_{number}")(down(x_BHWC), train=train))
    head = ProjectionHead(self.classes, self.dtype, small_normal, name="score")
    return head(x_BHWC.reshape(x_BHWC.shape[0], -1), label_B)


class ProjectionHead(nn.Module):
  """logit = w·φ + b + row[label]·φ (Miyato and Koyama 2018, equation 4); the last term only with classes."""

  classes: int = 0
  dtype: layers.DType = jnp.float32
  kernel_init: layers.Initializer = layers.lecun_normal

  @nn.compact
  def __call__(self, x_BD: jax.Array, label_B: jax.Array | None) -> jax.Array:
    head = layers.dense(1, ("embed", "classes"), dtype=self.dtype, kernel_init=self.kernel_init, name="head")
    logits_B = layers.outputs(head(x_BD), squeeze=True)
    if self.classes:
      scale = 1 / math.sqrt(x_BD.shape[-1])
      row_BD = class_table(self.classes, x_BD.shape[-1], nn.initializers.normal(scale), self.dtype, "row")(label_B)
      logits_B = logits_B + (row_BD * x_BD).astype(jnp.float32).sum(-1)
    return logits_B


class ResNetGenerator(nn.Module):
  """Miyato et al. 2018, table 4: residual blocks of constant width that each double the side.

  Attributes: as `DCGenerator`'s; `width` is every block's.
  """

  image_shape: tuple[int, int, int]
  width: int = 256
  classes: int = 0
  norm: str = "batch"
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, z_BZ: jax.Array, label_B: jax.Array | None = None, *, train: bool) -> jax.Array:
    count = halvings(self.image_shape)
    base = self.image_shape[0] >> count
    options = {"dtype": self.dtype, "kernel_init": layers.glorot_uniform}

    def norm(x_BHWC, name):
      return nn.relu(ClassNorm(self.classes, self.norm, self.dtype, name=name)(x_BHWC, label_B, train=train))

    z_BZ = with_class(z_BZ, label_B, self.classes, self.dtype)
    start = layers.dense(base * base * self.width, ("features", "conv_out"), name="start", **options)
    x_BHWC = start(z_BZ).reshape(-1, base, base, self.width)
    for number in range(count):
      wide_BHWC = double(norm(x_BHWC, f"norm_{number}_0"))
      wide_BHWC = layers.conv(self.width, 3, name=f"conv_{number}_0", **options)(wide_BHWC)
      wide_BHWC = norm(wide_BHWC, f"norm_{number}_1")
      wide_BHWC = layers.conv(self.width, 3, name=f"conv_{number}_1", **options)(wide_BHWC)
      # A 1×1 convolution and the doubling commute; this order is a quarter of the work.
      x_BHWC = wide_BHWC + double(layers.conv(self.width, 1, name=f"skip_{number}", **options)(x_BHWC))
    image = layers.conv(self.image_shape[2], 3, use_bias=True, output_axis="channels", name="image", **options)
    return jnp.tanh(image(norm(x_BHWC, "norm_image")).astype(jnp.float32))


class ResNetDiscriminator(nn.Module):
  """Miyato et al. 2018, table 4: residual blocks that halve the side down to 8 pixels or less, two more that keep it,
  a sum over the pixels and a linear head.

  Attributes: as `DCDiscriminator`'s; `width` is every block's. There is no normalisation: it is meant to be spectrally
  normalised.
  """

  width: int = 128
  classes: int = 0
  norm: str = "none"
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None, *, train: bool) -> jax.Array:
    halvings(x_BHWC.shape[1:])
    downs = max(1, math.ceil(math.log2(x_BHWC.shape[1] / (2 * SMALLEST_BASE))))
    options = {"use_bias": True, "dtype": self.dtype, "kernel_init": layers.glorot_uniform}
    x_BHWC = x_BHWC.astype(self.dtype)
    for number in range(downs + 2):
      first, halve = number == 0, number < downs

      def norm(x_BHWC, name):
        return layers.Norm(self.norm, self.dtype, name=name)(x_BHWC, train=train)

      wide_BHWC = x_BHWC if first else nn.relu(norm(x_BHWC, f"norm_{number}_0"))
      input_axis = "features" if first else "conv_in"
      wide_BHWC = layers.conv(self.width, 3, input_axis=input_axis, name=f"conv_{number}_0", **options)(wide_BHWC)
      wide_BHWC = nn.relu(norm(wide_BHWC, f"norm_{number}_1"))
      wide_BHWC = layers.conv(self.width, 3, name=f"conv_{number}_1", **options)(wide_BHWC)
      if halve:
        wide_BHWC, x_BHWC = (resampling.pool_2x2(each, "avg") for each in (wide_BHWC, x_BHWC))
      if halve:  # the skip connection has a convolution where the number of pixels or channels changes
        skip = layers.conv(self.width, 1, input_axis=input_axis, name=f"skip_{number}", **options)
        x_BHWC = skip(x_BHWC)
      x_BHWC = wide_BHWC + x_BHWC
    x_BD = nn.relu(x_BHWC).sum((1, 2))
    return ProjectionHead(self.classes, self.dtype, layers.glorot_uniform, name="score")(x_BD, label_B)


def double(x_BHWC: jax.Array) -> jax.Array:
  """Each pixel becomes a square of 2×2: (B, H, W, C) → (B, 2H, 2W, C)."""
  batch, height, width, channels = x_BHWC.shape
  squares = jnp.broadcast_to(x_BHWC[:, :, None, :, None], (batch, height, 2, width, 2, channels))
  return squares.reshape(batch, 2 * height, 2 * width, channels)


class PointGenerator(nn.Module):
  """An MLP from noise to points_BD."""

  dimensions: int
  widths: tuple[int, ...] = (128, 128)
  classes: int = 0

  @nn.compact
  def __call__(self, z_BZ: jax.Array, label_B: jax.Array | None = None, *, train: bool) -> jax.Array:
    z_BZ = with_class(z_BZ, label_B, self.classes, jnp.float32)
    return MLP(self.dimensions, self.widths, activation="relu", name="mlp")(z_BZ, train=train)


class PointDiscriminator(nn.Module):
  """An MLP from points_BD to logits_B."""

  widths: tuple[int, ...] = (128, 128)
  classes: int = 0

  @nn.compact
  def __call__(self, x_BD: jax.Array, label_B: jax.Array | None = None, *, train: bool) -> jax.Array:
    if self.classes:
      x_BD = jnp.concatenate([x_BD, jax.nn.one_hot(label_B, self.classes, dtype=x_BD.dtype)], axis=-1)
    return MLP(1, self.widths, activation="leaky_relu", squeeze=True, name="mlp")(x_BD, train=train)
