"""Writing with a cache: the same tokens as recomputing everything, whatever the neighbours; ways of choosing; beams."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from research import decoding
from research.decoding import Choice, beam_search, generate
from research.errors import UserError
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config

V, S = 9, 12
MODEL = LanguageModel(Config(layers=2, width=16, heads=4, kv_heads=2, rotary=True), V, S, positions="rotary")
NGRAMS = dataclasses.replace(MODEL, ngrams=(2, 3), ngram_rows=50)
GREEDY = Choice(temperature=0.0)


@pytest.fixture(scope="module")
def params():
  return drawn(MODEL)


def drawn(model):
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), train=False))
  from flax import linen as nn

  random = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(random.normal(0, 0.5, s.shape), s.dtype), nn.meta.unbox(shapes))["params"]


@pytest.fixture(scope="module")
def log_probabilities(params):
  return by_recomputing(MODEL, params)


def by_recomputing(model, params):
  """tokens → log p of the next one, by the whole forward pass; one compiled shape."""
  forward = jax.jit(lambda tokens_BL: model.apply({"params": params}, tokens_BL, train=False)[0])

  def of(tokens):
    padded = np.zeros((1, S), np.int32)
    padded[0, : len(tokens)] = tokens
    return special.log_softmax(np.asarray(forward(padded)[0, len(tokens) - 1], np.float64))

  return of


def greedy(log_probabilities, prompt, count):
  text = list(prompt)
  for _ in range(count):
    text.append(int(log_probabilities(text).argmax()))
  return text[len(prompt) :]


def test_greedy_writing_is_what_recomputing_everything_gives(params, log_probabilities):
  prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 0]]
  made = generate(MODEL, params, prompts, count=6, length=S, choice=GREEDY)
  assert made == [greedy(log_probabilities, prompt, 6) for prompt in prompts]


def test_ngrams_are_those_of_the_text_however_it_is_cut():
  params = drawn(NGRAMS)
  log_probabilities = by_recomputing(NGRAMS, params)
  prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 0]]
  made = generate(NGRAMS, params, prompts, count=6, length=S, choice=GREEDY)
  assert made == [greedy(log_probabilities, prompt, 6) for prompt in prompts]
  assert made != generate(MODEL, params, prompts, count=6, length=S, choice=GREEDY), "the tables change nothing"
  (score, text), *_ = beam_search(NGRAMS, params, [1, 2], count=4, length=S, beams=V)
  told = sum(log_probabilities([1, 2, *text[:place]])[token] for place, token in enumerate(text))
  np.testing.assert_allclose(score * len(text), told, rtol=1e-4)


def test_nothing_is_compiled_anew_for_other_prompts(params):
  generate(MODEL, params, [[1], [2]], count=3, length=S)
  sizes = [f._cache_size() for f in (decoding.read, decoding.advance)]
  generate(MODEL, params, [[1, 2, 3], [4] * 7], count=4, length=S)
  assert [f._cache_size() for f in (decoding.read, decoding.advance)] == sizes


def test_a_text_longer_than_the_context_goes_on_from_its_last_half(params, log_probabilities):
  (made,) = generate(MODEL, params, [[1, 2, 3]], count=20, length=S, choice=GREEDY)
  assert len(made) == 20
  text = [1, 2, 3, *made]
  assert made[:10] == greedy(log_probabilities, text[:3], 10)  # up to the one that no longer has a place
  half = text[13 - S // 2 : 13]
  assert made[10:17] == greedy(log_probabilities, half, 7)


def test_draws_follow_the_models_distribution(params, log_probabilities):
  count = 2000
  made = generate(MODEL, params, [[1, 2]] * count, count=1, length=S, key=jax.random.key(3))
  share_V = np.bincount([text[0] for text in made], minlength=V) / count
  p_V = np.exp(log_probabilities([1, 2]))
  assert (np.abs(share_V - p_V) < 4 * np.sqrt(p_V * (1 - p_V) / count) + 1e-3).all()


def test_a_text_does_not_depend_on_its_neighbours(params):
  draw = lambda prompts: generate(MODEL, params, prompts, count=8, length=S, key=jax.random.key(1))  # noqa: E731
  assert draw([[1, 2, 3], [4]])[0] == draw([[1, 2, 3], [5, 6, 7, 8]])[0]


LOGITS = np.log([[0.4, 0.3, 0.2, 0.06, 0.04]])


@pytest.mark.parametrize(
  ("choice", "kept"),
  [
    (Choice(), [0, 1, 2, 3, 4]),
    (Choice(top_k=2), [0, 1]),
    (Choice(top_k=99), [0, 1, 2, 3, 4]),
    (Choice(top_p=0.35), [0]),
    (Choice(top_p=0.5), [0, 1]),
    (Choice(top_p=0.71), [0, 1, 2]),
    (Choice(min_p=0.45), [0, 1, 2]),
    (Choice(min_p=1.0), [0]),
    (Choice(temperature=0.5, min_p=0.45), [0, 1]),
    (Choice(repetition_penalty=4.0, top_k=2), [0, 2]),
  ],
)
def test_what_the_filters_leave(choice, kept):
  seen_BV = jnp.asarray([[False, True, False, False, False]])
  filtered = np.asarray(choice.filtered(jnp.asarray(LOGITS, jnp.float32), seen_BV))[0]
  assert np.flatnonzero(filtered > decoding.NEVER).tolist() == kept


def test_temperature_and_penalty_by_formula():
  seen_BV = jnp.asarray([[True, False, False, True, False]])
  logits_BV = jnp.asarray([[2.0, 1.0, 0.0, -1.0, -2.0]])
  found = Choice(temperature=0.5, repetition_penalty=2.0).filtered(logits_BV, seen_BV)
  np.testing.assert_allclose(found, [[2.0, 2.0, 0.0, -4.0, -4.0]], rtol=1e-6)


def test_enough_beams_find_the_likeliest_text_of_all(params, log_probabilities):
  prompt, count = [1, 2], 2
  scores = {}
  for first, second in itertools.product(range(V), repeat=2):
    scores[first, second] = log_probabilities(prompt)[first] + log_probabilities([*prompt, first])[second]
  best = sorted(scores, key=scores.get, reverse=True)[:3]
  found = beam_search(MODEL, params, prompt, count=count, length=S, beams=V)
  assert [tuple(text) for _, text in found[:3]] == best
  assert found[0][0] == pytest.approx(scores[best[0]] / count, rel=1e-4)
  (narrow,) = beam_search(MODEL, params, prompt, count=4, length=S, beams=1)
  assert narrow[1] == greedy(log_probabilities, prompt, 4)


def test_a_beam_ends_where_the_text_does(params, log_probabilities):
  end = int(log_probabilities([1, 2]).argmax())
  found = beam_search(MODEL, params, [1, 2], count=4, length=S, beams=3, end=end, length_penalty=0.0)
  assert any(text == [end] for _, text in found)
  assert all(end not in text[:-1] for _, text in found)


def test_it_stops_when_all_are_finished(params):
  calls = []

  def told(token_B):
    calls.append(token_B)
    return [len(calls) >= 2, len(calls) >= 4]

  made = generate(MODEL, params, [[1], [2]], count=9, length=S, told=told)
  assert [len(text) for text in made] == [2, 4]


@pytest.mark.parametrize(
  ("prompts", "message"),
  [
    ([[1], []], "prompt 2 is empty"),
    ([[1] * S], f"a prompt of {S} tokens does not fit in a context of {S} with 1 to come; at most {S - 1} would"),
    ([[1, V]], f"token {V} is beyond the vocabulary of {V}"),
  ],
)
def test_prompts_that_cannot_be_read_are_refused(params, prompts, message):
  with pytest.raises(UserError, match=message):
    generate(MODEL, params, prompts, count=1, length=S)
