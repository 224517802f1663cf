"""Autoencoders' sizes by hand and the shapes that they refuse; likelihoods and KL against scipy and float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from research.errors import UserError
from research.models.autoencoder import LIKELIHOODS, Autoencoder, expected_value, gaussian_kl, log_likelihood
from research.models.table import parameter_count

VOCABULARY = {"features", "embed", "mlp", "conv_in", "conv_out", "channels", None}
MODELS = {
  "table": ({"shape": (5,), "latent": 2, "widths": (4, 3)}, (5,)),
  "table with a mask": ({"shape": (5,), "latent": 2, "widths": (4,)}, (10,)),
  "linear": ({"shape": (4, 6, 1), "latent": 2, "widths": ()}, (4, 6, 1)),
  "conv": ({"shape": (8, 12, 3), "latent": 5, "widths": (4, 6), "network": "conv"}, (8, 12, 3)),
  "conv with a mask": ({"shape": (8, 8, 1), "latent": 5, "widths": (4,), "network": "conv"}, (8, 8, 2)),
  "conv, code an image": ({"shape": (8, 12, 3), "latent": 0, "widths": (4, 6), "network": "conv"}, (8, 12, 3)),
}


def boxed(fields, shape):
  model = Autoencoder(**fields)
  return model, jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, *shape))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_what_goes_in_comes_out_in_float32_with_named_axes(name, dtype):
  fields, shape = MODELS[name]
  model, variables = boxed({**fields, "dtype": dtype}, shape)
  model.check(fields["shape"])
  made = jax.eval_shape(model.apply, nn.unbox(variables), jax.ShapeDtypeStruct((3, *shape), jnp.float32))
  assert made.shape == (3, *fields["shape"])
  assert made.dtype == jnp.float32
  boxes = jax.tree.leaves(variables["params"], is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
  for box in boxes:
    assert len(box.names) == box.value.ndim
    assert set(box.names) <= VOCABULARY
    named = [axis for axis in box.names if axis is not None]
    assert len(set(named)) == len(named)
    assert box.value.dtype == jnp.float32


def test_parameters_are_the_hand_count():
  _, dense = boxed({"shape": (28, 28, 1), "latent": 50, "widths": (300, 200), "posterior": True}, (28, 28, 1))
  encoder = (784 * 300 + 300) + (300 * 200 + 200) + (200 * 100 + 100)
  decoder = (50 * 200 + 200) + (200 * 300 + 300) + (300 * 784 + 784)
  assert parameter_count(nn.unbox(dense)["params"]) == encoder + decoder

  _, conv = boxed({"shape": (8, 8, 1), "latent": 5, "widths": (4, 6), "network": "conv"}, (8, 8, 1))
  encoder = (16 * 1 * 4 + 4) + (16 * 4 * 6 + 6) + (2 * 2 * 6 * 5 + 5)
  decoder = (5 * 2 * 2 * 6 + 2 * 2 * 6) + (16 * 6 * 4 + 4) + (16 * 4 * 1 + 1)
  assert parameter_count(nn.unbox(conv)["params"]) == encoder + decoder


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    ({"network": "conv", "widths": (4, 4)}, (15, 15, 1), "15x15 cannot be halved 2 times; --model.network=mlp takes"),
    ({"network": "conv", "widths": (4, 4, 4)}, (28, 28, 1), "cannot be halved 3 times; at most 2 widths do"),
    ({"network": "conv", "widths": (4, 4)}, (8, 6, 1), "8x6 cannot be halved 2 times; at most 1 widths do"),
    ({"network": "conv"}, (30,), r"needs images, not \(30,\)"),
    ({"network": "conv", "widths": ()}, (8, 8, 1), "at least one"),
    ({"latent": 0}, (8, 8, 1), "needs --model.network=conv"),
  ],
)
def test_what_does_not_fit_is_the_users_error(fields, shape, message):
  with pytest.raises(UserError, match=message):
    Autoencoder(shape=shape, **fields).check(shape)


def test_kl_is_the_float64_monte_carlo_mean_and_zero_at_the_prior():
  random = np.random.default_rng(0)
  mean_BZ, log_variance_BZ = random.normal(size=(3, 4)), random.normal(0, 1.5, size=(3, 4))
  found_B = np.asarray(gaussian_kl(jnp.asarray(mean_BZ, jnp.float32), jnp.asarray(log_variance_BZ, jnp.float32)))
  deviation_BZ = np.exp(0.5 * log_variance_BZ)
  noise_NBZ = random.normal(size=(100_000, 3, 4))
  z_NBZ = mean_BZ + deviation_BZ * noise_NBZ
  draws_NB = (0.5 * (z_NBZ**2 - noise_NBZ**2) - np.log(deviation_BZ)).sum(axis=2)  # log q(z) − log p(z)
  error_B = draws_NB.std(axis=0) / np.sqrt(len(draws_NB))
  assert (np.abs(found_B - draws_NB.mean(axis=0)) < 4 * error_B).all()
  np.testing.assert_array_equal(gaussian_kl(jnp.zeros((2, 3)), jnp.zeros((2, 3))), 0)
  tiny = gaussian_kl(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3))  # σ² − 1 − log σ² ≈ ½ (log σ²)², which must not cancel
  assert float(tiny[0]) == pytest.approx(2.5e-7, rel=1e-2)


LOGITS = np.array([-60.0, -8, -1.5, -0.031, -0.029, -1e-4, 0, 1e-6, 0.02, 0.035, 0.7, 5, 40])


@functools.partial(jax.jit, static_argnums=0)
def of_each(kind, outputs_N1, x_N1, log_sigma):
  """(log-likelihoods, their gradient by the outputs, expected values); compiled: quicker than op by op."""
  total = lambda outputs: log_likelihood(kind, outputs, x_N1, log_sigma).sum()  # noqa: E731
  values = log_likelihood(kind, outputs_N1, x_N1, log_sigma)
  return values, jax.grad(total)(outputs_N1), expected_value(kind, outputs_N1)


def likelihoods(kind, outputs, x, log_sigma=0.0):
  """One value an example, so that each can be compared."""
  outputs, x = (np.asarray(a, np.float32).reshape(-1, 1) for a in np.broadcast_arrays(outputs, x))
  return [np.asarray(each, np.float64) for each in of_each(kind, outputs, x, np.float32(log_sigma))]


@pytest.mark.parametrize("x", [0, 1])
def test_bernoulli_is_scipys(x):
  found = likelihoods("bernoulli", LOGITS, x)[0]
  expected = stats.bernoulli.logpmf(x, special.expit(LOGITS[1:-1]))
  np.testing.assert_allclose(found[1:-1], expected, rtol=1e-5)
  np.testing.assert_allclose(found[[0, -1]], [[0, -40], [-60, 0]][x], atol=1e-5)  # where float64's p rounds to 0


def test_gaussian_is_scipys_and_sums_over_the_values():
  mean, x = np.array([0.1, -3, 2]), np.array([0.4, -3, 7])
  expected = stats.norm.logpdf(x, mean, 0.7)
  np.testing.assert_allclose(likelihoods("gaussian", mean, x, np.log(0.7))[0], expected, rtol=1e-5)
  together = log_likelihood("gaussian", *(jnp.asarray(a, jnp.float32).reshape(1, 3, 1) for a in (mean, x)))
  assert float(together[0]) == pytest.approx(stats.norm.logpdf(x, mean).sum(), rel=1e-6)


def test_continuous_bernoulli_is_a_density_of_its_mean():
  # In float64 by quadrature: ∝ exp(a·x) on [0, 1], here without the overflow.
  for place, logit in enumerate(LOGITS):
    def density(x, logit=logit):
      return np.exp(logit * x - max(logit, 0))

    total = integrate.quad(density, 0, 1, points=(0.02, 0.98))[0]
    mean = integrate.quad(lambda x: x * density(x) / total, 0, 1, points=(0.02, 0.98))[0]  # noqa: B023
    for x in (0.0, 0.3, 1.0):
      values, _, means = likelihoods("continuous_bernoulli", LOGITS, x)
      assert values[place] == pytest.approx(np.log(density(x) / total), rel=1e-6, abs=1e-5)
      assert means[place, 0] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_gradients_are_finite_and_an_exponential_familys(kind):
  _, gradient, mean = likelihoods(kind, LOGITS, 0.4)
  np.testing.assert_allclose(gradient, 0.4 - mean, atol=2e-5)
