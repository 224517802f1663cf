"""Resampling against its definition, scipy's along an axis, and XLA's dilated convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from research.kernels import choice
from research.kernels.upfirdn2d import reference, upfirdn2d
from research.kernels.upfirdn2d.resampling import Resampling
from tests.research.kernels import oracle

BLUR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
OBLONG = ((0.1, -0.4, 0.3), (0.2, 0.5, -0.7))
CASES = {
  # image, filter, up, down, pads
  "twice as large": ((5, 7), BLUR, (2, 2), (1, 1), ((2, 1), (2, 1))),
  "half as large": ((8, 6), BLUR, (1, 1), (2, 2), ((1, 1), (1, 1))),
  "a blur": ((5, 4), BLUR, (1, 1), (1, 1), ((2, 1), (2, 1))),
  "two thirds, no outer product": ((7, 6), OBLONG, (2, 2), (3, 3), ((1, 2), (2, 0))),
  "rows and columns apart": ((6, 5), OBLONG, (3, 1), (2, 4), ((2, 0), (1, 3))),
  "cut": ((9, 8), (0.3, 0.5, -0.2), (1, 2), (2, 1), ((-2, 1), (0, -3))),
  "a filter shorter than the zeros": ((3, 4), (2.0, 1.0), (3, 3), (1, 1), ((0, 0), (1, 1))),
  "one pixel, one number": ((1, 1), (0.5,), (1, 1), (1, 1), ((0, 0), (0, 0))),
}


def by(form, x, g, how):
  y, slope = jax.jit(lambda x, g: (lambda y, slope: (y, slope(g)[0]))(
    *jax.vjp(lambda x: upfirdn2d(x, *how, form=form), x)
  ))(x, g)  # fmt: skip
  return y, slope


@pytest.mark.parametrize(
  ("case", "dtype"),
  [(case, "float32") for case in CASES.values()] + [(CASES["twice as large"], "bfloat16")],
  ids=[*CASES, "twice as large in bfloat16"],
)
def test_it_is_its_definition_as_nearly_as_xla_is(case, dtype):
  image, *how = case
  x, exact = oracle.normal(0, 2, *image, 3, dtype=dtype)
  values = reference.upfirdn2d(exact, *how)
  g, exact_g = oracle.normal(1, *values.shape, dtype=dtype)
  (ours, to_x), (theirs, to_x_theirs) = (by(form, x, g, how) for form in ("cpu", "xla"))
  oracle.check(ours, theirs, values, dtype)
  oracle.check(to_x, to_x_theirs, reference.gradient(exact_g, image, *how), dtype, gradient=True)
  assert ours.dtype == to_x.dtype == dtype


def test_along_an_axis_it_is_scipys():
  x, exact = oracle.normal(0, 1, 9, 1, 1)
  found = jax.jit(lambda x: upfirdn2d(x, [[1.0], [2.0], [-3.0], [0.5]], (3, 1), (2, 1), ((3, 3), (0, 0))))(x)
  expected = scipy.signal.upfirdn([1.0, 2.0, -3.0, 0.5], exact.ravel(), up=3, down=2)
  np.testing.assert_allclose(found.ravel()[: len(expected)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["cpu", "xla"])
def test_it_differentiates_any_number_of_times(form):
  image, *how = CASES["two thirds, no outer product"]
  x, _ = oracle.normal(0, 1, *image, 1)
  function = jax.jit(lambda x: jnp.sin(upfirdn2d(x, *how, form=form)))
  check_grads(function, (x,), order=2, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


def squares(x):
  return jax.grad(lambda x: jnp.sin(upfirdn2d(x, BLUR, (2, 2), (1, 1), ((2, 1), (2, 1)))).sum())(x)


def test_under_vmap_remat_and_of_a_view_it_is_the_same():
  x, _ = oracle.normal(0, 3, 5, 4, 6)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  expected = jax.jit(squares)(x)
  wide = jnp.stack([x, 2 * x], axis=2)
  near(jax.jit(jax.vmap(squares, in_axes=2))(wide)[0], expected)
  near(jax.jit(squares)(wide[:, :, 0]), expected)
  remat = jax.checkpoint(lambda x: jnp.sin(upfirdn2d(x, BLUR, (2, 2), (1, 1), ((2, 1), (2, 1)))).sum())
  near(jax.jit(jax.grad(remat))(x), expected)


def test_a_sharded_batch_stays_where_it_is(mesh):
  x, _ = oracle.normal(0, 16, 5, 4, 3)
  part = PartitionSpec(mesh.axis_names[0])
  sharded = jax.device_put(x, NamedSharding(mesh, part))
  program = jax.jit(squares, out_shardings=NamedSharding(mesh, part)).lower(sharded).compile()
  for move in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
    assert move not in program.as_text()
  expected = jax.jit(squares)(x)
  np.testing.assert_allclose(program(sharded), expected, rtol=1e-5, atol=1e-6)
  apart = jax.jit(jax.shard_map(squares, mesh=mesh, in_specs=part, out_specs=part))(sharded)
  np.testing.assert_allclose(apart, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("up", "down", "each"), [(2, 1, 2), (1, 2, 4), (4, 1, 1), (4, 2, 1), (3, 2, 4 / 3)])
def test_no_zero_between_pixels_is_multiplied(up, down, each):
  """Of a filter of four, as many numbers meet a pixel, on average over the outputs."""
  for one in Resampling((9, 9), BLUR, (up, up), (down, down), ((2, 1), (2, 1))).passes:
    along = max(one.phases, key=lambda axis: axis.phases * axis.taps)
    assert (along.numbers >= 0).sum() / along.phases == pytest.approx(each)
    assert along.taps <= -(-len(BLUR) // up) + max(1, down - 1)


def test_only_a_cpu_shifts_and_adds_and_a_long_filter_of_two_axes_is_left_to_the_compiler():
  x = jnp.zeros((1, 6, 6, 2))
  program = jax.jit(lambda x: upfirdn2d(x, BLUR, (2, 2), (1, 1), ((2, 1), (2, 1)))).trace(x)
  for platform, theirs in (("cpu", False), ("tpu", True), ("cuda", True)):
    assert ("stablehlo.convolution" in program.lower(lowering_platforms=(platform,)).as_text()) == theirs
  for numbers, form in ((np.ones((13, 13)), "xla"), (np.ones(40), "cpu")):
    with choice.recording() as found:
      jax.eval_shape(lambda x, f=numbers: upfirdn2d(x, f, pads=((20, 20), (20, 20))), x)
    assert found == {"upfirdn2d": form}


@pytest.mark.parametrize(
  ("filter", "options", "message"),
  [
    (np.ones((2, 2, 2)), {}, r"a filter of shape \(2, 2, 2\)"),
    ([], {}, r"a filter of shape \(0,\)"),
    (np.ones(5), {}, r"nothing is left of \(4, 4\)"),
    (np.ones(2), {"down": (0, 1)}, "nothing is left"),
  ],
)
def test_what_it_does_not_resample_is_said(filter, options, message):
  with pytest.raises(ValueError, match=message):
    upfirdn2d(jnp.zeros((1, 4, 4, 1)), filter, **options)
