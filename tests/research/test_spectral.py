"""Spectral normalisation against numpy's singular values and the gradient worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import spectral


@pytest.fixture
def params():
  random = np.random.default_rng(0)
  return {
    "conv": {"kernel": jnp.asarray(random.normal(size=(3, 3, 4, 5)), jnp.float32), "bias": jnp.arange(5.0)},
    "head": {"kernel": jnp.asarray(random.normal(size=(7, 1)), jnp.float32)},
    "scale": jnp.float32(3.0),
  }


def largest(kernel):
  return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def test_kernels_end_with_a_largest_singular_value_of_one(params):
  vectors = spectral.init_vectors(params, jax.random.key(0))
  for _ in range(100):  # one iteration an update, as in training
    normal, vectors = spectral.normalise(params, vectors)
  for name in ("conv", "head"):
    np.testing.assert_allclose(largest(normal[name]["kernel"]), 1.0, rtol=1e-4)
    ratio = params[name]["kernel"] / normal[name]["kernel"]
    np.testing.assert_allclose(ratio, np.full(ratio.shape, largest(params[name]["kernel"])), rtol=1e-4)


def test_biases_and_scalars_are_left_alone(params):
  normal, vectors = spectral.normalise(params, spectral.init_vectors(params, jax.random.key(0)))
  np.testing.assert_array_equal(normal["conv"]["bias"], params["conv"]["bias"])
  assert normal["scale"] == params["scale"]
  assert vectors["conv"]["bias"] is None
  assert vectors["scale"] is None


def test_no_iteration_changes_no_vector(params):
  vectors = spectral.init_vectors(params, jax.random.key(0))
  _, same = spectral.normalise(params, vectors, steps=0)
  jax.tree.map(np.testing.assert_array_equal, same, vectors)
  _, newer = spectral.normalise(params, vectors, steps=1)
  assert not np.array_equal(newer["conv"]["kernel"], vectors["conv"]["kernel"])
  assert float(jnp.linalg.norm(newer["conv"]["kernel"])) == pytest.approx(1.0, abs=1e-5)


def test_the_gradient_is_the_papers(params):
  """∂⟨G, W/σ⟩/∂W = (G − ⟨G, W/σ⟩ v uᵀ) / σ, Miyato et al. 2018, equation 12."""
  vectors = spectral.init_vectors(params, jax.random.key(0))
  for _ in range(100):
    _, vectors = spectral.normalise(params, vectors)
  g = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 4, 5)), jnp.float32)
  found = jax.grad(lambda p: (spectral.normalise(p, vectors)[0]["conv"]["kernel"] * g).sum())(params)["conv"]["kernel"]
  w, wide_g = (np.asarray(x, np.float64).reshape(-1, 5) for x in (params["conv"]["kernel"], g))
  v, s, ut = np.linalg.svd(w, full_matrices=False)
  expected = (wide_g - (wide_g * w).sum() / s[0] * np.outer(v[:, 0], ut[0])) / s[0]
  np.testing.assert_allclose(found.reshape(-1, 5), expected, rtol=1e-3, atol=1e-4)


def test_vectors_differ_between_kernels_of_one_shape():
  kernel = jnp.ones((4, 6))
  vectors = spectral.init_vectors({"a": {"kernel": kernel}, "b": {"kernel": kernel}}, jax.random.key(0))
  assert not np.allclose(vectors["a"]["kernel"], vectors["b"]["kernel"])
