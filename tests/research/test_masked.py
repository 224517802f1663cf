"""Masked language modelling: which tokens are guessed, in which shares, and that nothing else is learned from."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from research import masked_language
from research.data import tokenizers
from research.errors import UserError
from research.masked_language import masked_language_modelling
from research.masking import Masking, masking_of
from research.models.bert import Bert
from research.models.transformer_config import Config

KEY = jax.random.key(0)
V, L, MASK = 30, 40, 30
TEXT = "the cat_sat on mat 42, and naïve cafés don't mind (really): antidisestablishmentarian words\n    x = f(y1, zz)"


NONE_V = np.zeros(V, bool)
PLAIN = Masking(MASK, ~NONE_V, NONE_V, NONE_V)
FOUR_OF_FIVE = Masking(MASK, np.arange(V) % 5 > 0, NONE_V, NONE_V)


@functools.cache
def program(masking):
  return jax.jit(masking.__call__)


def masked(masking, tokens_BL, key=KEY):
  index_B = jnp.arange(len(tokens_BL), dtype=jnp.int32)
  return jax.tree.map(np.asarray, program(masking)(jnp.asarray(tokens_BL, jnp.int32), index_B, key))


def random_tokens(rows, seed=0):
  return np.random.default_rng(seed).integers(0, V, (rows, L)).astype(np.int32)


def within(count, trials, probability):
  """Within 4.5 standard deviations of the binomial distribution: missed by chance once in 150,000."""
  return abs(count - trials * probability) < 4.5 * math.sqrt(trials * probability * (1 - probability))


def test_the_shares_are_15_and_80_10_10():
  rows, tokens_BL = 2000, random_tokens(2000)
  found = masked(PLAIN, tokens_BL)
  assert found.places_BK.shape == (rows, 6)
  assert (np.sort(found.places_BK)[:, 1:] > np.sort(found.places_BK)[:, :-1]).all()
  np.testing.assert_array_equal(found.targets_BK, np.take_along_axis(tokens_BL, found.places_BK, axis=1))
  seen_BK = np.take_along_axis(found.inputs_BL, found.places_BK, axis=1)
  is_mask_BK, stays_BK = seen_BK == MASK, seen_BK == found.targets_BK
  assert within(is_mask_BK.sum(), rows * 6, 0.8)
  assert within(stays_BK.sum(), rows * 6, 0.1 + 0.1 / V)  # a token drawn at random may be the same
  others_N = seen_BK[~is_mask_BK & ~stays_BK]
  assert all(within((others_N == token).sum(), len(others_N), 1 / V) for token in range(V))
  assert all(within((found.places_BK == place).sum(), rows, 0.15) for place in range(L))
  untouched_BL = np.ones((rows, L), bool)
  np.put_along_axis(untouched_BL, found.places_BK, False, axis=1)
  np.testing.assert_array_equal(found.inputs_BL[untouched_BL], tokens_BL[untouched_BL])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_of_ordinary_tokens_the_rounded_share_is_chosen_and_never_another(data):
  rows = data.draw(st.lists(st.lists(st.integers(0, V - 1), max_size=L), min_size=4, max_size=4))
  tokens_BL = np.full((4, L), -1, np.int32)
  for row, ids in zip(tokens_BL, rows, strict=True):
    row[: len(ids)] = ids
  ordinary_V = FOUR_OF_FIVE.ordinary_V
  found = masked(FOUR_OF_FIVE, tokens_BL, jax.random.key(data.draw(st.integers(0, 2**32 - 1))))
  for row in range(4):
    size = int(ordinary_V[rows[row]].sum()) if rows[row] else 0
    targets_K = found.targets_BK[row][found.targets_BK[row] >= 0]
    assert len(targets_K) == min(size, max(1, math.floor(0.15 * size + 0.5)))
    assert ordinary_V[targets_K].all()
    changed_L = found.inputs_BL[row] != tokens_BL[row]
    assert changed_L.sum() <= len(targets_K)
    assert not changed_L[tokens_BL[row] < 0].any()
    new_N = found.inputs_BL[row][changed_L]
    assert ordinary_V[new_N[new_N != MASK]].all()


def test_whole_words_are_taken_together():
  tokenizer = tokenizers.learn("bpe", [TEXT, "the cat sat " * 9], vocabulary=270)
  ids_L = tokenizer.encode(TEXT)
  found = masked(masking_of(tokenizer, tokenizer.size, whole_words=True, share=0.25), np.tile(ids_L, (400, 1)))
  chosen_BL = np.zeros((400, len(ids_L)), bool)
  for row in range(400):
    chosen_BL[row, found.places_BK[row][found.targets_BK[row] >= 0]] = True
  opens_V, closes_V = tokenizers.word_edges(tokenizer)
  begins_L = ~(opens_V[ids_L] & np.append(False, closes_V[ids_L][:-1]))
  groups = np.split(np.arange(len(ids_L)), np.flatnonzero(begins_L)[1:])
  wanted = math.floor(0.25 * len(ids_L) + 0.5)
  assert (chosen_BL.sum(axis=1) <= wanted).all()
  assert chosen_BL.mean() > 0.23
  for group in groups:
    together_B = chosen_BL[:, group].sum(axis=1)
    assert set(together_B.tolist()) == ({0, len(group)} if len(group) <= wanted else {0})
  sizes = list(map(len, groups))
  assert min(sizes) == 1 < max(sizes) < wanted


def test_a_word_longer_than_the_share_is_left_alone_and_ends_are_never_chosen():
  tokenizer = tokenizers.learn("byte", [])
  ids_L = np.append(tokenizer.encode("a" * 30 + " b c"), tokenizer.end)
  found = masked(masking_of(tokenizer, 257, whole_words=True), np.tile(ids_L, (200, 1)))
  chosen = {int(place) for place in found.places_BK[found.targets_BK >= 0]}
  assert chosen == {30, 31, 32, 33}
  assert ((found.targets_BK >= 0).sum(axis=1) == 4).all()  # 15 % of 34 are 5, and nothing else fits


def model_of(**changes):
  return Bert(
    Config(layers=1, width=8, heads=2, causal=False, norm_first=False, initializer="bert", **changes),
    V + 2,
    L + 1,
    embedding_norm=True,
    transform=True,
    head_bias=True,
  )


def task_of(model=None, **more):
  return masked_language_modelling(model or model_of(), optax.sgd(0.5), PLAIN, **more)


@functools.cache
def batch(packed=False):
  size = 8
  tokens_BL = random_tokens(size, 1)
  for row in range(size):
    tokens_BL[row, L - 3 * row :] = -1
  found = {"tokens": jnp.asarray(tokens_BL), "mask": jnp.ones(size), "index": jnp.arange(size, dtype=jnp.int32)}
  if packed:
    documents_BL = np.sort(np.random.default_rng(3).integers(0, 3, (size, L)), axis=1).astype(np.int32)
    found["segments"] = jnp.asarray(np.where(tokens_BL < 0, -1, documents_BL))
  return found


def state_of(task, data):
  shapes = jax.eval_shape(task.init, KEY, data)
  random = np.random.default_rng(2)
  params = jax.tree.map(lambda s: jnp.asarray(random.normal(0, 0.4, s.shape), s.dtype), shapes.params)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes).replace(params=params)


def everywhere(model, params, found, segments_BL=None):
  """Logits of all places, by the model's definition: [CLS] before the text, hidden values, the head."""
  rows = len(found.inputs_BL)
  segments_BL = jnp.zeros_like(found.inputs_BL) if segments_BL is None else segments_BL
  segments_BL = jnp.where(found.inputs_BL < 0, -1, segments_BL)
  logits_BTV, *_ = model.apply(
    {"params": params},
    jnp.concatenate([jnp.full((rows, 1), V + 1, jnp.int32), jnp.maximum(found.inputs_BL, 0)], axis=1),
    segments_BL=jnp.concatenate([segments_BL[:, :1], segments_BL], axis=1),
    train=False,
  )
  return logits_BTV[:, 1:]


@pytest.mark.parametrize("packed", [False, True])
def test_evaluation_is_the_hand_count_over_the_guesses_alone(packed):
  model = model_of()
  task, data = task_of(model), batch(packed=packed)
  state = state_of(task, data)
  sums = jax.device_get(jax.jit(task.evaluate)(state, data))
  told = task.summarize(sums)
  found = masked(PLAIN, data["tokens"], jax.random.key(masked_language._EVALUATION_SEED))
  logits_BLV = jax.jit(functools.partial(everywhere, model))(state.params, found, data.get("segments"))
  log_BLV = special.log_softmax(np.float64(logits_BLV), axis=-1)
  guesses = [
    (row, place, target)
    for row in range(8)
    for place, target in zip(found.places_BK[row], found.targets_BK[row], strict=True)
    if target >= 0
  ]
  assert int(sums["count"]) == len(guesses) == sum(max(1, math.floor(0.15 * (L - 3 * row) + 0.5)) for row in range(8))
  nats = -sum(log_BLV[guess] for guess in guesses)
  assert told["loss"] == pytest.approx(nats / len(guesses), rel=1e-5)
  assert told["perplexity"] == pytest.approx(np.exp(told["loss"]), rel=1e-6)
  right = sum(log_BLV[row, place].argmax() == target for row, place, target in guesses)
  assert told["accuracy"] == pytest.approx(right / len(guesses))


def test_evaluation_does_not_depend_on_the_batch():
  task, data = task_of(), batch()
  state, evaluate = state_of(task, data), jax.jit(task.evaluate)
  whole = evaluate(state, data)
  order_B = np.random.default_rng(0).permutation(8)
  parts = [evaluate(state, {name: value[order_B[i : i + 2]] for name, value in data.items()}) for i in range(0, 8, 2)]
  added = jax.tree.map(lambda *sums: sum(sums), *parts)
  chex.assert_trees_all_close(whole, added, rtol=1e-5)
  assert int(whole["count"]) == int(added["count"])
  assert int(whole["correct"]) == int(added["correct"])
  padded = {name: jnp.concatenate([value, value[:2]]) for name, value in data.items()}
  padded["mask"] = padded["mask"].at[8:].set(0.0)
  chex.assert_trees_all_close(whole, evaluate(state, padded), rtol=1e-5)


def test_a_step_learns_from_the_guesses_alone():
  model = model_of()
  task, data = task_of(model), batch()
  state = state_of(task, data)
  found = masked(PLAIN, data["tokens"], jax.random.split(KEY)[0])

  def mean(params):
    losses_BL = optax.softmax_cross_entropy_with_integer_labels(
      everywhere(model, params, found), jnp.maximum(data["tokens"], 0)
    )
    guessed_BL = np.zeros((8, L), np.float32)
    for row in range(8):
      guessed_BL[row, found.places_BK[row][found.targets_BK[row] >= 0]] = 1.0
    return (losses_BL * guessed_BL).sum() / guessed_BL.sum()

  after, told = jax.jit(task.step)(state, data, KEY)
  loss, gradients = jax.jit(jax.value_and_grad(mean))(state.params)
  assert float(told["loss"]) == pytest.approx(float(loss), rel=1e-5)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradients)
  chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-5)


def test_no_other_place_of_a_text_has_a_gradient():
  model, data = model_of(), batch()
  params = state_of(task_of(model), data).params
  places_BK = jnp.asarray([[3, 0]] * 8, jnp.int32)

  def total(added_BLD):
    def add(call, arguments, named, context):
      out = call(*arguments, **named)
      is_stack = context.module.name == "transformer" and context.method_name == "__call__"
      return (out[0] + jnp.pad(added_BLD, ((0, 0), (1, 0), (0, 0))), *out[1:]) if is_stack else out

    with nn.intercept_methods(add):
      return jnp.square(
        model.apply({"params": params}, data["tokens"], places_BK, train=False, method="guesses")
      ).sum()

  gradient_BLD = np.asarray(jax.jit(jax.grad(total))(jnp.zeros((8, L, 8))))
  assert (np.abs(gradient_BLD[:, [0, 3]]).sum(axis=-1) > 0).all()
  np.testing.assert_array_equal(np.delete(gradient_BLD, [0, 3], axis=1), 0.0)


def test_training_masks_by_the_step_and_accumulation_changes_nothing():
  task, parts, data = task_of(), task_of(micro_batches=4), batch()
  state = state_of(task, data)
  step, in_parts = jax.jit(task.step), jax.jit(parts.step)
  first, again, other = (step(state, data, key)[1]["loss"] for key in (KEY, KEY, jax.random.key(1)))
  assert float(first) == float(again) != float(other)
  chex.assert_trees_all_close(step(state, data, KEY), in_parts(state, data, KEY), rtol=5e-5, atol=1e-6)


def test_documents_and_padding_are_not_seen():
  model, data = model_of(), batch(packed=True)
  params = state_of(task_of(model), data).params
  places_BK = jnp.tile(jnp.arange(L, dtype=jnp.int32), (8, 1))

  @jax.jit
  def logits(tokens_BL):
    return model.apply(
      {"params": params}, tokens_BL, places_BK, train=False, segments_BL=data["segments"], method="guesses"
    )

  before = np.asarray(logits(data["tokens"]))
  in_last_BL = np.asarray(data["segments"] == 2)
  after = np.asarray(logits(jnp.where(in_last_BL, (data["tokens"] + 1) % V, data["tokens"])))
  others_BL = np.asarray(data["segments"] >= 0) & ~in_last_BL
  np.testing.assert_allclose(before[others_BL], after[others_BL], rtol=1e-5, atol=1e-5)
  assert (np.abs(before - after)[in_last_BL].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_an_impossible_share_is_refused(share):
  with pytest.raises(UserError, match="above 0 and below 1"):
    Masking(MASK, ~NONE_V, NONE_V, NONE_V, share)


def test_no_guesses_no_numbers():
  with pytest.raises(UserError, match="no tokens to guess"):
    masked_language.summary({"loss": 0.0, "count": 0, "correct": 0})
