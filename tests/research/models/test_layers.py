"""Layers against plain formulas: dropout's statistics, normalisation over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models import layers


def random_images(shape=(4, 6, 8, 3), seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def drop(x, rate, train=True, seed=0):
  return layers.Dropout(rate).apply({}, x, train=train, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_the_rate(rate):
  x = jnp.ones((400, 501))  # not a multiple of the four values in a word
  y = np.asarray(drop(x, rate))
  # 200,400 draws: three standard errors of the share are at most 0.0034; the rate itself is rounded by up to 1/512.
  assert abs((y == 0).mean() - rate) < 0.0034 + 1 / 512
  kept = y[y != 0]
  assert np.unique(kept).size == 1
  assert abs(y.mean() - 1.0) < 0.0034 * kept[0]
  # Independent along rows and columns: neighbours agree as often as chance has it.
  share = (y == 0).mean()
  for neighbours in (y[1:] == y[:-1], y[:, 1:] == y[:, :-1]):
    assert abs(neighbours.mean() - (share**2 + (1 - share) ** 2)) < 0.006


def test_dropout_is_off_in_evaluation_and_a_function_of_its_key():
  x = random_images()
  np.testing.assert_array_equal(drop(x, 0.5, train=False), x)
  np.testing.assert_array_equal(drop(x, 0.5), drop(x, 0.5))
  assert not np.array_equal(drop(x, 0.5), drop(x, 0.5, seed=1))
  assert drop(x.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_outside_its_range_is_the_users_error(rate):
  with pytest.raises(UserError, match="outside"):
    drop(random_images(), rate)


def norm(kind, dtype=jnp.float32):
  module = layers.Norm(kind, dtype)

  @jax.jit
  def apply(x):
    variables = nn.unbox(module.init(jax.random.key(0), x, train=False))
    return module.apply(variables, x, train=True, mutable=["batch_stats"])

  return apply


def test_batch_norm_uses_the_whole_batchs_statistics_when_it_is_sharded():
  x = random_images((16, 2, 2, 3)) * jnp.arange(1.0, 17.0).reshape(16, 1, 1, 1)  # each device sees other statistics
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
  y, updated = norm("batch")(jax.device_put(x, rows))
  x64 = np.asarray(x, np.float64)
  mean, variance = x64.mean((0, 1, 2)), x64.var((0, 1, 2))
  np.testing.assert_allclose(y, (x64 - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_batch_norm_evaluates_with_running_statistics_alone():
  module = layers.Norm("batch")
  statistics = {"mean": jnp.asarray([1.0, 2.0]), "var": jnp.asarray([4.0, 9.0])}
  params = {"scale": jnp.asarray([1.0, 2.0]), "bias": jnp.asarray([0.0, 1.0])}
  x = jnp.asarray([[3.0, 5.0]])
  y = module.apply({"params": params, "batch_stats": statistics}, x, train=False)
  np.testing.assert_allclose(y, [[1.0, 3.0]], rtol=1e-4)


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
def test_variance_survives_a_large_mean(kind):
  x = random_images((8, 4, 4, 8))
  shifted, _ = norm(kind)(x + 4096.0)  # a power of two: only x's last bits are lost, about 2e-4 of them
  plain, _ = norm(kind)(x)
  np.testing.assert_allclose(shifted, plain, atol=3e-3)


@pytest.mark.parametrize(("kind", "axes"), [("layer", 1), ("group", (1, 2, 4))])
def test_per_example_norms_are_their_formulas(kind, axes):
  x = random_images((3, 8, 4, 48)).reshape(-1, 48) if kind == "layer" else random_images((3, 4, 4, 48))
  y, _ = norm(kind)(x)
  grouped = np.asarray(x, np.float64)
  grouped = grouped if kind == "layer" else grouped.reshape(3, 4, 4, 16, 3)  # 16 is the largest of 2^k ≤ 32 in 48
  mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
  expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_bf16_norms_compute_and_store_in_f32():
  y, updated = norm("batch", jnp.bfloat16)(random_images((64, 4), dtype=jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype.name for leaf in jax.tree.leaves(updated)} == {"float32"}


def test_no_norm_has_no_parameters_and_changes_nothing():
  x = random_images()
  y, variables = norm("none")(x)
  assert not jax.tree.leaves(variables)
  np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: norm("batchnorm")(random_images()), "no normalisation 'batchnorm'"),
    (lambda: layers.activation("swish"), "no activation 'swish'"),
  ],
)
def test_an_unknown_choice_is_the_users_error(call, message):
  with pytest.raises(UserError, match=message):
    call()


@pytest.mark.parametrize("layer", ["dense", "conv", "depthwise_conv"])
def test_a_layer_in_bfloat16_has_the_parameters_of_one_in_float32(layer):
  x = random_images((2, 5, 4, 6))

  def make(dtype):
    if layer == "dense":
      return layers.dense(6, ("embed", "mlp"), dtype=dtype, name="one")
    return getattr(layers, layer)(6, 3, use_bias=True, dtype=dtype, name="one")

  class Network(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x):
      return make(self.dtype)(x)

  boxed = {dtype: Network(dtype).init(jax.random.key(0), x) for dtype in ("float32", "bfloat16")}
  assert nn.get_partition_spec(boxed["float32"]) == nn.get_partition_spec(boxed["bfloat16"])
  params = {dtype: nn.meta.unbox(each) for dtype, each in boxed.items()}
  jax.tree.map(np.testing.assert_array_equal, params["float32"], params["bfloat16"])
  params = jax.tree.map(lambda p: p + 0.1, params["float32"])
  slopes = {
    dtype: jax.jit(jax.grad(lambda p, dtype=dtype: Network(dtype).apply(p, x).astype(jnp.float32).sum()))(params)
    for dtype in boxed
  }
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=0.05), *slopes.values())
