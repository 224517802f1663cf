"""A mixture of experts: each token goes to a few of E MLPs (Shazeer et al. 2017; Fedus et al. 2022).

An expert has a fixed number of places, so that shapes are static; tokens that find none skip the layer (the residual
carries them on) and are counted. Axes: T tokens of the whole batch, E experts, C places of one, N choices of a token.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers
from research.models.transformer_config import Config, initializers


class Experts(nn.Module):
  """(B, L, D) → ((B, L, D), {"balance_loss", "dropped"}); parameters router/kernel (D, E), up, gate, down (E, …)."""

  config: Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array, *, train: bool) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    config = self.config
    kernel_init, last_init = initializers(config)
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    tokens, width = x_TD.shape

    router = layers.dense(
      config.experts, ("embed", None), use_bias=False, kernel_init=kernel_init, dtype=jnp.float32, name="router"
    )
    probabilities_TE = jax.nn.softmax(router(x_TD.astype(jnp.float32)), axis=-1)
    gate_TN, expert_TN = jax.lax.top_k(probabilities_TE, config.experts_per_token)
    gate_TN = gate_TN / gate_TN.sum(axis=-1, keepdims=True)

    # Outside training nothing is dropped: what a text's tokens get must not depend on the texts beside it.
    places = capacity(tokens, config) if train else tokens
    slot_TN, fits_TN = assign(expert_TN, config.experts, places)
    dump = config.experts * places  # one row more, for those that find no place
    buffer_SD = jnp.zeros((dump + 1, width), config.dtype)
    buffer_SD = buffer_SD.at[slot_TN].set(x_TD.astype(config.dtype)[:, None], mode="drop")
    y_ECD = self._mlps(buffer_SD[:dump].reshape(config.experts, places, width), kernel_init, last_init)
    y_SD = jnp.concatenate([y_ECD.reshape(dump, width), jnp.zeros((1, width), y_ECD.dtype)])
    weight_TN = jnp.where(fits_TN, gate_TN, 0.0).astype(config.dtype)
    y_TD = (y_SD[slot_TN] * weight_TN[:, :, None]).sum(axis=1)

    first_TE = expert_TN[:, :1] == jnp.arange(config.experts, dtype=expert_TN.dtype)[None]
    statistics = {
      # Fedus et al. 2022, equation 4: E·Σ (share of tokens whose first choice it is)·(mean probability); 1 is even.
      "balance_loss": config.experts * (first_TE.mean(axis=0) * probabilities_TE.mean(axis=0)).sum(),
      "dropped": (~fits_TN).sum().astype(jnp.float32),
    }
    return y_TD.reshape(x_BLD.shape).astype(x_BLD.dtype), statistics

  def _mlps(self, x_ECD: jax.Array, kernel_init, last_init) -> jax.Array:
    """Every expert's MLP over its places; without biases."""
    config = self.config
    experts, _, width = x_ECD.shape

    def kernel(name: str, init, shape: tuple[int, int], axes: tuple[str, str]) -> jax.Array:
      each = lambda key: jax.vmap(lambda key: init(key, shape, jnp.float32))(jax.random.split(key, experts))  # noqa: E731
      return self.param(f"{name}_kernel", nn.with_logical_partitioning(each, ("experts", *axes))).astype(config.dtype)

    up_EDF = kernel("up", kernel_init, (width, config.f), ("embed", "mlp"))
    hidden_ECF = jnp.einsum("ecd,edf->ecf", x_ECD, up_EDF)
    if config.mlp == "swiglu":
      gate_EDF = kernel("gate", kernel_init, (width, config.f), ("embed", "mlp"))
      hidden_ECF = nn.silu(jnp.einsum("ecd,edf->ecf", x_ECD, gate_EDF)) * hidden_ECF
    else:
      hidden_ECF = layers.activation(config.mlp)(hidden_ECF)
    down_EFD = kernel("down", last_init, (config.f, width), ("mlp", "embed"))
    return jnp.einsum("ecf,efd->ecd", hidden_ECF, down_EFD)


def capacity(tokens: int, config: Config) -> int:
  """C: an expert's fair share of the choices, times the capacity factor, rounded up; at most all tokens."""
  return min(tokens, math.ceil(config.capacity_factor * tokens * config.experts_per_token / config.experts))


def assign(expert_TN: jax.Array, experts: int, places: int) -> tuple[jax.Array, jax.Array]:
  """Gives each choice a place in its expert: (slot_TN in 0..experts·places, the last for none; which fit, bool).

  First choices go before second ones, and earlier tokens before later ones.
  """
  tokens, choices = expert_TN.shape
  in_turn = expert_TN.T.reshape(-1)
  is_expert_CE = in_turn[:, None] == jnp.arange(experts, dtype=in_turn.dtype)[None]
  before = jnp.cumsum(is_expert_CE.astype(jnp.int32), axis=0) - 1
  place = jnp.where(is_expert_CE, before, 0).sum(axis=1)
  fits = place < places
  slot = jnp.where(fits, in_turn * places + place, experts * places)
  return slot.reshape(choices, tokens).T, fits.reshape(choices, tokens).T
