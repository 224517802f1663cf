"""What every model promises: float32 parameters and outputs, named axes, whole gradients, dropout in training only."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from research.models.cnn import CNN
from research.models.fast_cnn import FastCNN
from research.models.linear import Linear
from research.models.mlp import MLP
from research.models.resnet import Block, Bottleneck

VOCABULARY = {"features", "embed", "mlp", "classes", "conv_in", "conv_out", "norm", None}
IMAGES = (4, 8, 8, 3)


class ResidualBlocks(nn.Module):
  """One of each of a ResNet's blocks; a whole one takes too long to compile here."""

  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BHWC, *, train):
    x_BHWC = Block(3, 1, "batch", self.dtype)(x_BHWC.astype(self.dtype), train=train)
    x_BHWC = Bottleneck(2, 2, "group", self.dtype)(x_BHWC, train=train)
    return x_BHWC.astype(jnp.float32).mean(axis=(1, 2))[:, :3]


MODELS = {
  "linear": lambda **k: Linear(3, **k),
  "mlp": lambda **k: MLP(3, (8, 6), **k),
  "mlp with everything": lambda **k: MLP(3, (8, 6), activation="gelu", norm="batch", dropout=0.5, **k),
  "cnn": lambda **k: CNN(3, (4, 6), head_widths=(5,), **k),
  "cnn with everything": lambda **k: CNN(
    3, (4, 6), convs_per_block=2, pooling="avg", norm="group", conv_dropout=0.2, dropout=0.5, head_widths=(), **k
  ),
  "separable cnn": lambda **k: CNN(3, (4, 6), separable=True, norm="batch", head_widths=(), **k),
  "fast_cnn": lambda **k: FastCNN(3, (4, 4, 6), residual_convs=(1, 0), space_to_depth=True, **k),
  "residual blocks": lambda **k: ResidualBlocks(**k),
}
TRAINING = {"rngs": {"dropout": jax.random.key(0)}, "mutable": ["batch_stats"]}
RANDOM = {"cnn with everything", "mlp with everything"}  # those with dropout


@pytest.fixture(scope="module")
def images():
  return jnp.asarray(np.random.default_rng(0).normal(size=IMAGES), jnp.float32)


def variables_of(model, x):
  """Variables of numpy's noise: compiling an initialisation takes longer than all the rest of a test.

  Noise everywhere, too: zeros and ones, as in biases, norms and the linear model's start, could hide a layer.
  """
  shapes = nn.unbox(jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x))
  random = np.random.default_rng(1)
  noise = jax.tree.map(lambda p: jnp.asarray(random.normal(0.2, 0.4, p.shape), p.dtype), shapes["params"])
  variables = {"params": noise}
  if "batch_stats" in shapes:
    variables["batch_stats"] = jax.tree.map(lambda s: jnp.full(s.shape, 0.5, s.dtype), shapes["batch_stats"])
  return variables


@pytest.mark.parametrize("name", MODELS)
def test_init_names_every_axis_from_the_vocabulary_in_float32(name, images):
  model = MODELS[name](dtype="bfloat16")
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  boxes = jax.tree.leaves(variables["params"], is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
  for box in boxes:
    assert isinstance(box, nn.LogicallyPartitioned)
    assert len(box.names) == box.value.ndim
    assert set(box.names) <= VOCABULARY
    named = [axis for axis in box.names if axis is not None]
    assert len(set(named)) == len(named)  # an axis name twice could not be sharded
    assert box.value.dtype == jnp.float32
  assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.parametrize("name", MODELS)
def test_bf16_computes_near_f32_and_returns_f32(name, images):
  model, half = MODELS[name](), MODELS[name](dtype="bfloat16")
  variables = variables_of(model, images)
  full = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
  rounded = jax.jit(lambda v: half.apply(v, images, train=False))(variables)
  assert full.shape == rounded.shape == (4, 3)
  assert full.dtype == rounded.dtype == jnp.float32
  # bf16's 8 bits are good to 2^-8 an operation, of which a few follow each other.
  assert float(jnp.abs(full - rounded).max()) < 0.1 * float(jnp.abs(full).max())
  program = str(jax.make_jaxpr(lambda v: half.apply(v, images, train=True, **TRAINING))(variables))
  products = re.findall(r":(\w+)\[\S+\] = (?:dot_general|conv_general_dilated)\[", program)
  assert set(products) == {"bf16"}


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_reaches_every_parameter_and_statistic(name, images):
  model = MODELS[name]()
  variables = variables_of(model, images)
  target = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)

  @jax.jit
  def gradients(variables, key):
    def loss(params):
      outputs, updated = model.apply(
        {**variables, "params": params}, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
      )
      return jnp.square(outputs - target).sum(), updated

    return jax.grad(loss, has_aux=True)(variables["params"])

  gradient, updated = gradients(variables, jax.random.key(1))
  for path, leaf in jax.tree.leaves_with_path(gradient):
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path
  before, after = variables.get("batch_stats", {}), updated.get("batch_stats", {})
  for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
    assert not np.array_equal(old, new), path
  again, _ = gradients(variables, jax.random.key(2))
  same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(again), strict=True))
  assert same == (name not in RANDOM)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_treats_examples_one_by_one_and_needs_no_key(name, images):
  model = MODELS[name]()
  variables = variables_of(model, images)
  apply = jax.jit(lambda x: model.apply(variables, x, train=False))
  changed = images.at[1:].set(0.0)
  np.testing.assert_allclose(apply(images)[0], apply(changed)[0], rtol=1e-5, atol=1e-6)


def test_gradients_are_numerical_ones():
  model = CNN(2, (2,), norm="group", activation="tanh", pooling="avg", head_widths=(3,))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32)
  params = variables_of(model, x)["params"]
  function = jax.jit(lambda params, x: model.apply({"params": params}, x, train=True).sum())
  check_grads(function, (params, x), order=1, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


def test_wide_layers_keep_a_signals_size():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 400)), jnp.float32)
  for activation, low, high in (("relu", 0.6, 1.6), ("tanh", 0.2, 1.2)):
    model = MLP(400, (400, 400), activation=activation)
    outputs, _ = jax.jit(lambda x, model=model: model.init_with_output(jax.random.key(0), x, train=False))(x)
    assert low < float(outputs.std()) < high, activation


def test_regression_squeezes_to_one_number_an_example(images):
  for model in (Linear(1, squeeze=True), MLP(1, (4,), squeeze=True)):
    variables = variables_of(model, images)
    assert jax.eval_shape(lambda v, m=model: m.apply(v, images, train=False), variables).shape == (4,)


def test_linear_is_a_product_and_starts_at_zero():
  x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
  model = Linear(1, squeeze=True)
  start, _ = model.init_with_output(jax.random.key(0), x, train=True)
  np.testing.assert_array_equal(start, [0, 0])
  params = {"head": {"kernel": jnp.asarray([[10.0], [1.0]]), "bias": jnp.asarray([0.5])}}
  np.testing.assert_allclose(model.apply({"params": params}, x, train=False), [12.5, 34.5])


def test_mlp_is_its_formula_in_float64():
  random = np.random.default_rng(0)
  x = random.normal(size=(5, 4)).astype(np.float32)
  model = MLP(2, (3,), activation="sigmoid")
  params = nn.unbox(variables_of(model, jnp.asarray(x)))["params"]
  wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  hidden = 1 / (1 + np.exp(-(x @ wide["hidden_0"]["kernel"] + wide["hidden_0"]["bias"])))
  expected = hidden @ wide["head"]["kernel"] + wide["head"]["bias"]
  outputs = model.apply({"params": params}, jnp.asarray(x), train=False)
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
