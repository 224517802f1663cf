"""Bias, activation, gain and clamp in one: against the definition, autodiff, and what autodiff would keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from research.kernels.bias_act import ACTIVATIONS, bias_act, reference
from tests.research.kernels import oracle


def plain(x, bias_C, activation, gain, clamp):
  """As a script has it, left to autodiff."""
  functions = {"linear": lambda x: x, "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2), "tanh": jnp.tanh}
  y = x + bias_C.reshape((1,) * (x.ndim - 1) + (-1,))
  y = functions.get(activation, getattr(jax.nn, activation, None))(y) * jnp.asarray(gain, x.dtype)
  return y if clamp is None else jnp.clip(y, jnp.asarray(-clamp, y.dtype), jnp.asarray(clamp, y.dtype))


def value_and_slopes(function, how, x, bias, g):
  def both(x, bias, g):
    y, slope = jax.vjp(lambda x, bias: function(x, bias, *how), x, bias)
    return y, slope(g)

  return jax.jit(both)(x, bias, g)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", [(name, 1.7, 0.875) for name in ACTIVATIONS] + [("leaky_relu", 2**0.5, None)])
def test_it_is_its_definition_as_nearly_as_autodiff_is(how, dtype):
  (x, exact_x), (bias, exact_bias) = oracle.normal(0, 3, 5, 7, dtype=dtype), oracle.normal(1, 7, dtype=dtype)
  g, exact_g = oracle.normal(2, 3, 5, 7, dtype=dtype)
  if how[2]:  # where rounding decides on which side of the clamp a value lies, the slope is a matter of luck
    unclamped = np.abs(reference.bias_act(exact_x, exact_bias, *how[:2], None))
    clear = np.abs(unclamped - how[2]) > 0.03
    g, exact_g = g * jnp.asarray(clear, dtype), exact_g * clear
  y, slopes = value_and_slopes(bias_act, how, x, bias, g)
  their_y, their_slopes = value_and_slopes(plain, how, x, bias, g)
  oracle.check(y, their_y, reference.bias_act(exact_x, exact_bias, *how), dtype)
  oracle.check(slopes, their_slopes, reference.gradient(exact_g, exact_x, exact_bias, *how), dtype, gradient=True)
  assert [each.dtype for each in (y, *slopes)] == [dtype] * 3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_are_autodiffs(activation):
  (x, _), (bias, _) = oracle.normal(3, 4, 6), oracle.normal(4, 6)

  def penalty(function):
    def squares(x, bias):
      slopes = jax.grad(lambda *given: jnp.sin(function(*given, activation, 1.3, 1.1)).sum(), (0, 1))(x, bias)
      return sum((slope**2).sum() for slope in slopes)

    return jax.jit(jax.grad(squares, (0, 1)))(x, bias)

  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(near, penalty(bias_act), penalty(plain))


def test_gradients_are_numerical_ones():
  (x, _), (bias, _) = oracle.normal(3, 2, 3), oracle.normal(4, 3)
  function = jax.jit(lambda x, bias: bias_act(x, bias, "tanh", 1.3))
  check_grads(function, (x, bias), order=2, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


@pytest.mark.parametrize("activation", [name for name, each in ACTIVATIONS.items() if each.by_output])
def test_the_backward_pass_keeps_the_output_and_nothing_of_its_size_beside_it(activation):
  (x, _), (bias, _) = oracle.normal(3, 40, 6), oracle.normal(4, 6)

  def kept(function):
    y, slope = jax.vjp(lambda x, bias: function(x, bias, activation, 1.3, 1.1), x, bias)
    large = [leaf for leaf in jax.tree.leaves(slope) if getattr(leaf, "size", 0) == y.size]
    return [leaf for leaf in large if not np.array_equal(leaf, y)]

  assert kept(bias_act) == []
  assert kept(plain) != []


def test_bfloat16_sums_its_biases_gradient_in_float32():
  x, bias = jnp.ones((1000, 2), jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
  gradient = jax.jit(jax.grad(lambda bias: bias_act(x, bias).astype(jnp.float32).sum()))(bias)
  np.testing.assert_array_equal(gradient.astype(jnp.float32), 1000)  # a bfloat16 sum of ones stops at 256


def test_a_clamp_that_bfloat16_rounds_is_known_again():
  x, bias = jnp.asarray([[-3.0, 0.5, 3.0]], jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
  y, slope = jax.vjp(lambda x: bias_act(x, bias, clamp=0.9), x)
  np.testing.assert_array_equal(y, jnp.asarray([[-0.9, 0.5, 0.9]], jnp.bfloat16))
  np.testing.assert_array_equal(slope(jnp.ones_like(x))[0], jnp.asarray([[0, 1, 0]], jnp.bfloat16))


def slopes_of(x, bias):
  return jax.grad(lambda x, bias: (bias_act(x, bias, "leaky_relu", 1.4, 2.0) ** 2).sum(), (0, 1))(x, bias)


def test_under_vmap_remat_and_sharded_it_is_the_same(mesh):
  (x, _), (bias, _) = oracle.normal(3, 16, 4, 6), oracle.normal(4, 6)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  expected = jax.jit(slopes_of)(x, bias)
  wide = jnp.stack([x, 2 * x], axis=2)
  jax.tree.map(lambda a, b: near(a[0], b), jax.jit(jax.vmap(slopes_of, in_axes=(2, None)))(wide, bias), expected)
  remat = jax.checkpoint(lambda x, bias: (bias_act(x, bias, "leaky_relu", 1.4, 2.0) ** 2).sum())
  jax.tree.map(near, jax.jit(jax.grad(remat, (0, 1)))(wide[:, :, 0], bias), expected)
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((mesh.axis_names[0],), ()))
  program = jax.jit(slopes_of, out_shardings=(rows, whole)).lower(jax.device_put(x, rows), jax.device_put(bias, whole))
  program = program.compile()
  for move in ("all-gather", "all-to-all", "collective-permute"):
    assert move not in program.as_text()
  jax.tree.map(near, program(jax.device_put(x, rows), jax.device_put(bias, whole)), expected)


@pytest.mark.parametrize(
  ("options", "message"),
  [({"activation": "elu"}, "no activation 'elu'"), ({"gain": 0.0}, "gain 0.0"), ({"clamp": -1.0}, "clamp -1.0")],
)
def test_what_it_does_not_have_is_said(options, message):
  with pytest.raises(ValueError, match=message):
    bias_act(jnp.zeros((2, 3)), jnp.zeros(3), **options)
