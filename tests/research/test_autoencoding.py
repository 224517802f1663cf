"""The autoencoders' task: bounds against probabilistic PCA, errors against PCA, noise that belongs to an example."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from research.autoencoding import Noise, Variational, autoencoding, evaluation_keys, iwae_bound, summary
from research.errors import UserError
from research.models.autoencoder import Autoencoder
from research.task import State

KEY = jax.random.key(0)


def batch(size=24, shape=(4, 4, 1), mask=None, seed=0):
  random = np.random.default_rng(seed)
  return {
    "image" if len(shape) == 3 else "features": jnp.asarray(random.random((size, *shape)), jnp.float32),
    "mask": jnp.ones(size) if mask is None else jnp.asarray(mask, jnp.float32),
    "index": jnp.arange(size, dtype=jnp.int32),
  }


def task_of(kind="plain", shape=(4, 4, 1), **more):
  task = {
    "plain": {},
    "gaussian": {"noise": Noise("gaussian", sigma=0.3)},
    "masking": {"noise": Noise("masking", rate=0.4)},
    "missing": {"noise": Noise("missing", rate=0.4, fill=(0.5,))},
    "variational": {"variational": Variational(binarize=True, iwae_samples=3)},
  }[kind]
  model = Autoencoder(shape=shape, latent=3, widths=(6,), posterior=kind == "variational")
  return autoencoding(model, optax.sgd(0.1), **task, **more)


def state_of(task, data):
  """Parameters of numpy's noise: compiling an initialisation takes longer than all the rest of a test."""
  shapes = jax.eval_shape(task.init, KEY, data)
  random = np.random.default_rng(2)
  params = jax.tree.map(lambda s: jnp.asarray(random.normal(0, 0.3, s.shape), s.dtype), shapes.params)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes).replace(params=params)


def evaluated(task, state, data):
  return jax.device_get(jax.jit(task.evaluate)(state, data))


def rows(data, indices):
  return {name: value[jnp.asarray(indices)] for name, value in data.items()}


# A linear decoder with orthogonal columns: z ~ N(0, I) and x|z ~ N(Wz + b, σ²), so p(x) is normal with the covariance
# WWᵀ + σ², and the exact posterior is diagonal, of precision 1 + ‖w‖²/σ² (Tipping and Bishop 1999, section 3).
SIGMA = 0.6
DIRECTIONS_DZ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0] * [1.5, 0.8]
OFFSET_D = np.linspace(-1, 1, 5)
LINEAR = Autoencoder(shape=(5,), latent=2, widths=(), posterior=True)


def linear_params(shift=0.0, widen=0.0):
  """The exact posterior's encoder, or one whose means and log-variances are off."""
  precision_Z = 1 + (DIRECTIONS_DZ**2).sum(axis=0) / SIGMA**2
  to_mean_DZ = DIRECTIONS_DZ / SIGMA**2 / precision_Z
  encoder = {
    "kernel": np.concatenate([to_mean_DZ, np.zeros((5, 2))], axis=1),
    "bias": np.concatenate([shift - OFFSET_D @ to_mean_DZ, widen - np.log(precision_Z)]),
  }
  decoder = {"kernel": DIRECTIONS_DZ.T, "bias": OFFSET_D}
  params = {"encoder": {"code": encoder}, "decoder": {"head": decoder}}
  return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


def bounds(params, samples, x):
  """(ELBO_B, IWAE bound_B): one draw of each for every example."""
  variational = Variational("gaussian", sigma=SIGMA, iwae_samples=samples)
  task = autoencoding(LINEAR, optax.sgd(0.1), variational=variational)

  def both(x):
    keys_B = evaluation_keys(jnp.arange(len(x)))
    state = State(jnp.int32(0), params, None, {})
    alone = jax.vmap(lambda x, i: task.evaluate(state, {"features": x[None], "mask": jnp.ones(1), "index": i[None]}))
    return alone(x, jnp.arange(len(x)))["elbo"], iwae_bound(LINEAR, variational, params, x, keys_B)

  return [np.asarray(bound, np.float64) for bound in jax.jit(both)(jnp.asarray(x, jnp.float32))]


def test_with_the_exact_posterior_every_importance_weight_is_the_marginal_likelihood():
  x_BD = np.random.default_rng(1).normal(size=(6, 5)) * 2
  covariance = DIRECTIONS_DZ @ DIRECTIONS_DZ.T + SIGMA**2 * np.eye(5)
  expected = stats.multivariate_normal.logpdf(x_BD, OFFSET_D, covariance)
  np.testing.assert_allclose(bounds(linear_params(), 1, x_BD)[1], expected, rtol=1e-5)
  np.testing.assert_allclose(bounds(linear_params(), 7, x_BD)[1], expected, rtol=1e-5)


def test_elbo_is_below_the_iwae_bounds_and_they_below_the_marginal_likelihood():
  x_D, copies = np.array([0.3, -1.0, 2.0, 0.5, 0.0]), 4000
  shift, widen = 0.4, 0.7
  covariance = DIRECTIONS_DZ @ DIRECTIONS_DZ.T + SIGMA**2 * np.eye(5)
  log_marginal = stats.multivariate_normal.logpdf(x_D, OFFSET_D, covariance)
  elbo, few = bounds(linear_params(shift, widen), 5, np.tile(x_D, (copies, 1)))
  _, many = bounds(linear_params(shift, widen), 50, np.tile(x_D, (copies, 1)))
  # ELBO = log p(x) − KL(q ‖ posterior), both normal.
  precision_Z = 1 + (DIRECTIONS_DZ**2).sum(axis=0) / SIGMA**2
  gap = 0.5 * (shift**2 * precision_Z + np.exp(widen) - 1 - widen).sum()
  assert elbo.mean() == pytest.approx(log_marginal - gap, abs=4 * elbo.std() / np.sqrt(copies))
  errors = [4 * bound.std() / np.sqrt(copies) for bound in (elbo, few, many)]
  assert elbo.mean() + errors[0] < few.mean() - errors[1]
  assert few.mean() + errors[1] < many.mean() - errors[2]
  assert many.mean() < log_marginal + errors[2]
  assert many.mean() > log_marginal - 0.05


def trained(task, data, steps):
  def run(state, data):
    return jax.lax.fori_loop(0, steps, lambda i, state: task.step(state, data, jax.random.fold_in(KEY, i))[0], state)

  return jax.jit(run)(state_of(task, data), data)


def test_a_linear_one_with_a_learned_sigma_finds_probabilistic_pca():
  """The maximum likelihood of probabilistic PCA is the linear model's best ELBO (Lucas et al. 2019, theorem 1)."""
  from sklearn.decomposition import PCA

  random = np.random.default_rng(0)
  x_ND = random.normal(size=(200, 2)) @ random.normal(size=(2, 5)) + random.normal(size=(200, 5)) * 0.5
  data = {"features": jnp.asarray(x_ND, jnp.float32), "mask": jnp.ones(200), "index": jnp.arange(200)}
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 1000))
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam
    task = autoencoding(LINEAR, optimizer, variational=Variational("gaussian", sigma=0.0, iwae_samples=20))
    state = trained(task, data, 1000)
  found = task.summarize(evaluated(task, state, data))
  best = PCA(2).fit(x_ND).score(x_ND)  # −6.45
  assert found["elbo"] == pytest.approx(best, abs=0.1)  # of one draw of z for each of 200 examples
  assert found["iwae_bound"] == pytest.approx(best, abs=0.01)


def test_a_linear_one_reaches_the_error_of_pca_on_digits():
  from sklearn.datasets import load_digits
  from sklearn.decomposition import PCA

  x_ND = load_digits().data / 16
  pca = PCA(8).fit(x_ND)
  best = np.square(pca.inverse_transform(pca.transform(x_ND)) - x_ND).mean()
  model = Autoencoder(shape=(8, 8, 1), latent=8, widths=())
  data = {"image": jnp.asarray(x_ND.reshape(-1, 8, 8, 1), jnp.float32), "mask": jnp.ones(len(x_ND))}
  data["index"] = jnp.arange(len(x_ND))
  with jax.numpy_dtype_promotion("standard"):
    task = autoencoding(model, optax.adam(optax.cosine_decay_schedule(0.03, 1000)))
    state = trained(task, data, 1000)
  found = task.summarize(evaluated(task, state, data))
  assert 0.9999 * best < found["mse"] < 1.03 * best
  assert found["psnr"] == pytest.approx(-10 * np.log10(found["mse"]))


@pytest.mark.parametrize("kind", ["gaussian", "missing", "variational"])
def test_an_examples_noise_is_its_own_whatever_the_batches_and_devices(kind, mesh):
  task, data = task_of(kind), batch()
  state = state_of(task, data)
  whole = evaluated(task, state, data)
  assert int(whole["count"]) == 24
  parts = [evaluated(task, state, rows(data, part)) for part in (range(12, 24), range(12))]
  chex.assert_trees_all_close(whole, jax.tree.map(np.add, *parts), rtol=1e-5)
  chex.assert_trees_all_close(whole, evaluated(task, state, rows(data, range(23, -1, -1))), rtol=1e-5)
  spread = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
  chex.assert_trees_all_close(whole, evaluated(task, state, spread), rtol=1e-5)
  other = evaluated(task, state, {**data, "index": data["index"] + 24})
  assert abs(other["loss"] - whole["loss"]) > 1e-4 * abs(whole["loss"])


def test_gaussian_noise_has_its_deviation_and_loses_nothing():
  x = jnp.full((400, 6, 5, 3), 0.25)
  added, known = jax.jit(Noise("gaussian", sigma=0.3))(x, evaluation_keys(jnp.arange(400)))
  assert bool(known.all())
  assert float((added - x).std()) == pytest.approx(0.3, rel=0.02)
  assert float((added - x).mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("kind", "fill"), [("masking", (0.0, 0.0, 0.0)), ("missing", (1.0, 2.0, 3.0))])
def test_a_share_of_pixels_is_lost_with_all_channels(kind, fill):
  x = jnp.full((400, 6, 5, 3), 0.25)
  lost, known = jax.jit(Noise(kind, rate=0.2, fill=(1, 2, 3)))(x, evaluation_keys(jnp.arange(400)))
  assert known.shape == (400, 6, 5, 1)
  share = 1 - np.asarray(known).mean()
  assert share == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / known.size))
  np.testing.assert_array_equal(lost, np.where(known, np.full(3, 0.25), fill))


def test_columns_are_lost_one_by_one():
  noise = Noise("missing", rate=0.5, fill=(7.0, 8.0))
  columns, known = jax.jit(noise)(jnp.zeros((50, 2)), evaluation_keys(jnp.arange(50)))
  assert {tuple(row) for row in np.asarray(known).tolist()} == {(a, b) for a in (True, False) for b in (True, False)}
  np.testing.assert_array_equal(columns, np.where(known, 0.0, (7.0, 8.0)))


def test_errors_over_the_missing_values_are_the_hand_count():
  """A network whose output is zero, so that its errors are known."""
  task = task_of("missing", shape=(5,))
  data = batch(shape=(5,))
  state = jax.tree.map(jnp.zeros_like, task.init(KEY, data))
  found = task.summarize(evaluated(task, state, data))
  x = np.asarray(data["features"], np.float64)
  _, known = Noise("missing", rate=0.4)(data["features"], evaluation_keys(data["index"]))
  lost = ~np.asarray(known)
  assert found["missing_mse"] == pytest.approx(np.square(x[lost]).mean(), rel=1e-5)
  assert found["noisy_missing_mse"] == pytest.approx(np.square(x[lost] - 0.5).mean(), rel=1e-5)
  assert found["mse"] == found["loss"] == pytest.approx(np.square(x).mean(), rel=1e-5)
  assert found["noisy_mse"] == pytest.approx(np.square(x - 0.5)[lost].sum() / x.size, rel=1e-5)
  assert "psnr" not in found  # a table has no peak


def test_the_network_sees_what_is_missing():
  """Where the fill is what a value might be, only the mask tells them apart."""
  x = jnp.full((2, 3), 0.5)
  known = jnp.asarray([[True, True, True], [False, True, True]])
  model = Autoencoder(shape=(3,), latent=2, widths=())
  task = autoencoding(model, optax.sgd(0.1), noise=Noise("missing", rate=0.4, fill=(0.5,)))
  params = state_of(task, {"features": x, "mask": jnp.ones(2), "index": jnp.arange(2)}).params
  assert params["encoder"]["code"]["kernel"].shape == (6, 2)
  seen = model.apply({"params": params}, jnp.concatenate([x, known.astype(jnp.float32)], axis=1))
  assert float(jnp.abs(seen[0] - seen[1]).max()) > 1e-3


def test_decibels():
  found = summary({"count": 4, "loss": 0.04, "mse": 0.04, "noisy_mse": 0.36}, images=True)
  assert found["psnr"] == pytest.approx(20)
  assert found["noisy_psnr"] == pytest.approx(-10 * np.log10(0.3**2))
  assert found["gain_db"] == pytest.approx(10 * np.log10(9))
  assert found["gain_db"] == pytest.approx(found["psnr"] - found["noisy_psnr"])
  assert summary({"count": 1, "mse": 0.0}, images=True)["psnr"] == np.inf
  assert np.isnan(summary({"count": 1, "mse": np.nan}, images=True)["psnr"])
  assert summary({"count": 1, "mse": 0.1, "noisy_mse": 0.0}, images=True)["gain_db"] == -np.inf
  with pytest.raises(UserError, match="no examples"):
    summary({"count": 0, "mse": 0.0}, images=True)


@pytest.mark.parametrize("kind", ["missing", "variational"])
def test_masked_examples_count_for_nothing(kind):
  task = task_of(kind)
  data = batch(size=8)
  state = state_of(task, data)
  garbage = {**batch(size=8, mask=[1] * 5 + [0] * 3), "image": data["image"].at[5:].set(jnp.nan)}
  chex.assert_trees_all_close(evaluated(task, state, garbage), evaluated(task, state, rows(data, range(5))), rtol=1e-6)
  clean = {**garbage, "image": data["image"].at[5:].set(0.5)}
  stepped = jax.jit(task.step)
  chex.assert_trees_all_equal(stepped(state, {**clean, "image": data["image"]}, KEY), stepped(state, clean, KEY))


def test_accumulation_equals_the_large_batch():
  whole, parts = task_of(), task_of(micro_batches=3)
  state = state_of(whole, batch())
  data = batch(mask=[1] * 17 + [0] * 7)
  chex.assert_trees_all_close(jax.jit(whole.step)(state, data, KEY), jax.jit(parts.step)(state, data, KEY), rtol=1e-5)


def test_beta_weighs_the_objective_and_no_metric():
  plain, weighted = (
    autoencoding(
      Autoencoder(shape=(4, 4, 1), latent=3, widths=(), posterior=True), optax.sgd(1.0), variational=variational
    )
    for variational in (Variational(), Variational(beta=0.5, beta_steps=4))
  )
  state = state_of(plain, batch())
  stepped, told = jax.jit(plain.step)(state, batch(), KEY)
  assert float(told["loss"]) == pytest.approx(float(told["kl"] - told["reconstruction"]), rel=1e-6)
  for step, beta in ((0, 0.125), (1, 0.25), (3, 0.5), (100, 0.5)):
    other, weighed = jax.jit(weighted.step)(state.replace(step=jnp.int32(step)), batch(), KEY)
    assert float(weighed["beta"]) == pytest.approx(beta)
    assert float(weighed["loss"]) == pytest.approx(float(told["loss"]), rel=1e-6)
    # SGD of rate 1: updates are gradients, and reconstruction's and KL's add up.
    change = [jax.tree.map(jnp.subtract, new.params, state.params) for new in (stepped, other)]
    kl = jax.tree.map(lambda a, b, beta=beta: (a - b) / (1 - beta), *change)
    if step == 0:
      first = kl
    chex.assert_trees_all_close(kl, first, rtol=1e-3, atol=1e-4)
  assert evaluated(plain, state, batch())["loss"] == evaluated(weighted, state, batch())["loss"]


def test_evaluation_uses_the_average_where_there_is_one():
  task = task_of(ema_decay=0.5)
  state = state_of(task, batch())
  for step in range(4):
    state, _ = jax.jit(task.step)(state, batch(), jax.random.fold_in(KEY, step))
  as_params = evaluated(task_of(), state.replace(params=state.extra["ema"], extra={}), batch())["loss"]
  without = evaluated(task_of(), state.replace(extra={}), batch())["loss"]
  assert evaluated(task, state, batch())["loss"] == as_params != without


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("plain", {"samples": (8, 8)}),  # 4 blocks of a clean row and its reconstruction
    ("gaussian", {"samples": (6, 8)}),  # 2 blocks of clean, noisy, reconstruction
    ("variational", {"samples": (64,), "reconstructions": (6, 8), "interpolation": (4, 8)}),
  ],
)
def test_pictures(kind, expected):
  examples = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 1)).astype(np.uint8)
  task = task_of(kind, examples=examples)
  state = state_of(task, batch())
  made = task.sample(state, KEY, 64)
  assert next(iter(made)) == "samples"  # what a film is made of
  assert made.keys() == expected.keys()
  for name, images in made.items():
    assert images.shape == (*expected[name], 4, 4, 1)
    assert images.min() >= 0
    assert images.max() <= 1
  chex.assert_trees_all_equal(made, task.sample(state, KEY, 64))
  first = made["reconstructions" if kind == "variational" else "samples"][0]
  np.testing.assert_allclose(first, examples[:8] / 255, rtol=1e-6)
  assert task_of(kind).sample is None


@pytest.mark.parametrize("kind", ["missing", "variational"])
def test_convolutions_go_through_the_same_step(kind):
  """Traced, not compiled: shapes and dtypes hold together, masks and codes included."""
  model = Autoencoder(shape=(8, 8, 3), latent=3, widths=(4, 5), network="conv", posterior=kind == "variational")
  variational = Variational(binarize=True, iwae_samples=2) if kind == "variational" else None
  noise = Noise("missing", rate=0.5, fill=(0.1, 0.2, 0.3)) if kind == "missing" else None
  task = autoencoding(model, optax.sgd(0.1), noise=noise, variational=variational)
  data = batch(shape=(8, 8, 3))
  state = jax.eval_shape(task.init, KEY, data)
  after, told = jax.eval_shape(task.step, state, data, KEY)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
  assert {value.shape for value in [*told.values(), *jax.eval_shape(task.evaluate, state, data).values()]} == {()}
  assert state.params["encoder"]["conv_0"]["kernel"].shape == (4, 4, 3 + (kind == "missing"), 4)


def test_flops_of_a_step_are_three_times_the_products():
  data = jax.eval_shape(lambda: batch(size=12))
  assert task_of().flops(data) == 3 * 2 * 12 * (16 * 6 + 6 * 3 + 3 * 6 + 6 * 16)
  assert task_of("missing").flops(data) == 3 * 2 * 12 * (32 * 6 + 6 * 3 + 3 * 6 + 6 * 16)
