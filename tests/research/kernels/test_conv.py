"""The convolution's own gradients against XLA's, for every way that a kernel can hang over an edge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.kernels.conv import DIMENSIONS, convolution, convolve, input_gradient, reference, weight_gradient

CASES = {
  # image (H, W), channels in and out, kernel (h, w), strides, padding
  "3x3 same": ((8, 7), (3, 4), (3, 3), (1, 1), "SAME"),
  "even and oblong kernel": ((9, 8), (1, 4), (2, 3), (1, 1), "SAME"),
  "valid": ((6, 6), (2, 3), (3, 3), (1, 1), "VALID"),
  "1x1 with stride": ((8, 8), (3, 4), (1, 1), (2, 2), ((0, 0), (0, 0))),
  "a ResNet's stem, smaller": ((8, 9), (2, 3), (5, 5), (2, 2), ((2, 2), (2, 2))),
  "a GAN's, smaller": ((8, 8), (3, 5), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "few channels, strided": ((8, 6), (1, 9), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "windows that leave a row unread": ((8, 9), (2, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
  "uneven strides and padding": ((9, 8), (2, 3), (3, 3), (3, 2), ((0, 2), (3, 1))),
}


def arrays(shape, channels, kernel, batch=6):
  random = np.random.default_rng(0)
  x_BHWC = jnp.asarray(random.normal(size=(batch, *shape, channels[0])), jnp.float32)
  return x_BHWC, jnp.asarray(random.normal(size=(*kernel, *channels)), jnp.float32)


def resolved(case):
  """(x, kernel, output gradient, strides, pads) of a case."""
  shape, channels, kernel, strides, padding = case
  x_BHWC, kernel_HWIO = arrays(shape, channels, kernel, batch=3)
  if isinstance(padding, str):
    padding = tuple(lax.padtype_to_pads(shape, kernel, strides, padding))
  sizes = reference.convolution(x_BHWC, kernel_HWIO, strides, padding).shape
  return x_BHWC, kernel_HWIO, jnp.cos(jnp.arange(float(np.prod(sizes)))).reshape(sizes), strides, padding


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_operation_is_its_definition(case):
  x_BHWC, kernel_HWIO, gradient_BHWO, strides, pads = resolved(case)
  found = jax.jit(lambda x, kernel, g: (
    convolution(x, kernel, strides, pads, None),
    input_gradient(g, kernel, x.shape[1:3], strides, pads, None),
    weight_gradient(x, g, kernel.shape[:2], strides, pads, None),
  ))(x_BHWC, kernel_HWIO, gradient_BHWO)  # fmt: skip
  expected = (
    reference.convolution(x_BHWC, kernel_HWIO, strides, pads),
    reference.input_gradient(gradient_BHWO, kernel_HWIO, x_BHWC.shape[1:3], strides, pads),
    reference.weight_gradient(x_BHWC, gradient_BHWO, kernel_HWIO.shape[:2], strides, pads),
  )
  # float32 sums of up to a few hundred products of order one.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_second_derivatives_are_xlas(case):
  """A gradient penalty's: the squared gradient by the input, differentiated by the input and by the weights."""
  x_BHWC, kernel_HWIO, _, strides, pads = resolved(case)

  def penalty(function):
    def loss(x_BHWC, kernel_HWIO):
      return jnp.tanh(function(x_BHWC, kernel_HWIO)).sum()

    def squared(x, w):
      return sum((gradient**2).sum() for gradient in jax.grad(loss, (0, 1))(x, w))

    return jax.jit(jax.grad(squared, (0, 1)))

  ours = penalty(lambda x, w: convolve(x, w, strides, pads))(x_BHWC, kernel_HWIO)
  theirs = penalty(lambda x, w: lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=DIMENSIONS))
  for a, b in zip(ours, theirs(x_BHWC, kernel_HWIO), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def value_and_gradients(function, x_BHWC, kernel_HWIO):
  def loss(x_BHWC, kernel_HWIO):
    return jnp.sin(function(x_BHWC, kernel_HWIO).astype(jnp.float32)).sum()

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x_BHWC, kernel_HWIO)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_xlas(case):
  shape, channels, kernel, strides, padding = case
  x_BHWC, kernel_HWIO = arrays(shape, channels, kernel)
  reference = functools.partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=DIMENSIONS
  )
  ours = value_and_gradients(lambda x, kernel: convolve(x, kernel, strides, padding), x_BHWC, kernel_HWIO)
  theirs = value_and_gradients(reference, x_BHWC, kernel_HWIO)
  # The same float32 products, a few hundred, summed in another order.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize(("batch", "side"), [(2, 40), (7, 16)])
def test_weights_gather_over_pieces(batch, side):
  # 40×40 is more than one piece's pixels; 7 examples of 16×16 do not divide into pieces of 4.
  x_BHWC, kernel_HWIO = arrays((side, side), (2, 3), (1, 2), batch)
  gradient_BHWO = jnp.sin(jnp.arange(batch * side * side * 3.0)).reshape(batch, side, side, 3)
  ours = jax.jit(weight_gradient, static_argnums=(2, 3, 4, 5))(
    x_BHWC, gradient_BHWO, kernel_HWIO.shape[:2], (1, 1), ((0, 0), (0, 1)), None
  )
  padded = np.pad(np.asarray(x_BHWC, np.float64), ((0, 0), (0, 0), (0, 1), (0, 0)))
  expected = [np.einsum("bhwc,bhwo->co", padded[:, :, j : j + side], gradient_BHWO) for j in (0, 1)]
  np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-3)


def test_bf16_sums_its_weight_gradient_in_f32():
  ones = jnp.ones((512, 4, 4, 1), jnp.bfloat16)
  kernel = jnp.zeros((1, 1, 1, 1), jnp.bfloat16)
  gradient = jax.jit(jax.grad(lambda w: convolve(ones, w, (1, 1), "SAME").astype(jnp.float32).sum()))(kernel)
  assert gradient.dtype == jnp.bfloat16
  assert float(gradient.squeeze()) == 512 * 16  # a bf16 sum of ones stops at 256


def test_the_cpu_program_has_no_convolution_in_its_weight_gradient():
  x_BHWC, kernel_HWIO = arrays((8, 8), (2, 3), (3, 3))
  gradient_BHWO = jnp.ones((6, 8, 8, 3))

  def program(convolution):
    gradient = jax.jit(lambda x, w, g: jax.vjp(lambda w: convolution(x, w), w)[1](g))
    return gradient.lower(x_BHWC, kernel_HWIO, gradient_BHWO).compile().as_text()

  assert " convolution(" not in program(lambda x, w: convolve(x, w, (1, 1), "SAME"))
  xlas = program(lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS))
  assert " convolution(" in xlas  # so that it is what to look for


def test_a_sharded_batch_stays_where_it_is():
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  x_BHWC, kernel_HWIO = arrays((8, 8), (2, 3), (3, 3), batch=32)
  x_BHWC = jax.device_put(x_BHWC, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
  kernel_HWIO = jax.device_put(kernel_HWIO, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  gradient = jax.jit(jax.grad(lambda w, x: jnp.sin(convolve(x, w, (1, 1), "SAME")).sum()))
  program = gradient.lower(kernel_HWIO, x_BHWC).compile().as_text()
  assert "all-reduce" in program
  for move in ("all-gather", "all-to-all", "collective-permute"):
    assert move not in program


def test_other_platforms_keep_xlas_gradient():
  x_BHWC, kernel_HWIO = arrays((8, 8), (2, 3), (3, 3))
  gradient = jax.jit(jax.grad(lambda w: convolve(x_BHWC, w, (1, 1), "SAME").sum()))
  text = gradient.trace(kernel_HWIO).lower(lowering_platforms=("tpu",)).as_text()
  assert "stablehlo.convolution" in text
  assert "stablehlo.while" not in text


@pytest.mark.parametrize(
  "options",
  [{"feature_group_count": 2}, {"rhs_dilation": (2, 2)}, {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}],
)
def test_what_it_does_not_have_is_refused(options):
  with pytest.raises(ValueError, match="no dilations, no groups"):
    convolve(jnp.zeros((2, 8, 8, 2)), jnp.zeros((3, 3, 2, 2)), (1, 1), "SAME", **options)
