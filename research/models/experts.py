"""A mixture of experts: each token goes to a few of E MLPs (Shazeer et al. 2017; Fedus et al. 2022).

An expert has a fixed number of places for each text, so that shapes are static and no text takes another's; tokens
that find none skip the layer (the residual carries them on) and are counted. A text is what GShard calls a group
(Lepikhin et al. 2021, section 2.2). Axes: B texts, L tokens of one, E experts, C places of one, S = E·C, N choices of a
token.
"""

import functools
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers
from research.models.transformer_config import Config, initializers
from research.parallel import collectives
from research.parallel.activations import constrain, with_whole


class Experts(nn.Module):
  """(B, L, D) → ((B, L, D), {"balance_loss", "dropped"}); parameters router/kernel (D, E), up, gate, down (E, …)."""

  config: Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array, *, train: bool) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    config = self.config
    kernel_init, last_init = initializers(config)
    length, width = x_BLD.shape[1:]

    router = layers.dense(
      config.experts, ("embed", None), use_bias=False, kernel_init=kernel_init, dtype=jnp.float32, name="router"
    )
    probabilities_BLE = jax.nn.softmax(router(x_BLD.astype(jnp.float32)), axis=-1)
    gate_BLN, expert_BLN = jax.lax.top_k(probabilities_BLE, config.experts_per_token)
    gate_BLN = gate_BLN / gate_BLN.sum(axis=-1, keepdims=True)

    # Outside training nothing is dropped.
    places = capacity(length, config) if train else length
    slot_BLN, fits_BLN = jax.vmap(lambda expert_LN: assign(expert_LN, config.experts, places))(expert_BLN)
    dump = config.experts * places  # one row more, for those that find no place

    def sort(x_LD: jax.Array, slot_LN: jax.Array) -> jax.Array:
      buffer_SD = jnp.zeros((dump + 1, width), config.dtype)
      buffer_SD = buffer_SD.at[slot_LN].set(x_LD.astype(config.dtype)[:, None], mode="drop")
      return buffer_SD[:dump].reshape(config.experts, places, width)

    # Where devices have experts of their own the tokens travel here, and back.
    sorted_BECD = constrain(jax.vmap(sort)(x_BLD, slot_BLN), "expert_batch", "experts", None, None)
    y_BECD = constrain(self._mlps(sorted_BECD, kernel_init, last_init), "expert_batch", "experts", None, None)
    y_BSD = constrain(y_BECD.reshape(-1, dump, width), "batch", None, None)
    y_BSD = jnp.pad(y_BSD, ((0, 0), (0, 1), (0, 0)))
    weight_BLN = jnp.where(fits_BLN, gate_BLN, 0.0).astype(config.dtype)
    y_BLD = jax.vmap(lambda y_SD, slot_LN, weight_LN: (y_SD[slot_LN] * weight_LN[:, :, None]).sum(axis=1))(
      y_BSD, slot_BLN, weight_BLN
    )

    first_BLE = expert_BLN[..., :1] == jnp.arange(config.experts, dtype=expert_BLN.dtype)[None, None]
    share_E, mean_E = first_BLE.mean(axis=(0, 1)), probabilities_BLE.mean(axis=(0, 1))
    # Of the whole batch; the gradient is this part's, since parts' gradients are meant over.
    mean_E = mean_E + jax.lax.stop_gradient(collectives.mean(mean_E) - mean_E)
    statistics = {
      # Fedus et al. 2022, equation 4: E·Σ (share of tokens whose first choice it is)·(mean probability); 1 is even.
      "balance_loss": config.experts * (collectives.mean(share_E) * mean_E).sum(),
      "dropped": (~fits_BLN).sum().astype(jnp.float32),
    }
    return y_BLD.astype(x_BLD.dtype), statistics

  def _mlps(self, x_BECD: jax.Array, kernel_init, last_init) -> jax.Array:
    """Every expert's MLP over its places; without biases."""
    config = self.config
    _, experts, _, width = x_BECD.shape

    def dense(name: str, x_BECD: jax.Array, init, shape: tuple[int, int], axes: tuple[str, str]) -> jax.Array:
      each = lambda key: jax.vmap(lambda key: init(key, shape, jnp.float32))(jax.random.split(key, experts))  # noqa: E731
      kernel_EDF = self.param(f"{name}_kernel", nn.with_logical_partitioning(each, ("experts", *axes)))
      product = functools.partial(jnp.einsum, "becd,edf->becf")
      return with_whole(product, x_BECD, kernel_EDF.astype(config.dtype), "experts", *axes)

    hidden_BECF = dense("up", x_BECD, kernel_init, (width, config.f), ("embed", "mlp"))
    if config.mlp == "swiglu":
      hidden_BECF = nn.silu(dense("gate", x_BECD, kernel_init, (width, config.f), ("embed", "mlp"))) * hidden_BECF
    else:
      hidden_BECF = layers.activation(config.mlp)(hidden_BECF)
    return dense("down", hidden_BECF, last_init, (config.f, width), ("mlp", "embed"))


def capacity(tokens: int, config: Config) -> int:
  """C: an expert's fair share of a text's choices, times the capacity factor, rounded up; at most all tokens."""
  return min(tokens, math.ceil(config.capacity_factor * tokens * config.experts_per_token / config.experts))


def assign(expert_LN: jax.Array, experts: int, places: int) -> tuple[jax.Array, jax.Array]:
  """Gives each choice a place in its expert: (slot_LN in 0..experts·places, the last for none; which fit, bool).

  First choices go before second ones, and earlier tokens before later ones.
  """
  tokens, choices = expert_LN.shape
  in_turn = expert_LN.T.reshape(-1)
  is_expert_KE = in_turn[:, None] == jnp.arange(experts, dtype=in_turn.dtype)[None]
  before = jnp.cumsum(is_expert_KE.astype(jnp.int32), axis=0) - 1
  place = jnp.where(is_expert_KE, before, 0).sum(axis=1)
  fits = place < places
  slot = jnp.where(fits, in_turn * places + place, experts * places)
  return slot.reshape(choices, tokens).T, fits.reshape(choices, tokens).T
