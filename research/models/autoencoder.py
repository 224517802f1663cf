"""Encoders and decoders, dense or convolutional, and the distributions that a variational one's outputs stand for."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models import layers

KERNEL = 4  # of convolutions with stride 2: each output of a transposed one then sums the same number of products
LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian")


class Autoencoder(nn.Module):
  """x → encode → code → decode → what stands for x: its values, or a likelihood's parameters.

  mlp: hidden layers of `widths`, a linear code, the same layers mirrored and a linear head (Hinton and Salakhutdinov
  2006, without their pretraining). Without hidden widths it is linear, and the best code spans principal components.
  conv: for each width a 4×4 convolution of stride 2, a dense code, and transposed convolutions back (the layers of
  Radford et al. 2016, without their normalisation).

  Attributes:
    shape: of one reconstruction: (H, W, C), or (D,) for a table.
    latent: width of the code; 0, conv only: the code is the last feature map.
    widths: mlp: hidden widths of the encoder; conv: channels, each halving the image. The decoder has them reversed.
    network: mlp or conv.
    activation: relu, gelu, tanh or sigmoid.
    posterior: the encoder gives a mean and a log-variance, each of width `latent`, instead of a code.
    dtype: what is computed in; parameters, codes and outputs stay float32.
  """

  shape: tuple[int, ...]
  latent: int = 32
  widths: tuple[int, ...] = (512, 256)
  network: str = "mlp"
  activation: str = "relu"
  posterior: bool = False
  dtype: layers.DType = jnp.float32

  def setup(self):
    same = {"network": self.network, "activation": self.activation, "dtype": self.dtype}
    self.encoder = Encoder(self.latent * (2 if self.posterior else 1), self.widths, **same)
    self.decoder = Decoder(self.shape, self.widths, **same)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, …) as `encode` takes it → (B, *shape) float32; a posterior's mean is decoded."""
    code = self.encode(x)
    return self.decode(code[0] if self.posterior else code)

  def encode(self, x: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
    """(B, …), with more channels or columns than `shape` has where a mask comes along → the code, float32.

    The code is (B, latent), or (B, h, w, C) where latent is 0; with `posterior`, (mean_BZ, log_variance_BZ).
    """
    code = self.encoder(x)
    return tuple(jnp.split(code, 2, axis=-1)) if self.posterior else code

  def decode(self, code: jax.Array) -> jax.Array:
    """A code → (B, *shape) float32, unbounded."""
    return self.decoder(code)

  def check(self, shape: tuple[int, ...]) -> None:
    """Raises UserError where an input of `shape` cannot be made again: not an image, or sides that do not halve."""
    if self.network == "mlp":
      if not self.latent:
        raise UserError("model: --model.latent=0 keeps the code an image, which needs --model.network=conv")
      return
    if len(shape) != 3:
      raise UserError(f"model: --model.network=conv needs images, not {tuple(shape)}; --model.network=mlp takes them")
    if not self.widths:
      raise UserError("model: --model.widths is empty; a convolutional autoencoder has at least one")
    height, width = shape[:2]
    times = min(_halvings(height), _halvings(width))
    if len(self.widths) > times:
      fewer = f"at most {times} widths do, as does --model.network=mlp" if times else "--model.network=mlp takes them"
      raise UserError(f"model: images of {height}x{width} cannot be halved {len(self.widths)} times; {fewer}")


class Encoder(nn.Module):
  """Input (B, …) → (B, features) float32, or (B, h, w, widths[-1]) where `features` is 0."""

  features: int
  widths: tuple[int, ...]
  network: str
  activation: str
  dtype: layers.DType

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    activation, kernel_init = layers.activation(self.activation), layers.activation_initializer(self.activation)
    same = {"dtype": self.dtype, "kernel_init": kernel_init}
    convolutional = self.network == "conv"
    x = x.astype(self.dtype)
    if not convolutional:
      x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(self.widths):
      if convolutional:
        axis = "conv_in" if i else "features"
        layer = layers.conv(width, KERNEL, strides=2, input_axis=axis, use_bias=True, **same, name=f"conv_{i}")
      else:
        layer = layers.dense(width, ("embed" if i else "features", "mlp"), **same, name=f"hidden_{i}")
      x = activation(layer(x))
    if self.features:
      axis = "embed" if self.widths else "features"
      code = layers.dense(self.features, (axis, "mlp"), dtype=self.dtype, name="code")
      x = code(x.reshape(x.shape[0], -1))
    return x.astype(jnp.float32)


class Decoder(nn.Module):
  """A code (B, Z), or the encoder's feature map → (B, *shape) float32; `widths` are the encoder's."""

  shape: tuple[int, ...]
  widths: tuple[int, ...]
  network: str
  activation: str
  dtype: layers.DType

  @nn.compact
  def __call__(self, code: jax.Array) -> jax.Array:
    activation, kernel_init = layers.activation(self.activation), layers.activation_initializer(self.activation)
    same = {"dtype": self.dtype, "kernel_init": kernel_init}
    x = code.astype(self.dtype)
    if self.network != "conv":
      for i, width in enumerate(reversed(self.widths)):
        x = activation(layers.dense(width, ("embed", "mlp"), **same, name=f"hidden_{i}")(x))
      head = layers.dense(math.prod(self.shape), ("embed", "features"), dtype=self.dtype, name="head")
      return head(x).reshape(-1, *self.shape).astype(jnp.float32)

    if x.ndim == 2:
      smallest = (self.shape[0] >> len(self.widths), self.shape[1] >> len(self.widths), self.widths[-1])
      unfold = layers.dense(math.prod(smallest), ("embed", "mlp"), **same, name="unfold")
      x = activation(unfold(x)).reshape(-1, *smallest)
    for i, width in enumerate(reversed(self.widths[:-1])):
      x = activation(layers.conv_transpose(width, KERNEL, use_bias=True, **same, name=f"conv_{i}")(x))
    head = layers.conv_transpose(
      self.shape[-1], KERNEL, use_bias=True, output_axis="channels", dtype=self.dtype,
      kernel_init=layers.lecun_normal, name="head",
    )  # fmt: skip
    return head(x).astype(jnp.float32)


def _halvings(side: int) -> int:
  """How often a side can be divided by two."""
  return (side & -side).bit_length() - 1


def gaussian_kl(mean_BZ: jax.Array, log_variance_BZ: jax.Array) -> jax.Array:
  """KL(N(μ, diag σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²), (B,) nats (Kingma and Welling 2014, appendix B)."""
  return 0.5 * (jnp.square(mean_BZ) + jnp.expm1(log_variance_BZ) - log_variance_BZ).sum(axis=1)


def log_likelihood(kind: str, outputs: jax.Array, x: jax.Array, log_sigma: jax.Array | float = 0.0) -> jax.Array:
  """log p(x | outputs), summed over all axes but the first: (B,) nats.

  Args:
    kind: bernoulli; continuous_bernoulli, a density on [0, 1] (Loaiza-Ganem and Cunningham 2019); gaussian, a density.
    outputs: (B, …) float32: the logits a of the Bernoullis' λ = σ(a), or the gaussian's mean.
    x: the same shape; in [0, 1] for the Bernoullis.
    log_sigma: logarithm of the gaussian's standard deviation.
  """
  if kind == "gaussian":
    values = -0.5 * jnp.square((x - outputs) * jnp.exp(-log_sigma)) - log_sigma - 0.5 * math.log(2 * math.pi)
  else:
    values = -(x * jax.nn.softplus(-outputs) + (1.0 - x) * jax.nn.softplus(outputs))
  if kind == "continuous_bernoulli":
    # The normaliser 2·artanh(1 − 2λ) / (1 − 2λ) is a / tanh(a/2); near a = 0 its series.
    series = math.log(2) + jnp.square(outputs) / 12
    a, is_small = _away_from_zero(outputs)
    values = values + jnp.where(is_small, series, jnp.log(a / jnp.tanh(a / 2)))
  return values.reshape(values.shape[0], -1).sum(axis=1)


def expected_value(kind: str, outputs: jax.Array) -> jax.Array:
  """E[x | outputs], of the shape of `outputs`, which are as in `log_likelihood`."""
  if kind == "gaussian":
    return outputs
  if kind == "bernoulli":
    return jax.nn.sigmoid(outputs)
  a, is_small = _away_from_zero(outputs)
  return jnp.where(is_small, 0.5 + outputs / 12, 1 / -jnp.expm1(-a) - 1 / a)


def _away_from_zero(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(logits, but 1 where they are so near 0 that a quotient loses its digits; where that is)."""
  is_small = jnp.abs(logits) < 0.03
  return jnp.where(is_small, 1.0, logits), is_small
