"""n-grams: which tokens they are, which rows they have, and that none tells of what comes later."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models import ngrams
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config


def test_they_end_at_their_token_and_begin_in_its_segment():
  tokens_BL = jnp.array([[5, 6, 7, 8, 9], [1, 2, 3, 4, 0]], np.int32)
  segments_BL = jnp.array([[0, 0, 1, 1, 1], [3, 3, 3, 3, 3]], np.int32)
  places_BL = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32), (2, 5))
  found = np.asarray(ngrams.preceding(tokens_BL, places_BL, 3, segments_BL))
  for b, place in np.ndindex(2, 5):
    for back in range(3):
      told = place >= back and segments_BL[b, place - back] == segments_BL[b, place]
      assert found[b, place, back] == (tokens_BL[b, place - back] if told else -1)
  np.testing.assert_array_equal(
    ngrams.preceding(tokens_BL, places_BL[:, 2:4], 2), [[[7, 6], [8, 7]], [[3, 2], [4, 3]]]
  )


def test_rows_are_the_formulas_and_spread_evenly():
  past_BLN = np.stack(np.meshgrid(np.arange(60), np.arange(-1, 59), indexing="ij"), axis=-1).astype(np.int32)
  found = np.asarray(ngrams.hashed(jnp.asarray(past_BLN), 512))

  def row(gram):
    state = 0
    for token in gram:
      state = (state ^ (token + 1)) * 2_654_435_761 % 2**32
      state ^= state >> 15
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
      state = (state ^ state >> shift) * factor % 2**32
    return (state ^ state >> 16) % 512

  assert (found == np.apply_along_axis(lambda gram: row(gram.tolist()), -1, past_BLN)).all()
  counts = np.bincount(found.ravel(), minlength=512)
  expected = found.size / 512
  # Of an even spread the sum is χ² with 511 degrees of freedom: 511 ± 32.
  assert ((counts - expected) ** 2 / expected).sum() < 511 + 5 * 32
  assert (found == np.asarray(ngrams.hashed(jnp.asarray(past_BLN[..., ::-1]), 512))).mean() < 0.05, "order counts"


def test_no_logit_depends_on_what_comes_later():
  model = LanguageModel(Config(layers=1, width=8, heads=2), 7, 6, ngrams=(2, 4), ngram_rows=31)
  tokens_BL = jnp.array([[1, 2, 3, 4, 5, 6]], jnp.int32)
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), tokens_BL)
  forward = jax.jit(lambda tokens: model.apply(variables, tokens, train=False)[0])
  logits = lambda tokens: np.asarray(forward(tokens))  # noqa: E731
  changed = logits(tokens_BL.at[0, 3].set(0))
  assert (changed[0, :3] == logits(tokens_BL)[0, :3]).all()
  assert (changed[0, 3:] != logits(tokens_BL)[0, 3:]).any(axis=-1).all()


@pytest.mark.parametrize("lengths", [(1,), (2, 2), (0, 3)])
def test_lengths_that_no_ngram_has_are_refused(lengths):
  with pytest.raises(UserError, match=r"--model\.ngrams=.*such as 2,3,4"):
    ngrams.check(lengths)
