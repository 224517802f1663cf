"""The greatest values over a text and their gradients, against the definition, and against autodiff of a plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels.max_over_time import cpu, greatest, input_gradient, reference, value, weight_gradient, xla

CASES = {
  "3 words": (4, 9, 5, 3, 6),
  "even": (2, 7, 3, 4, 5),
  "one word": (2, 5, 3, 1, 4),
  "text shorter": (3, 2, 4, 5, 3),
}


def arrays(case, dtype=jnp.float32):
  """x_BLD, kernel_KDF, g_BF, real_BL (a beginning of each text), place_BF."""
  batch, length, width, window, filters = CASES[case]
  random = np.random.default_rng(0)
  shapes = [(batch, length, width), (window, width, filters), (batch, filters)]
  numbers = [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]
  real_BL = jnp.arange(length)[None] < jnp.asarray(random.integers(1, length + 1, (batch, 1)))
  return *numbers, real_BL, jnp.asarray(random.integers(0, length, (batch, filters)), jnp.int32)


def plain(x_BLD, kernel_KDF, real_BL):
  """The same, left to autodiff."""
  window, length = kernel_KDF.shape[0], x_BLD.shape[1]
  padded_BLD = jnp.pad(x_BLD, ((0, 0), ((window - 1) // 2, window // 2), (0, 0)))
  y_BLF = sum(padded_BLD[:, k : k + length] @ kernel_KDF[k] for k in range(window))
  return jnp.where(real_BL[..., None], y_BLF, -1e30).max(axis=1)


@pytest.mark.parametrize("case", CASES)
def test_all_operations_are_their_definition(case):
  x, kernel, g, real_BL, place = arrays(case)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
  close(jax.jit(greatest)(x, kernel, real_BL), reference.greatest(x, kernel, real_BL))
  close(jax.jit(value)(x, kernel, place), reference.value(x, kernel, place))
  for module in (cpu, xla):
    length, window = x.shape[1], kernel.shape[0]
    found = jax.jit(lambda g, w, p, form=module, n=length: form.input_gradient(g, w, p, n))(g, kernel, place)
    close(found, reference.input_gradient(g, kernel, place, length))
    found = jax.jit(lambda x, g, p, form=module, n=window: form.weight_gradient(x, g, p, n))(x, g, place)
    close(found, reference.weight_gradient(x, g, place, window))


@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives_are_autodiffs(case):
  x, kernel, _, real_BL, _ = arrays(case)

  def penalty(function):
    def squared(x, w):
      gradients = jax.grad(lambda x, w: jnp.sin(function(x, w, real_BL)).sum(), (0, 1))(x, w)
      return sum((gradient**2).sum() for gradient in gradients), gradients

    return jax.jit(jax.grad(squared, (0, 1), has_aux=True))(x, kernel)

  ours, theirs = penalty(greatest), penalty(plain)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, theirs)


def test_each_operations_derivatives_are_the_other_two():
  x, kernel, g, _, place = arrays("even")
  form = lambda x, w, g: (g * value(x, w, place)).sum()  # noqa: E731
  ours = jax.jit(jax.grad(form, (0, 1, 2)))(x, kernel, g)
  by_input = lambda x, w, g: (x * input_gradient(g, w, place, x.shape[1])).sum()  # noqa: E731
  by_weight = lambda x, w, g: (w * weight_gradient(x, g, place, w.shape[0])).sum()  # noqa: E731
  for other in (by_input, by_weight):
    theirs = jax.jit(jax.grad(other, (0, 1, 2)))(x, kernel, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_of_places_that_tie_the_first_has_the_gradient():
  x = jnp.ones((1, 4, 1))
  gradient = jax.jit(jax.grad(lambda x: greatest(x, jnp.ones((1, 1, 2)), jnp.ones((1, 4), bool)).sum()))(x)
  np.testing.assert_array_equal(gradient[0, :, 0], [2, 0, 0, 0])


def test_no_text_has_no_gradient():
  x, kernel, _, real_BL, _ = arrays("3 words")
  real_BL = real_BL.at[1].set(False)
  values_BF = jax.jit(greatest)(x, kernel, real_BL)
  assert (values_BF[1] == jnp.finfo(jnp.float32).min).all()
  gradient = jax.jit(jax.grad(lambda x: greatest(x, kernel, real_BL).sum()))(x)
  assert not gradient[1].any()
  assert gradient[0].any()


def test_bfloat16_sums_in_float32():
  x, g = jnp.ones((512, 2, 1), jnp.bfloat16), jnp.ones((512, 1), jnp.bfloat16)
  place = jnp.zeros((512, 1), jnp.int32)
  found = jax.jit(lambda x, g: weight_gradient(x, g, place, 1))(x, g)
  assert found.dtype == jnp.bfloat16
  assert float(found[0, 0, 0]) == 512  # bfloat16 alone stays at 256: 256 + 1 = 256


def test_only_a_cpu_reads_windows():
  x, _, g, _, place = arrays("3 words")
  program = jax.jit(lambda x, g: weight_gradient(x, g, place, 3)).trace(x, g)
  assert "gather" in program.lower(lowering_platforms=("cpu",)).as_text()
  assert "gather" not in program.lower(lowering_platforms=("tpu",)).as_text()


def test_a_sharded_batch_stays_where_it_is():
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))  # noqa: E731
  random = np.random.default_rng(0)
  x, kernel = jnp.asarray(random.normal(size=(16, 6, 3)), jnp.float32), jnp.ones((3, 3, 4))
  real_BL = jnp.ones((16, 6), bool)
  gradients = jax.grad(lambda w, x, real: jnp.sin(greatest(x, w, real)).sum(), (0, 1))
  arguments = [jax.device_put(a, place(*axes)) for a, axes in ((kernel, ()), (x, ("batch",)), (real_BL, ("batch",)))]
  compiled = jax.jit(gradients, out_shardings=(place(), place("batch"))).lower(*arguments).compile()
  for move in ("all-gather", "all-to-all", "collective-permute"):
    assert move not in compiled.as_text()
  expected = jax.jit(gradients)(kernel, x, real_BL)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), compiled(*arguments), expected)
