"""One transformer for a GPT, a BERT and a ViT: a stack of blocks from vectors to vectors.

What goes in (tokens, patches) and what comes out (words, classes) is in language_model.py and vit.py; attention and
mixtures of experts have files of their own. Axes: B batch, L length, D width, H heads, G key and value heads, K head
width, F hidden width of the MLP, E experts, V vocabulary.
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models import layers
from research.models.attention import Attention, Cache, allowed
from research.models.experts import Experts
from research.models.transformer_config import Config, initializers
from research.parallel import collectives, gathering, pipeline
from research.parallel.activations import constrain, current

STREAM, HIDDEN = ("batch", "stream_length", None), ("batch", "length", "mlp")  # of what blocks add to, and of MLPs

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class MLP(nn.Module):
  """(…, D) → (…, D) by one hidden layer; swiglu has a gate: (silu(x W_gate) ⊙ x W_up) W_down."""

  config: Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    config = self.config
    kernel_init, last_init = initializers(config)
    dense = functools.partial(layers.dense, use_bias=config.bias, dtype=config.dtype)
    x_BLD = constrain(x_BLD, "batch", "length", None)
    up_BLF = constrain(dense(config.f, ("embed", "mlp"), kernel_init=kernel_init, name="up")(x_BLD), *HIDDEN)
    if config.mlp == "swiglu":
      hidden_BLF = nn.silu(dense(config.f, ("embed", "mlp"), kernel_init=kernel_init, name="gate")(x_BLD)) * up_BLF
    else:
      hidden_BLF = layers.activation(config.mlp)(up_BLF)
    return dense(config.width, ("mlp", "embed"), kernel_init=last_init, name="down")(hidden_BLF)


class Block(nn.Module):
  """Attention and an MLP (or experts), each a branch that is added to what it read."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    skip_rate: jax.Array,
    cache: Cache | None,
    positions_BL: jax.Array,
    segments_BL: jax.Array | None,
    mask_BLS: jax.Array | None,
    train: bool,
  ) -> tuple[jax.Array, tuple[Cache | None, Mapping[str, jax.Array]]]:
    """→ (x_BLD, (this layer's cache, the experts' statistics)); skip_rate is this layer's stochastic depth."""
    config = self.config
    norm = functools.partial(layers.Norm, config.norm, config.dtype, epsilon=config.norm_epsilon, use_bias=config.bias)
    dropout = functools.partial(layers.Dropout(config.dropout), train=train)

    def skipped(y_BLD: jax.Array) -> jax.Array:
      if not train or not config.stochastic_depth:
        return y_BLD
      key = collectives.own(self.make_rng("dropout"))
      stays_B11 = jax.random.bernoulli(key, 1.0 - skip_rate, (y_BLD.shape[0], 1, 1))
      return jnp.where(stays_B11, y_BLD / (1.0 - skip_rate).astype(y_BLD.dtype), jnp.zeros_like(y_BLD))

    def branch(name: str, x_BLD: jax.Array, function):
      normalise = norm(name=f"{name}_norm")
      if config.norm_first:
        y_BLD, more = function(normalise(x_BLD, train=train))
        return constrain(x_BLD + skipped(dropout(y_BLD)), *STREAM), more
      y_BLD, more = function(x_BLD)
      return constrain(normalise(x_BLD + skipped(dropout(y_BLD)), train=train), *STREAM), more

    attention = Attention(config, name="attention")
    x_BLD, cache = branch(
      "attention", x_BLD, lambda y_BLD: attention(y_BLD, cache, positions_BL, segments_BL, mask_BLS, train=train)
    )
    if config.experts:
      experts = functools.partial(Experts(config, name="experts"), train=train)
      x_BLD, statistics = branch("mlp", x_BLD, experts)
    else:
      mlp = MLP(config, name="mlp")
      x_BLD, statistics = branch("mlp", x_BLD, lambda y_BLD: (mlp(y_BLD), {}))
    return x_BLD, (cache, statistics)


class Transformer(nn.Module):
  """The stack. Its parameters stand under "layers", stacked on a first axis, and "norm" (pre-norm only)."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    *,
    train: bool,
    positions_BL: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, Cache | None, Mapping[str, jax.Array]]:
    """(B, L, D) → (x_BLD, cache, statistics).

    Args:
      x_BLD: embedded tokens or patches.
      train: whether dropout drops.
      positions_BL: int32; 0, 1, … where None. With a cache: where the new tokens stand in it.
      segments_BL: int32; a position sees its own segment alone, and nothing where it is negative (padding).
      cache: from `attention.empty_cache`, with this many layers; the keys and values seen so far.

    Returns: besides the values the cache with the new tokens in it, and of experts {"balance_loss": the mean over
      layers, () float32; "dropped": tokens that found no place in training, summed over layers, () float32}.
    """
    config = self.config
    x_BLD = constrain(x_BLD, *STREAM)
    batch, length = x_BLD.shape[:2]
    in_order = positions_BL is None and cache is None
    if positions_BL is None:
      positions_BL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    mask_BLS = None
    if not in_order or (train and config.dropout):  # which the kernel knows nothing of
      mask_BLS = allowed(config, positions_BL, segments_BL, None if cache is None else cache["key"].shape[2])
    block, policy = Block, REMAT[config.remat]
    if config.remat == "none" and (layout := current()) is not None and layout.gathers:
      policy = gathering.all_but_gathered
    if policy is not None:
      # Inside a scan nothing needs protection from being merged with its recomputation.
      block = nn.remat(Block, policy=policy, prevent_cse=False, static_argnums=(7,))
    stack = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
      length=config.layers,
      unroll=config.unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    skip_rates = jnp.linspace(0.0, config.stochastic_depth, config.layers)
    if pipeline.stages(current()) > 1 and not self.is_initializing() and cache is None:
      x_BLD, statistics = self._in_groups(block, x_BLD, skip_rates, positions_BL, segments_BL, mask_BLS, train), {}
    else:
      x_BLD, (cache, statistics) = stack(config, name="layers")(
        x_BLD, skip_rates, cache, positions_BL, segments_BL, mask_BLS, train
      )
    if config.norm_first:
      x_BLD = layers.Norm(config.norm, config.dtype, epsilon=config.norm_epsilon, use_bias=config.bias, name="norm")(
        x_BLD, train=train
      )
    if statistics:
      statistics = {"balance_loss": statistics["balance_loss"].mean(), "dropped": statistics["dropped"].sum()}
    return x_BLD, cache, statistics

  def _in_groups(self, block, x_BLD, skip_rates, positions_BL, segments_BL, mask_BLS, train: bool) -> jax.Array:
    """The stack as a pipeline: groups of its layers on devices of their own."""
    if self.config.experts:
      raise UserError(
        "parallel: --parallel.strategy=pp sends a batch through the layers in parts, and experts are balanced over the"
        " whole of it; --parallel.strategy=ep is for them"
      )

    def group(layers, x_bLD, more, key):
      def one(x_bLD, each):
        params, skip_rate, key = each
        rngs = {} if key is None else {"dropout": key}
        module = block(self.config, parent=None)
        return module.apply({"params": params}, x_bLD, skip_rate, None, *more, train, rngs=rngs)[0], None

      params, skip_rates = layers
      keys = None if key is None else jax.random.split(key, skip_rates.shape[0])
      return jax.lax.scan(one, x_bLD, (params, skip_rates, keys))[0]

    if mask_BLS is not None:
      mask_BLS = jnp.broadcast_to(mask_BLS, (x_BLD.shape[0], *mask_BLS.shape[1:]))
    key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
    layers = self.variables["params"]["layers"], skip_rates
    return pipeline.pipelined(group, layers, x_BLD, (positions_BL, segments_BL, mask_BLS), key)
