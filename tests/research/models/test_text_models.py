"""Classifiers of tokens: what stands behind a text's end is not seen, and each is its definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from research.models.text import Bag, Recurrent, TextCNN, TextTransformer, mean
from research.models.transformer_config import Config

SAME = {"vocabulary": 12, "classes": 3, "width": 6}
MODELS = {
  "bag": Bag(**SAME, widths=(5,)),
  "cnn": TextCNN(**SAME, windows=(2, 3), filters=4),
  "lstm": Recurrent(**SAME, cell="lstm", hidden=4, depth=2),
  "gru": Recurrent(**SAME, cell="gru", hidden=4),
  "transformer": TextTransformer(
    **SAME, config=Config(layers=2, width=6, heads=2, head_width=4, rotary=True, causal=False)
  ),
}
TOKENS_BL = jnp.asarray([[1, 5, 7, 2, 9, 3], [4, 4, 8, -1, -1, -1], [-1] * 6], jnp.int32)


def params_of(model):
  shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS_BL, train=False)))["params"]
  random = np.random.default_rng(1)
  return jax.tree.map(lambda s: jnp.asarray(random.normal(0.1, 0.5, s.shape), s.dtype), shapes)


def logits_of(model, params, tokens_BL=TOKENS_BL):
  return np.asarray(jax.jit(lambda p, t: model.apply({"params": p}, t, train=False))(params, tokens_BL))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_behind_a_texts_end_does_not_count(name):
  model = MODELS[name]
  params = params_of(model)
  logits_BC = logits_of(model, params)
  assert logits_BC.shape == (3, 3)
  assert logits_BC.dtype == np.float32
  assert np.isfinite(logits_BC).all()
  short = logits_of(model, params, TOKENS_BL[1:2, :4])
  np.testing.assert_allclose(short[0], logits_BC[1], rtol=1e-4, atol=1e-5)
  changed = logits_of(model, params, TOKENS_BL.at[0, 3].set(6))
  assert np.abs(changed[0] - logits_BC[0]).max() > 1e-3
  np.testing.assert_allclose(changed[1:], logits_BC[1:], rtol=1e-5)


def embedded(params, row):
  table = np.asarray(params["embed"]["embedding"], np.float64)
  return table[[token for token in np.asarray(TOKENS_BL[row]) if token >= 0]]


def head(params, features):
  weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params["head"])
  return features @ weights["kernel"] + weights["bias"]


def test_a_bag_is_the_mean_of_embeddings():
  params = params_of(MODELS["bag"])
  hidden = jax.tree.map(lambda a: np.asarray(a, np.float64), params["hidden_0"])
  features = np.maximum(embedded(params, 1).mean(axis=0) @ hidden["kernel"] + hidden["bias"], 0)
  np.testing.assert_allclose(logits_of(MODELS["bag"], params)[1], head(params, features), rtol=1e-5, atol=1e-5)


def convolved(params, row, windows):
  """The greatest value of each filter over a text, in float64: zeros before and behind it, window by window."""
  x_LD = embedded(params, row)
  features = []
  for window in windows:
    weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params[f"window_{window}"])
    before = (window - 1) // 2
    padded = np.pad(x_LD, ((before, window - 1 - before), (0, 0)))
    values = [padded[i : i + window].ravel() @ weights["kernel"] + weights["bias"] for i in range(len(x_LD))]
    features.append(np.max(values, axis=0, initial=0.0) if values else np.zeros_like(weights["bias"]))
  return np.concatenate(features)


@pytest.mark.parametrize("windows", [(2, 3), (4, 1, 5), (3,)], ids=str)
def test_the_convolutions_greatest_values_by_hand(windows):
  model = TextCNN(**SAME, windows=windows, filters=4)
  params = params_of(model)
  expected = np.stack([head(params, convolved(params, row, windows)) for row in range(3)])
  np.testing.assert_allclose(logits_of(model, params), expected, rtol=1e-4, atol=1e-5)


def test_the_convolutions_gradient_is_the_slope_of_the_definition():
  windows = (4, 1, 5)
  model = TextCNN(**SAME, windows=windows, filters=4)
  params = params_of(model)
  random = np.random.default_rng(2)
  towards = jax.tree.map(lambda p: random.normal(size=p.shape), params)

  def value(step):
    moved = jax.tree.map(lambda p, t: np.asarray(p, np.float64) + step * t, params, towards)
    return sum(np.sin(head(moved, convolved(moved, row, windows))).sum() for row in range(3))

  gradient = jax.jit(jax.grad(lambda p: jnp.sin(model.apply({"params": p}, TOKENS_BL, train=True)).sum()))(params)
  slopes = jax.tree.map(lambda g, t: (np.asarray(g, np.float64) * t).sum(), gradient, towards)
  # Central differences in float64 are right to eight digits, so the tolerance is float32's.
  np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-4)


def test_a_convolution_of_no_text_sees_zeros_in_bfloat16_too():
  model = TextCNN(**SAME, windows=(2, 3), filters=4, dtype="bfloat16")
  params = params_of(model)
  np.testing.assert_allclose(logits_of(model, params)[2], head(params, np.zeros(8)), rtol=1e-2, atol=1e-2)


def test_a_gru_from_both_ends_is_its_equations():
  params = params_of(MODELS["gru"])
  x_LD = embedded(params, 1)

  def run(name, sequence):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params[name])
    dense = lambda key, x: x @ p[key]["kernel"] + p[key].get("bias", 0.0)  # noqa: E731
    state, states = np.zeros(4), []
    for x in sequence:
      reset = special.expit(dense("ir", x) + dense("hr", state))
      update = special.expit(dense("iz", x) + dense("hz", state))
      new = np.tanh(dense("in", x) + reset * dense("hn", state))
      state = (1 - update) * new + update * state
      states.append(state)
    return np.stack(states)

  forward, backward = run("gru_0_forward_cell", x_LD), run("gru_0_backward_cell", x_LD[::-1])[::-1]
  expected = head(params, np.concatenate([forward, backward], axis=1).mean(axis=0))
  np.testing.assert_allclose(logits_of(MODELS["gru"], params)[1], expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_nothing_is_zero():
  x_BLD = jnp.ones((2, 3, 4))
  real_BL = jnp.asarray([[True, False, True], [False] * 3])
  np.testing.assert_array_equal(mean(x_BLD, real_BL), [[1.0] * 4, [0.0] * 4])


@pytest.mark.parametrize("name", MODELS)
def test_parameters_name_their_axes(name):
  model = MODELS[name]
  boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS_BL, train=False))["params"]
  for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)):
    assert isinstance(leaf, nn.LogicallyPartitioned), path
