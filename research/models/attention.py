"""Attention of many heads, with masks, rotary positions, and a cache of keys and values for decoding.

Axes: B batch, L new positions, S all positions that may be seen, H heads, G key and value heads, R = H / G heads that
share one of them, K head width.
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers
from research.models.transformer_config import Config, initializers
from research.parallel.activations import constrain
from research.parallel.ring import attention

Cache = Mapping[str, jax.Array]  # "key" and "value", (layers, B, S, G, K); inside a layer (B, S, G, K)


class Attention(nn.Module):
  """Multi-head, grouped-query or multi-query attention over (B, L, D).

  Where nothing but the config and the segments says who sees whom (`mask_BLS` is None), it is `kernels.attention`,
  on each device's part.
  """

  config: Config

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: Cache | None,
    positions_BL: jax.Array,
    segments_BL: jax.Array | None,
    mask_BLS: jax.Array | None,
    *,
    train: bool,
  ) -> tuple[jax.Array, Cache | None]:
    config = self.config
    batch, length = x_BLD.shape[:2]
    kernel_init, last_init = initializers(config)
    dense = functools.partial(layers.dense, use_bias=config.bias, dtype=config.dtype)

    x_BLD = constrain(x_BLD, "batch", "length", None)  # so that texts come together once for all three of them

    def heads(name: str, count: int, axis: str) -> jax.Array:
      y = dense(count * config.k, ("embed", axis), kernel_init=kernel_init, name=name)(x_BLD)
      return constrain(y.reshape(batch, length, count, config.k), "batch", "length", axis, None)

    query_BLHK = heads("query", config.heads, "heads")
    key_BLGK = heads("key", config.groups, "kv_heads")
    value_BLGK = heads("value", config.groups, "kv_heads")
    if config.qk_norm:
      norm = functools.partial(layers.Norm, "rms", config.dtype, epsilon=config.norm_epsilon)
      query_BLHK = norm(name="query_norm")(query_BLHK, train=train)
      key_BLGK = norm(name="key_norm")(key_BLGK, train=train)
    if config.rotary:
      query_BLHK = rotate(query_BLHK, positions_BL, config.rotary_base)
      key_BLGK = rotate(key_BLGK, positions_BL, config.rotary_base)
    if config.query_multiplier != 1.0:
      query_BLHK = query_BLHK * config.query_multiplier
    if cache is not None:
      cache = {
        "key": write(cache["key"], key_BLGK, positions_BL),
        "value": write(cache["value"], value_BLGK, positions_BL),
      }
      key_BLGK, value_BLGK = cache["key"], cache["value"]

    dropout = functools.partial(layers.Dropout(config.dropout), train=train)
    if mask_BLS is None:
      y_BLHK = attention(
        query_BLHK,
        key_BLGK,
        value_BLGK,
        causal=config.causal,
        segment_ids=segments_BL,
        window=config.window,
        softcap=config.attention_softcap,
      )
    else:
      y_BLHK = attend(query_BLHK, key_BLGK, value_BLGK, mask_BLS, softcap=config.attention_softcap, dropout=dropout)
    y_BLD = y_BLHK.reshape(batch, length, config.heads * config.k)
    return dense(config.width, ("heads", "embed"), kernel_init=last_init, name="out")(y_BLD), cache


def attend(
  query_BLHK: jax.Array,
  key_BSGK: jax.Array,
  value_BSGK: jax.Array,
  mask_BLS: jax.Array,
  *,
  softcap: float = 0.0,
  dropout=lambda weights: weights,
) -> jax.Array:
  """softmax(q·k / √K) v with any mask, and dropout of the softmax's weights; (B, L, H, K).

  Head h reads the key and value head h // (H / G). A row whose mask is all False gives the values' mean, which nothing
  should read.
  """
  batch, length, heads, width = query_BLHK.shape
  groups = key_BSGK.shape[2]
  query_BLGRK = (query_BLHK * width**-0.5).reshape(batch, length, groups, heads // groups, width)
  scores_BGRLS = jnp.einsum("blgrk,bsgk->bgrls", query_BLGRK, key_BSGK, preferred_element_type=jnp.float32)
  if softcap:
    scores_BGRLS = softcap * jnp.tanh(scores_BGRLS / softcap)
  scores_BGRLS = jnp.where(mask_BLS[:, None, None], scores_BGRLS, jnp.finfo(jnp.float32).min)
  weights_BGRLS = dropout(jax.nn.softmax(scores_BGRLS, axis=-1).astype(value_BSGK.dtype))
  return jnp.einsum("bgrls,bsgk->blgrk", weights_BGRLS, value_BSGK).reshape(batch, length, heads, width)


def allowed(
  config: Config, positions_BL: jax.Array, segments_BL: jax.Array | None, cache_length: int | None
) -> jax.Array:
  """Which of the S positions each of the L sees: bool (B or 1, L, S).

  With a cache, S are the cache's places, and a place is its position: those after a query's own are not seen, be they
  empty or what a longer neighbour's padding left there.
  """
  cached = cache_length is not None
  key_positions_BS = jnp.arange(cache_length, dtype=jnp.int32)[None] if cached else positions_BL
  query_BL1, key_B1S = positions_BL[:, :, None], key_positions_BS[:, None, :]
  mask_BLS = key_B1S <= query_BL1 if config.causal or cached else jnp.ones_like(key_B1S <= query_BL1)
  if config.window:
    mask_BLS &= key_B1S > query_BL1 - config.window
    if not config.causal:
      mask_BLS &= key_B1S < query_BL1 + config.window
  if segments_BL is not None:
    mask_BLS &= (segments_BL[:, :, None] == segments_BL[:, None, :]) & (segments_BL >= 0)[:, None, :]
  return mask_BLS


def rotate(x_BLHK: jax.Array, positions_BL: jax.Array, base: float) -> jax.Array:
  """Rotary positions (Su et al. 2021, equation 34): pair (i, i + K/2) turns by position·base^(−2i/K), in float32.

  The pairs are the halves' (GPT-NeoX, Llama as Hugging Face stores it), not neighbours'.
  """
  half = x_BLHK.shape[-1] // 2
  frequency_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BLK = positions_BL.astype(jnp.float32)[:, :, None] * frequency_K[None, None]
  cos_BL1K, sin_BL1K = jnp.cos(angle_BLK)[:, :, None], jnp.sin(angle_BLK)[:, :, None]
  first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos_BL1K - second * sin_BL1K, second * cos_BL1K + first * sin_BL1K]
  return jnp.concatenate(turned, axis=-1).astype(x_BLHK.dtype)


def empty_cache(config: Config, batch: int, length: int) -> Cache:
  """Zeros for `length` positions of each layer."""
  shape = (config.layers, batch, length, config.groups, config.k)
  return {name: jnp.zeros(shape, config.dtype) for name in ("key", "value")}


def write(cache_BSGK: jax.Array, new_BLGK: jax.Array, positions_BL: jax.Array) -> jax.Array:
  """Puts row b's new entries where its positions say; positions beyond the cache are dropped."""
  rows_B1 = jnp.arange(new_BLGK.shape[0])[:, None]
  return cache_BSGK.at[rows_B1, positions_BL].set(new_BLGK.astype(cache_BSGK.dtype), mode="drop")
