"""The transposed convolution against its definition in float64, its gradients, and the reading of sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.kernels.conv_transpose import conv_transpose, reference

CASES = {
  # input (H, W), channels in and out, kernel (h, w), strides, pads
  "a GAN's": ((4, 4), (6, 5), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "to one channel": ((5, 5), (9, 1), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "to many channels": ((3, 4), (2, 8), (4, 4), (2, 2), ((1, 1), (1, 1))),
  "3x3 and stride 2": ((4, 5), (3, 2), (3, 3), (2, 2), ((0, 1), (1, 0))),
  "5x5 and uneven": ((3, 4), (2, 3), (5, 4), (2, 3), ((2, 1), (0, 2))),
  "kernel smaller than stride": ((3, 3), (2, 3), (2, 1), (3, 2), ((0, -1), (-1, 0))),
  "stride 1": ((5, 4), (2, 3), (3, 3), (1, 1), ((1, 1), (0, 2))),
}


def arrays(case, dtype=np.float32):
  size, channels, kernel = case[:3]
  random = np.random.default_rng(0)
  x_BHWC = random.normal(size=(3, *size, channels[0]))
  return jnp.asarray(x_BHWC, dtype), jnp.asarray(random.normal(size=(*kernel, *channels)), dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_its_definition(case):
  x_BHWC, kernel_HWCO = arrays(case)
  strides, pads = case[3:]
  found = jax.jit(lambda x, w: conv_transpose(x, w, strides, pads))(x_BHWC, kernel_HWCO)
  expected = reference.conv_transpose(x_BHWC, kernel_HWCO, strides, pads)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # sums of at most 54 float32 products


def by_jax(x_BHWC, kernel_HWCO, strides, pads):
  """The same from lax, which wants the kernel turned by hand and other padding."""
  (rows, columns), turned = kernel_HWCO.shape[:2], lax.rev(kernel_HWCO, (0, 1))
  edges = [(k - 1 - low, k - 1 - high) for k, (low, high) in zip((rows, columns), pads, strict=True)]
  return lax.conv_general_dilated(
    x_BHWC, turned, (1, 1), edges, lhs_dilation=strides, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_first_and_second_derivatives_are_xlas(case):
  x_BHWC, kernel_HWCO = arrays(case)
  strides, pads = case[3:]

  def derivatives(function):
    def loss(x, w):
      return jnp.tanh(function(x, w, strides, pads)).sum()

    def penalty(x, w):
      return sum((gradient**2).sum() for gradient in jax.grad(loss, (0, 1))(x, w))

    return jax.jit(lambda x, w: (jax.grad(loss, (0, 1))(x, w), jax.grad(penalty, (0, 1))(x, w)))(x_BHWC, kernel_HWCO)

  def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(jnp.abs(theirs).max()))

  jax.tree.map(close, derivatives(conv_transpose), derivatives(by_jax))


def test_its_derivative_is_the_definitions_in_float64():
  """By central differences of the reference: no gradient code of ours or of XLA's is in it."""
  case = CASES["3x3 and stride 2"]
  x_BHWC, kernel_HWCO = arrays(case)
  forward = functools.partial(reference.conv_transpose, strides=case[3], pads=case[4])
  ours = jax.grad(lambda w: jnp.sin(conv_transpose(x_BHWC, w, *case[3:])).sum())(kernel_HWCO)
  wide, step = np.asarray(kernel_HWCO, np.float64), 1e-5
  for place in [(0, 0, 0, 0), (1, 2, 2, 1), (2, 1, 0, 1)]:
    shift = np.zeros_like(wide)
    shift[place] = step
    slope = (np.sin(forward(x_BHWC, wide + shift)).sum() - np.sin(forward(x_BHWC, wide - shift)).sum()) / (2 * step)
    np.testing.assert_allclose(ours[place], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "high"), [(4, 2, 1), (3, 2, 1), (5, 3, 1), (2, 2, 0), (1, 2, -1)])
def test_same_enlarges_by_the_stride(kernel, stride, high):
  x_BHWC, kernel_HWCO = jnp.ones((1, 5, 3, 2)), jnp.ones((kernel, kernel, 2, 4))
  y_BHWO = conv_transpose(x_BHWC, kernel_HWCO, (stride, stride))
  assert y_BHWO.shape == (1, 5 * stride, 3 * stride, 4)
  low = kernel - stride - high
  expected = reference.conv_transpose(x_BHWC, kernel_HWCO, (stride, stride), ((low, high), (low, high)))
  np.testing.assert_allclose(y_BHWO, expected)


def test_bf16_stays_bf16():
  x_BHWC, kernel_HWCO = arrays(CASES["a GAN's"], jnp.bfloat16)
  loss = lambda x, w: conv_transpose(x, w, (2, 2)).astype(jnp.float32).sum()  # noqa: E731
  assert conv_transpose(x_BHWC, kernel_HWCO, (2, 2)).dtype == jnp.bfloat16
  assert {g.dtype for g in jax.grad(loss, (0, 1))(x_BHWC, kernel_HWCO)} == {jnp.dtype(jnp.bfloat16)}


def test_the_cpu_program_holds_no_dilated_convolution():
  """XLA's own gradients are dilated convolutions, on which its CPU backend is slow; on a TPU they are left to it."""
  x_BHWC, kernel_HWCO = arrays(CASES["a GAN's"])
  gradients = jax.jit(jax.grad(lambda x, w: jnp.sin(conv_transpose(x, w, (2, 2))).sum(), (0, 1)))
  on = {
    platform: gradients.trace(x_BHWC, kernel_HWCO).lower(lowering_platforms=(platform,)).as_text()
    for platform in ("cpu", "tpu")
  }
  assert "lhs_dilate = [2, 2]" in on["tpu"]
  assert "dilate = [2, 2]" not in on["cpu"]


def test_padding_that_leaves_nothing_is_refused():
  with pytest.raises(ValueError, match="leaves nothing"):
    conv_transpose(jnp.ones((1, 1, 1, 1)), jnp.ones((2, 2, 1, 1)), (1, 1), ((1, 1), (0, 0)))
