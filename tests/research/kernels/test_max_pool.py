"""Max-pooling against its definition in float64 and XLA's own, ties and edges included."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.kernels import choice
from research.kernels.max_pool import max_pool, reference
from tests.research.kernels import oracle

NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))
CASES = {
  # image, window, strides, pads
  "2x2": ((6, 4), (2, 2), (2, 2), NONE),
  "2x2, a row and a column left over": ((7, 5), (2, 2), (2, 2), NONE),
  "a ResNet's": ((9, 8), (3, 3), (2, 2), ONE),
  "stride 1": ((5, 6), (3, 2), (1, 1), ((1, 1), (0, 1))),
  "uneven": ((8, 11), (5, 3), (2, 3), ((2, 4), (0, 2))),
  "pixels between windows": ((9, 7), (2, 1), (3, 2), NONE),
  "one pixel, and pads": ((1, 1), (3, 3), (2, 2), ONE),
  "one window": ((5, 3), (5, 3), (1, 1), NONE),
}
PLAIN = ("a ResNet's", "uneven", "2x2, a row and a column left over")


def arrays(case, dtype, ties):
  """x, g and the same in float64; with `ties` x is one of five numbers."""
  image, window, strides, pads = case
  x, exact = oracle.normal(0, 2, *image, 3, dtype=dtype)
  if ties:
    x, exact = jnp.round(x), np.round(exact)
  g, exact_g = oracle.normal(1, *reference.max_pool(exact, window, strides, pads).shape, dtype=dtype)
  return x, g, exact, exact_g


def by(form, x, g, how):
  y, slope = jax.vjp(jax.jit(lambda x: max_pool(x, *how, form=form)), x)
  return y, slope(g)[0]


@pytest.mark.parametrize(("dtype", "ties"), [("float32", True), ("float32", False), ("bfloat16", True)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_its_definition_as_nearly_as_xla_is(case, dtype, ties):
  x, g, exact, exact_g = arrays(case, dtype, ties)
  how = case[1:]
  (ours, to_x), (theirs, to_x_theirs) = (by(form, x, g, how) for form in ("cpu", "xla"))
  values, slopes = reference.max_pool(exact, *how), reference.gradient(exact_g, exact, *how)
  np.testing.assert_array_equal(np.asarray(ours, np.float64), values)
  np.testing.assert_array_equal(np.asarray(theirs, np.float64), values)
  oracle.check(to_x, to_x_theirs, slopes, dtype, gradient=True)
  assert ours.dtype == to_x.dtype == dtype


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("form", ["cpu", "xla"])
def test_second_derivatives_are_autodiffs_of_flaxs(name, form):
  image, window, strides, pads = CASES[name]
  x, _ = oracle.normal(3, 2, *image, 3)

  def penalty(pool):
    slope = lambda x: jax.grad(lambda x: jnp.sin(pool(x)).sum())(x)  # noqa: E731
    return jax.jit(jax.grad(lambda x: (slope(x) ** 3).sum()))(x)

  found = penalty(lambda x: max_pool(x, window, strides, pads, form=form))
  expected = penalty(lambda x: nn.max_pool(x, window, strides=strides, padding=pads))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["cpu", "xla"])
def test_of_values_that_tie_the_first_has_the_second_derivative_too(form):
  slope = jax.grad(lambda x: (max_pool(x, (2, 2), (2, 2), form=form) ** 3).sum())
  found = jax.jit(jax.grad(lambda x: slope(x).sum()))(jnp.ones((1, 2, 2, 1)))
  np.testing.assert_array_equal(found.ravel(), [6, 0, 0, 0])


def test_forward_and_backward_choose_apart():
  x, g, _, _ = arrays(CASES["a ResNet's"], "float32", True)
  expected = by("cpu", x, g, CASES["a ResNet's"][1:])
  for forward, backward in (("xla", "cpu"), ("cpu", "xla")):
    with choice.use(**{"max_pool": forward, "max_pool.gradient": backward}), choice.recording() as found:
      mixed = by(None, x, g, CASES["a ResNet's"][1:])
    assert found == {"max_pool": forward, "max_pool.gradient": backward}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), mixed, expected)


def test_under_vmap_remat_and_of_a_view_it_is_the_same():
  _, window, strides, pads = CASES["a ResNet's"]
  x, _ = oracle.normal(0, 2, 3, 9, 8, 5)
  slopes = jax.grad(jax.checkpoint(lambda x: (max_pool(x, window, strides, pads) ** 2).sum()))
  near = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  alone = jnp.stack([jax.jit(slopes)(each) for each in x])
  near(jax.jit(jax.vmap(slopes))(x), alone)
  turned = jnp.asarray(np.asarray(x).transpose(4, 0, 1, 2, 3).copy().transpose(1, 2, 3, 4, 0))
  near(jax.jit(slopes)(turned[0]), alone[0])


def test_a_sharded_batch_stays_where_it_is(mesh):
  x, _ = oracle.normal(0, 16, 6, 6, 3)
  part = PartitionSpec(mesh.axis_names[0])
  slopes = jax.grad(lambda x: (max_pool(x, (3, 3), (2, 2), ONE) ** 2).sum())
  sharded = jax.device_put(x, NamedSharding(mesh, part))
  program = jax.jit(slopes, out_shardings=NamedSharding(mesh, part)).lower(sharded).compile()
  for move in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
    assert move not in program.as_text()
  expected = jax.jit(slopes)(x)
  np.testing.assert_allclose(program(sharded), expected, rtol=1e-6)
  apart = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=part, out_specs=part))(sharded)
  np.testing.assert_allclose(apart, expected, rtol=1e-6)


def test_a_nan_is_not_lost():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(jnp.nan)
  for form in ("cpu", "xla"):
    np.testing.assert_array_equal(jnp.isnan(max_pool(x, (2, 2), (2, 2), form=form)).ravel(), [0, 1, 0, 0])


def test_the_gradient_keeps_no_image_where_places_are_enough():
  x = jax.ShapeDtypeStruct((8, 32, 32, 16), jnp.float32)

  def temporaries(form):
    """Of a gradient to what the pooling reads, beside which nothing needs it."""
    def loss(w, x):
      return jnp.sin(max_pool(jnp.sin(x) * w, (3, 3), (2, 2), ONE, form=form)).sum()

    return jax.jit(jax.grad(loss)).lower(jnp.float32(1.0), x).compile().memory_analysis().temp_size_in_bytes

  assert temporaries("cpu") < 0.6 * temporaries("xla")


def test_the_places_are_computed_once():
  """XLA's fusions would compare again for every pixel of a window."""
  x = jnp.ones((16, 16, 16, 8))
  slopes = jax.jit(jax.value_and_grad(lambda x: (max_pool(jnp.maximum(x, 0.0), (2, 2), (2, 2)) ** 2).sum()))
  entry = slopes.lower(x).compile().as_text().partition("\nENTRY ")[2]
  shapes = [tuple(map(int, shape.split(","))) for shape in re.findall(r"u8\[([\d,]+)\]", entry)]
  assert 16 * 8 * 8 * 8 in map(math.prod, shapes)


def test_a_tpu_keeps_select_and_scatter_and_nobody_else():
  program = jax.jit(jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())).trace(jnp.zeros((2, 4, 4, 3)))
  for platform, theirs in (("cpu", False), ("cuda", False), ("tpu", True)):
    assert ("select_and_scatter" in program.lower(lowering_platforms=(platform,)).as_text()) == theirs


@pytest.mark.parametrize(
  ("x", "how", "message"),
  [
    (jnp.zeros((4, 4, 1)), ((2, 2), (2, 2)), r"floats \(B, H, W, C\), not float32\[4, 4, 1\]"),
    (jnp.zeros((1, 4, 4, 1), jnp.int32), ((2, 2), (2, 2)), "not int32"),
    (jnp.zeros((1, 4, 4, 1)), ((2, 2), (2, 2), ((2, 0), (0, 0))), "not smaller than the window"),
    (jnp.zeros((1, 4, 4, 1)), ((5, 2), (2, 2)), r"no windows \(5, 2\)"),
    (jnp.zeros((1, 40, 40, 1)), ((16, 16), (1, 1)), r"no windows \(16, 16\)"),
  ],
)
def test_what_it_does_not_pool_is_said(x, how, message):
  with pytest.raises(ValueError, match=message):
    max_pool(x, *how)
