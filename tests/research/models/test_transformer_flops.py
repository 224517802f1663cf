"""Model FLOPs of transformers against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.language import language_modelling
from research.models.language_model import LanguageModel
from research.models.transformer_config import Config
from research.models.transformer_flops import seen_pairs

BATCH, LENGTH, VOCABULARY = 3, 20, 50


def flops_of(**changes):
  config = Config(**{"layers": 2, "width": 16, "heads": 4, "dtype": jnp.float32, **changes})
  model = LanguageModel(config, VOCABULARY, LENGTH)
  task = language_modelling(model, optax.sgd(0.1), token_bytes_V=np.ones(VOCABULARY, np.int32))
  tokens = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
  return task.flops({"tokens": tokens, "mask": jax.ShapeDtypeStruct((BATCH,), jnp.float32)}), config


def by_hand(config, pairs, mlps=1):
  """Products of a token: queries, keys, values, what joins them; the MLPs; the head. And of a pair: two."""
  token = config.layers * (4 * 16 * 16 + mlps * 2 * 16 * 64) + 16 * VOCABULARY
  return 3 * 2 * BATCH * (LENGTH * token + config.layers * pairs * 2 * 16)


def test_of_a_causal_mask_half_the_pairs_count():
  flops, config = flops_of()
  assert flops == by_hand(config, LENGTH * (LENGTH + 1) // 2)


def test_a_window_leaves_fewer():
  flops, config = flops_of(window=5)
  assert flops == by_hand(config, 5 * LENGTH - (4 + 3 + 2 + 1))


def test_of_many_experts_those_count_that_a_token_goes_to():
  flops, config = flops_of(experts=8, experts_per_token=2)
  router = 3 * 2 * BATCH * LENGTH * config.layers * 16 * 8
  assert flops == by_hand(config, LENGTH * (LENGTH + 1) // 2, mlps=2) + router


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 4, 30])
def test_pairs_that_see_each_other_are_those_of_the_mask(causal, window):
  places = np.arange(LENGTH)
  distance = places[:, None] - places[None]
  mask = (distance >= 0) if causal else np.ones_like(distance, bool)
  if window:
    mask &= distance < window
    mask &= distance > -window
  assert seen_pairs(Config(causal=causal, window=window), LENGTH) == mask.sum()
