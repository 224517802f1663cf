"""The language model's task: tokens counted exactly, against logits in float64, and equal however a batch is cut."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from research import language, losses
from research.errors import UserError
from research.language import Weights, language_modelling
from research.models.language_model import LanguageModel, Unscored
from research.models.transformer_config import Config

KEY = jax.random.key(0)
V, L = 7, 6
BYTES_V = np.arange(1, V + 1, dtype=np.int32)


def model_of(**changes):
  return LanguageModel(Config(layers=2, width=8, heads=2, **changes), V, L)


def task_of(model=None, **more):
  return language_modelling(model or model_of(), optax.sgd(0.5), token_bytes_V=BYTES_V, **more)


def batch(size=8, seed=0, packed=False, ragged=False):
  random = np.random.default_rng(seed)
  tokens_BT = random.integers(0, V, (size, L + 1)).astype(np.int32)
  if ragged:
    for row in range(size):
      tokens_BT[row, L + 1 - row % (L - 1) :] = -1
  found = {
    "tokens": jnp.asarray(tokens_BT), "mask": jnp.ones(size), "index": jnp.arange(size, dtype=jnp.int32)
  }  # fmt: skip
  if packed:
    found["segments"] = jnp.asarray(np.sort(random.integers(0, 3, (size, L + 1)), axis=1).astype(np.int32))
  return found


def state_of(task, data):
  shapes = jax.eval_shape(task.init, KEY, data)
  random = np.random.default_rng(2)
  params = jax.tree.map(lambda s: jnp.asarray(random.normal(0, 0.4, s.shape), s.dtype), shapes.params)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes).replace(params=params)


def evaluated(task, state, data):
  return jax.device_get(jax.jit(task.evaluate)(state, data))


@pytest.mark.parametrize("packed", [False, True])
def test_evaluation_is_the_hand_count(packed):
  model = model_of()
  task, data = task_of(model), batch(ragged=True, packed=packed)
  state = state_of(task, data)
  found = task.summarize(evaluated(task, state, data))
  tokens, segments = np.asarray(data["tokens"]), np.asarray(data.get("segments", np.zeros((8, L + 1))))
  logits_BLV, *_ = model.apply(
    {"params": state.params}, jnp.maximum(data["tokens"][:, :-1], 0), train=False,
    segments_BL=data["segments"][:, :-1] if packed else None,
  )  # fmt: skip
  log_BLV = special.log_softmax(np.asarray(logits_BLV, np.float64), axis=-1)
  places = [(b, i) for b in range(8) for i in range(L)]
  real = [(b, i) for b, i in places if tokens[b, i + 1] >= 0 and segments[b, i] == segments[b, i + 1]]
  targets = [tokens[b, i + 1] for b, i in real]
  nats = -sum(log_BLV[b, i, target] for (b, i), target in zip(real, targets, strict=True))
  assert found["loss"] == pytest.approx(nats / len(real), rel=1e-5)
  assert found["perplexity"] == pytest.approx(np.exp(nats / len(real)), rel=1e-4)
  assert found["bits_per_byte"] == pytest.approx(nats / np.log(2) / BYTES_V[targets].sum(), rel=1e-5)
  right = sum(log_BLV[b, i].argmax() == target for (b, i), target in zip(real, targets, strict=True))
  assert found["accuracy"] == pytest.approx(right / len(real))


@pytest.mark.parametrize("micro_batches", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_accumulation_weighs_tokens_not_examples(micro_batches):
  whole, parts = task_of(), task_of(micro_batches=micro_batches)
  data = batch(ragged=True)
  state = state_of(whole, data)
  chex.assert_trees_all_close(jax.jit(whole.step)(state, data, KEY), jax.jit(parts.step)(state, data, KEY), rtol=2e-5)


def test_padding_and_masked_windows_count_for_nothing():
  task, data = task_of(), batch(ragged=True)
  state = state_of(task, data)
  masked = {**data, "mask": jnp.asarray([1.0] * 5 + [0.0] * 3)}
  alone = {name: value[:5] for name, value in data.items()}
  chex.assert_trees_all_close(evaluated(task, state, masked), evaluated(task, state, alone), rtol=1e-5)
  stepped = jax.jit(task.step)
  chex.assert_trees_all_close(stepped(state, masked, KEY)[0].params, stepped(state, alone, KEY)[0].params, rtol=2e-5)


def test_gradients_are_those_of_the_mean_loss():
  model = model_of()
  task, data = task_of(model), batch()
  state = state_of(task, data)

  def mean(params):
    logits_BLV, *_ = model.apply({"params": params}, data["tokens"][:, :-1], train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, data["tokens"][:, 1:]).mean()

  after, told = jax.jit(task.step)(state, data, KEY)
  loss, gradients = jax.value_and_grad(mean)(state.params)
  assert float(told["loss"]) == pytest.approx(float(loss), rel=1e-5)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradients)
  chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-6)


def test_z_loss_is_the_published_term():
  model, data = model_of(), batch()
  state = state_of(task_of(model), data)

  def gradient(weight):
    step = jax.jit(task_of(model, weights=Weights(z=weight)).step)
    return jax.tree.map(lambda a, b: (a - b) / 0.5, state.params, step(state, data, KEY)[0].params)

  def z_loss(params):
    logits_BLV, *_ = model.apply({"params": params}, data["tokens"][:, :-1], train=True)
    return 0.3 * jnp.square(jax.nn.logsumexp(logits_BLV, axis=-1)).mean()

  added = jax.tree.map(jnp.subtract, gradient(0.3), gradient(0.0))
  chex.assert_trees_all_close(added, jax.grad(z_loss)(state.params), rtol=1e-3, atol=1e-5)


def test_experts_tell_their_balance_and_what_they_dropped():
  task, data = task_of(model_of(experts=4, capacity_factor=0.25)), batch()
  after, told = jax.jit(task.step)(state_of(task, data), data, KEY)
  assert float(told["dropped_tokens"]) > 0
  assert 0.9 < float(told["balance_loss"]) < 4
  assert int(after.step) == 1


def test_token_scores_are_stable_and_of_the_targets():
  logits_BLV = jnp.asarray([[[1e4, -1e4, 0.0], [5.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 7.0]]])
  unscored = Unscored(logits_BLV, jnp.eye(3), None, 0.0)  # whose logits are what it is given
  total, scores = losses.token_scores(unscored, jnp.asarray([[1, -1], [2, -5]], jnp.int32), 0.5, z_loss=0.1)
  np.testing.assert_allclose(scores.loss_BL, [[2e4, 0.0], [np.log(3), 0.0]], rtol=1e-6)
  np.testing.assert_array_equal(scores.guess_BL, [[0, 0], [0, 2]])
  np.testing.assert_allclose(total, 0.5 * (2e4 + 0.1 * 1e8 + np.log(3) + 0.1 * np.log(3) ** 2), rtol=1e-6)


def test_no_tokens_no_numbers():
  with pytest.raises(UserError, match="no tokens to predict"):
    language.summary({"loss": 0.0, "count": 0, "correct": 0, "bytes": 0})
