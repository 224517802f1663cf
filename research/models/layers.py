"""The layers that models are built from: flax's own with named axes, f32 parameters and one compute dtype.

A model says what is connected to what; this file says how a layer is initialised, named and computed.

Axis names (what a sharding table maps to a mesh; an axis named None is never sharded):

| name | axis |
| --- | --- |
| `features` | an input width that the data fixes: columns, flattened pixels of the input, image channels |
| `embed` | the input width of a dense kernel inside the model |
| `mlp` | the output width of a hidden dense layer, and its bias |
| `classes` | the output width of the head, and its bias |
| `conv_in`, `conv_out` | a convolution's input and output channels; its bias is `conv_out` |
| `channels` | an image's channels as an output, which the data fix |
| `norm` | the scale and bias of a normalisation |
| `vocab` | the tokens of a vocabulary: an embedding's rows, a language model's head |
| `heads`, `kv_heads` | all heads' queries, or keys and values, side by side |
| `layers`, `experts` | the stacked blocks of a transformer; the experts of a mixture |
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.kernels.conv import convolve
from research.kernels.conv_transpose import conv_transpose as transposed_convolution
from research.kernels.dense import dot_general
from research.kernels.dropout import dropout
from research.kernels.norm import norm
from research.kernels.sums import add_last
from research.parallel import collectives
from research.parallel.activations import Kept, spread, with_whole

DType = Any  # a jax dtype or its name, "float32" or "bfloat16"
Initializer = Callable[..., jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": nn.relu,
  "gelu": nn.gelu,  # the tanh form: half the CPU time of the exact one
  "gelu_exact": lambda x: nn.gelu(x, approximate=False),
  "tanh": jnp.tanh,
  "sigmoid": nn.sigmoid,
  "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),  # the slope of Radford et al. 2016
}

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")  # He et al. 2015, section 2.2
glorot_uniform = nn.initializers.glorot_uniform()  # Glorot and Bengio 2010, equation 16
lecun_normal = nn.initializers.lecun_normal()


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The function of that name. Raises UserError for one that `ACTIVATIONS` lacks."""
  if name not in ACTIVATIONS:
    raise UserError(f"model: no activation {name!r} ({', '.join(ACTIVATIONS)})")
  return ACTIVATIONS[name]


def activation_initializer(activation: str) -> Initializer:
  """What keeps a signal's variance through it: He's initializer for rectifiers, Glorot's for saturating functions."""
  return he_normal if activation in ("relu", "gelu", "gelu_exact", "leaky_relu") else glorot_uniform


def dense(
  features: int,
  axes: tuple[str | None, str | None],
  *,
  dtype: DType = jnp.float32,
  kernel_init: Initializer = lecun_normal,
  use_bias: bool = True,
  name: str | None = None,
) -> nn.Module:
  """A dense layer whose kernel (in, out) has the logical `axes` and whose bias has the second of them."""
  kernel_init = nn.with_logical_partitioning(kernel_init, axes)

  def product(x: jax.Array, kernel_DF: jax.Array, *arguments: Any, **more: Any) -> jax.Array:
    return with_whole(lambda x, kernel_DF: dot_general(x, kernel_DF, *arguments, **more), x, kernel_DF, *axes)

  options = {"dtype": dtype, "param_dtype": jnp.float32, "kernel_init": kernel_init, "dot_general": product}
  return _with_bias(functools.partial(nn.Dense, features, **options), axes[1], use_bias, dtype, name)


def _with_bias(
  make: Callable[..., nn.Module], axis: str | None, use_bias: bool, dtype: DType, name: str | None
) -> nn.Module:
  """The layer that make(use_bias, bias_init, name) gives; in bfloat16 with a bias whose gradient is `add_last`'s."""
  bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
  if use_bias and jnp.dtype(dtype) != jnp.float32:
    return Biased(make(use_bias=False, parent=None), bias_init, name=name)
  return make(use_bias=use_bias, bias_init=bias_init, name=name)


class Biased(nn.Module):
  """A layer and what is added to its last axis; parameters are the layer's, and bias."""

  layer: nn.Module
  bias_init: Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    nn.share_scope(self, self.layer)
    y = self.layer(x)
    return add_last(y, self.param("bias", self.bias_init, y.shape[-1:], jnp.float32).astype(y.dtype))


def conv(
  features: int,
  kernel: int,
  *,
  strides: int = 1,
  padding: Any = "SAME",
  input_axis: str = "conv_in",
  output_axis: str = "conv_out",
  use_bias: bool = False,
  dtype: DType = jnp.float32,
  kernel_init: Initializer = he_normal,
  name: str | None = None,
) -> nn.Module:
  """A square 2-D convolution of (B, H, W, C); kernel (kernel, kernel, in, out). `padding` is as in `nn.Conv`."""
  axes = input_axis, output_axis
  return _conv(features, kernel, strides, padding, 1, axes, use_bias, dtype, kernel_init, name)


def _on_each_device(convolution: Callable[..., jax.Array], output_axis: str) -> Callable[..., jax.Array]:
  """(x_BHWC, kernel_HWCO, …) → the same, written out for the batch and the output channels that a device has.

  Of gradients of convolutions that are cut along both XLA makes other numbers (jaxlib 0.10.2 and 0.12.0).
  """

  def run(x_BHWC: jax.Array, kernel_HWCO: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    outputs = output_axis if options.get("feature_group_count", 1) == 1 else None
    whole = (None, None, None)
    return spread(
      lambda cut, x_BHWC, kernel_HWCO: convolution(x_BHWC, kernel_HWCO, *arguments, **options),
      (("batch", *whole), Kept((*whole, outputs))),
      ("batch", None, None, outputs),
    )(x_BHWC, kernel_HWCO)

  return run


def _conv(features, kernel, strides, padding, groups, axes, use_bias, dtype, kernel_init, name) -> nn.Module:
  make = functools.partial(
    nn.Conv,
    features,
    (kernel, kernel),
    strides=(strides, strides),
    padding=padding,
    feature_group_count=groups,
    dtype=dtype,
    param_dtype=jnp.float32,
    conv_general_dilated=_on_each_device(convolve, axes[1]),
    kernel_init=nn.with_logical_partitioning(kernel_init, (None, None, *axes)),
  )
  return _with_bias(make, axes[1], use_bias, dtype, name)


def depthwise_conv(
  channels: int,
  kernel: int,
  *,
  strides: int = 1,
  padding: Any = "SAME",
  use_bias: bool = False,
  dtype: DType = jnp.float32,
  kernel_init: Initializer = he_normal,
  name: str | None = None,
) -> nn.Module:
  """A square 2-D convolution of each of an image's `channels` by itself; kernel (kernel, kernel, 1, channels)."""
  axes = None, "conv_out"
  return _conv(channels, kernel, strides, padding, channels, axes, use_bias, dtype, kernel_init, name)


class ConvTranspose(nn.Module):
  """A square transposed convolution, (B, H, W, C) → (B, strides·H, strides·W, features); parameters kernel and bias.

  The kernel (kernel, kernel, C, features) is laid on the output as it is (`kernels.conv_transpose`).
  """

  features: int
  kernel: int
  strides: int = 2
  use_bias: bool = False
  dtype: DType = jnp.float32
  kernel_init: Initializer = he_normal
  output_axis: str = "conv_out"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    kernel_init = nn.with_logical_partitioning(self.kernel_init, (None, None, "conv_in", self.output_axis))
    shape = (self.kernel, self.kernel, x_BHWC.shape[-1], self.features)
    kernel_HWCO = self.param("kernel", kernel_init, shape, jnp.float32).astype(self.dtype)
    convolution, x_BHWC = _on_each_device(transposed_convolution, self.output_axis), x_BHWC.astype(self.dtype)
    y_BHWO = convolution(x_BHWC, kernel_HWCO, (self.strides, self.strides), "SAME")
    if self.use_bias:
      bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (self.output_axis,))
      bias_O = self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)
      y_BHWO = y_BHWO + bias_O.reshape(1, 1, 1, -1)
    return y_BHWO


def conv_transpose(
  features: int,
  kernel: int,
  *,
  strides: int = 2,
  use_bias: bool = False,
  output_axis: str = "conv_out",
  dtype: DType = jnp.float32,
  kernel_init: Initializer = he_normal,
  name: str | None = None,
) -> ConvTranspose:
  """A square transposed 2-D convolution that enlarges (B, H, W, C) by `strides`."""
  return ConvTranspose(features, kernel, strides, use_bias, dtype, kernel_init, output_axis, name=name)


class Norm(nn.Module):
  """Normalises the last axis' channels by `kind`, in float32 whatever the compute dtype; the result has `dtype`.

  batch: Ioffe and Szegedy 2015; running statistics (momentum 0.9) live in "batch_stats" and are what evaluation uses.
    Its mean is over the whole batch, on however many devices that lies and however the step is compiled.
  layer: Ba et al. 2016. rms: Zhang and Sennrich 2019, which has no bias. Both are `kernels.norm`.
  group: Wu and He 2018, 32 groups or the largest number below that divides the channels evenly.
  """

  kind: str
  dtype: DType = jnp.float32
  scale_init: Initializer = nn.initializers.ones
  affine: bool = True  # whether it has a scale and a bias
  use_bias: bool = True  # whether an affine one has a bias
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if self.kind == "none":
      return x
    if self.kind in ("layer", "rms"):
      return self._rows(x)
    options = {
      "epsilon": self.epsilon,
      "use_scale": self.affine,
      "use_bias": self.affine and self.use_bias,
      "dtype": jnp.float32,
      "scale_init": nn.with_logical_partitioning(self.scale_init, ("norm",)),
      "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
      "use_fast_variance": False,  # E[x²]−E[x]² loses every digit when the mean is 1000 times the spread
    }
    if self.kind == "batch":
      layer = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=collectives.axis_name(), **options)
    elif self.kind == "group":
      layer = nn.GroupNorm(num_groups=math.gcd(32, x.shape[-1]), **options)
    else:
      raise UserError(f"model: no normalisation {self.kind!r} (none, batch, layer, rms or group)")
    nn.share_scope(self, layer)  # "norm_0/scale", whatever the kind
    return layer(x.astype(jnp.float32)).astype(self.dtype)

  def _rows(self, x: jax.Array) -> jax.Array:
    def parameter(name: str, init: Initializer, is_there: bool) -> jax.Array | None:
      init = nn.with_logical_partitioning(init, ("norm",))
      return self.param(name, init, x.shape[-1:], jnp.float32) if is_there else None

    scale_D = parameter("scale", self.scale_init, self.affine)
    bias_D = parameter("bias", nn.initializers.zeros, self.affine and self.use_bias and self.kind == "layer")
    return norm(x, scale_D, bias_D, kind=self.kind, epsilon=self.epsilon, dtype=self.dtype)


class Dropout(nn.Module):
  """In training, zeroes values with probability `rate` and scales the rest to keep the mean (`kernels.dropout`).

  The rate is rounded to 1/256: one random word serves four values. Drawn row by row, so that a batch sharded by rows
  draws its own rows' words.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if not 0.0 <= self.rate < 1.0:
      raise UserError(f"model: dropout {self.rate} is outside [0, 1)")
    if not train or round(self.rate * 256) == 0:
      return x
    return dropout(x, collectives.own(self.make_rng("dropout")), self.rate)


def outputs(y_BC: jax.Array, squeeze: bool) -> jax.Array:
  """A head's values as float32, so that losses never see bf16; (B, 1) → (B,) with `squeeze`."""
  y_BC = y_BC.astype(jnp.float32)
  return y_BC.squeeze(-1) if squeeze else y_BC
