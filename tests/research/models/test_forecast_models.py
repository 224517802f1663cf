"""Forecasters: a window's own level is given back, patches are steps, and each network is its definition."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from research.models.forecast import LinearForecaster, RecurrentForecaster, TransformerForecaster
from research.models.transformer_config import Config

SHAPE = Config(layers=1, width=8, heads=2, rotary=True)
MODELS = {
  "linear": LinearForecaster(horizon=3),
  "lstm": RecurrentForecaster(horizon=3, cell="lstm", hidden=5, depth=2),
  "gru": RecurrentForecaster(horizon=3, cell="gru", hidden=5),
  "transformer": TransformerForecaster(horizon=3, config=SHAPE),
}
X_BLC = jnp.asarray(np.random.default_rng(0).normal(2.0, 1.5, (4, 6, 2)), jnp.float32)


def params_of(model, x_BLC=X_BLC):
  shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), x_BLC, train=False)))["params"]
  random = np.random.default_rng(1)
  return jax.tree.map(lambda s: jnp.asarray(random.normal(0.1, 0.4, s.shape), s.dtype), shapes)


@functools.cache
def compiled(model):
  return jax.jit(lambda params, x_BLC: model.apply({"params": params}, x_BLC, train=False))


def forecast(model, params, x_BLC=X_BLC):
  return np.asarray(compiled(model)(params, x_BLC))


def test_a_fresh_model_says_the_last_value():
  model = MODELS["linear"]  # the head, which begins at zero, is the same in all
  fresh = nn.meta.unbox(model.init(jax.random.key(0), X_BLC, train=False))["params"]
  np.testing.assert_allclose(forecast(model, fresh), np.repeat(X_BLC[:, -1:, 0], 3, axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_windows_level_passes_through(name):
  model = MODELS[name]
  params = params_of(model)
  y_BH = forecast(model, params)
  assert y_BH.shape == (4, 3)
  assert y_BH.dtype == np.float32
  assert np.abs(y_BH - X_BLC[:, -1:, 0]).max() > 0.1
  shift_C = jnp.asarray([[[10.0, -7.0]]])
  np.testing.assert_allclose(forecast(model, params, X_BLC + shift_C), y_BH + 10.0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_an_instances_spread_passes_through_too(name):
  model = MODELS[name].clone(offset="instance")
  params = params_of(model)
  scale_C, shift_C = jnp.asarray([[[4.0, 0.5]]]), jnp.asarray([[[3.0, -7.0]]])
  y_BH = forecast(model, params)
  expected = 4.0 * y_BH + 3.0
  np.testing.assert_allclose(forecast(model, params, X_BLC * scale_C + shift_C), expected, rtol=1e-3, atol=1e-3)
  for place in range(6):  # every value of the window counts, and a window of one value is no trouble
    changed = np.array(X_BLC)
    changed[:, place, 1] += 1.0
    assert np.abs(forecast(model, params, changed) - y_BH).max() > 1e-4
  assert np.isfinite(forecast(model, params, jnp.ones_like(X_BLC))).all()


def test_a_linear_forecast_by_hand():
  model = MODELS["linear"]
  params = params_of(model)
  head = jax.tree.map(lambda a: np.asarray(a, np.float64), params["head"])
  x_BLC = np.asarray(X_BLC, np.float64)
  flat_BK = (x_BLC - x_BLC[:, -1:]).reshape(4, -1)
  expected = flat_BK @ head["kernel"] + head["bias"] + x_BLC[:, -1:, 0]
  np.testing.assert_allclose(forecast(model, params), expected, rtol=1e-5, atol=1e-5)


def test_an_lstm_by_its_equations_over_patches():
  """Hochreiter and Schmidhuber 1997, with forget gates; a step reads two rows of the window side by side."""
  model = RecurrentForecaster(horizon=3, cell="lstm", hidden=5, depth=1, patch=2, offset="none")
  params = params_of(model)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["lstm_0_forward_cell"])
  x_BPD = np.asarray(X_BLC, np.float64).reshape(4, 3, 4)
  state = memory = np.zeros((4, 5))
  for step in range(3):
    gate = {
      name: x_BPD[:, step] @ p[f"i{name}"]["kernel"] + state @ p[f"h{name}"]["kernel"] + p[f"h{name}"]["bias"]
      for name in "ifgo"
    }
    memory = special.expit(gate["f"]) * memory + special.expit(gate["i"]) * np.tanh(gate["g"])
    state = special.expit(gate["o"]) * np.tanh(memory)
  head = jax.tree.map(lambda a: np.asarray(a, np.float64), params["head"])
  np.testing.assert_allclose(forecast(model, params), state @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_without_an_offset_a_level_is_nothing_special():
  model = MODELS["linear"].clone(offset="none")
  params = params_of(model)
  assert np.abs(forecast(model, params, X_BLC + 5.0) - forecast(model, params) - 5.0).max() > 0.1


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_dropout_is_for_training_and_bfloat16_gives_float32(name):
  model = MODELS[name].clone(dropout=0.5)
  params = params_of(model)
  trained = jax.jit(
    lambda seed: model.apply({"params": params}, X_BLC, train=True, rngs={"dropout": jax.random.key(seed)})
  )
  assert np.abs(trained(0) - trained(1)).max() > 1e-3
  np.testing.assert_array_equal(forecast(model, params), forecast(MODELS[name], params))
  half = MODELS[name].clone(dtype="bfloat16")
  if name == "transformer":
    half = half.clone(config=dataclasses.replace(SHAPE, dtype="bfloat16"))
  assert forecast(half, params).dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_parameters_name_their_axes(name):
  boxed = jax.eval_shape(lambda: MODELS[name].init(jax.random.key(0), X_BLC, train=False))["params"]
  for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)):
    assert isinstance(leaf, nn.LogicallyPartitioned), path
