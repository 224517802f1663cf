"""What a trace of the transformer counts and the mathematics does not ask for: scores that no position sees, and places
of experts that no token fills."""

from research.models.transformer_config import Config


def unasked(config: Config, batch: int, length: int) -> float:
  """FLOPs of a forward pass, to take from what `flops.model_flops` finds of one.

  Two products of each head are over all pairs of positions in a trace; with a causal mask half of them are seen (Dao
  2024, FlashAttention-2, section 4.1), with a window fewer. Outside training every expert has a place for every token.
  """
  scores = 4.0 * batch * config.heads * config.k * (length**2 - seen_pairs(config, length))
  places = 0.0
  if config.experts:
    products = 3 if config.mlp == "swiglu" else 2
    places = 2.0 * products * config.width * config.f * batch * length * (config.experts - config.experts_per_token)
  return config.layers * (scores + places)


def seen_pairs(config: Config, length: int) -> int:
  """How many pairs of a query and a key see each other, documents aside."""
  reach = min(config.window or length, length)
  before = sum(min(place + 1, reach) for place in range(length))  # itself and those before it
  return before if config.causal else min(2 * before - length, length**2) if config.window else length**2
