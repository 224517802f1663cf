"""The task of predicting the next token. Every token counts the same, wherever it stands and however batches are cut.

A batch has "tokens" (B, L+1) int32, a window of the text; −1 is where there is no text. With "segments" (B, L+1) int32
no position sees another document, and a document's first token is not predicted. Axes: B, L, V as in the models.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from research import losses, optim
from research.errors import UserError
from research.flops import training_flops
from research.models.language_model import LanguageModel
from research.models.transformer_flops import unasked
from research.parallel import collectives
from research.parallel.tables import logical_axes
from research.task import Batch, Key, Metrics, State, Sums, Task


@dataclasses.dataclass(frozen=True)
class Weights:
  """Of what is added to the cross-entropy.

  Attributes:
    z: of log²Z, the squared logarithm of the softmax's normaliser, which keeps logits from drifting (Chowdhery et al.
      2022, section 5).
    balance: of the experts' balance loss (Fedus et al. 2022, equation 4).
  """

  z: float = 0.0
  balance: float = 0.01


def language_modelling(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  token_bytes_V: np.ndarray,
  weights: Weights = Weights(),
  micro_batches: int = 1,
  ema_decay: float = 0.0,
  sample=None,
) -> Task:
  """The task of a causal `model` of (tokens_BL, *, train, segments_BL) → (logits_BLV, cache, statistics).

  Evaluation gives, over every predicted token once: loss (nats a token), perplexity, accuracy, and bits_per_byte, which
  compares models of different tokenizers.

  Args:
    model: the network.
    optimizer: from research.optim.
    token_bytes_V: UTF-8 bytes that each token stands for, int32.
    weights: of the losses that are added in training.
    micro_batches: parts of a batch whose gradients are accumulated, weighted by their tokens.
    ema_decay: decay of the averaged parameters that evaluation uses; 0 for none.
    sample: the task's `sample`.
  """

  def initialize(key: Key, batch: Batch) -> Any:
    inputs_BL, *_ = parts(batch)
    # Shapes of parameters depend on no length, and one position compiles sooner.
    return model.init(key, inputs_BL[:1, :1], train=False)["params"]

  def axes(batch: Batch) -> Any:
    return logical_axes(jax.eval_shape(initialize, jax.random.key(0), batch))

  def init(key: Key, batch: Batch) -> State:
    params = nn.meta.unbox(initialize(key, batch))
    extra = {"ema": jax.tree.map(jnp.copy, params)} if ema_decay else {}
    return State(jnp.int32(0), params, optimizer.init(params), extra)

  def gradients_of(params: Any, batch: Batch, extra: Any, key: Key):
    def mean_loss(params):
      inputs_BL, targets_BL, segments_BL = parts(batch)
      unscored, statistics = model.apply(
        {"params": params}, inputs_BL, train=True, segments_BL=segments_BL, rngs={"dropout": key}, method="unscored"
      )
      real_BL = batch["mask"] > 0
      count = jnp.maximum(real_BL.sum(), 1).astype(jnp.float32)
      mean, scores = losses.token_scores(unscored, jnp.where(real_BL, targets_BL, -1), 1.0 / count, z_loss=weights.z)
      total = scores.loss_BL.sum()
      if statistics:
        mean = mean + weights.balance * statistics["balance_loss"]
      return mean, {"loss": total, "count": count, **statistics}

    gradients, sums = jax.grad(mean_loss, has_aux=True)(params)
    return gradients, extra, sums

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    counted = {**batch, "mask": counts(batch).astype(jnp.float32)}  # a micro-batch weighs as much as its tokens
    gradients, _, sums = optim.accumulate_gradients(
      gradients_of, state.params, counted, micro_batches, extra={}, key=key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = {"ema": optim.ema_update(state.extra["ema"], params, ema_decay, state.step)} if ema_decay else {}
    found = {"loss": sums["loss"] / sums["count"], "gradient_norm": optax.tree.norm(gradients)}
    if "dropped" in sums:
      found["balance_loss"] = sums["balance_loss"] / (micro_batches * collectives.parts())
      found["dropped_tokens"] = sums["dropped"]
    return State(state.step + 1, params, opt_state, extra), found

  def evaluate(state: State, batch: Batch) -> Sums:
    inputs_BL, targets_BL, segments_BL = parts(batch)
    params = state.extra.get("ema", state.params)
    unscored, _ = model.apply(
      {"params": params}, inputs_BL, train=False, segments_BL=segments_BL, method="unscored"
    )
    real_BL = counts(batch)
    _, scores = losses.token_scores(unscored, jnp.where(real_BL, targets_BL, -1))
    right_BL = scores.guess_BL == targets_BL
    bytes_BL = jnp.asarray(token_bytes_V, jnp.int32)[jnp.maximum(targets_BL, 0)]
    return {
      "loss": scores.loss_BL.sum(),
      "count": real_BL.sum(dtype=jnp.int32),
      "correct": (real_BL & right_BL).sum(dtype=jnp.int32),
      "bytes": jnp.where(real_BL, bytes_BL, 0).sum(dtype=jnp.int32),
    }

  def flops(batch: Batch) -> float:
    tokens = jax.eval_shape(lambda batch: parts(batch)[0], batch)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), tokens)
    counted = training_flops(functools.partial(model.apply, train=False), variables, tokens)
    return counted - 3.0 * unasked(model.config, *tokens.shape)

  def tokens(batch: Batch) -> int:
    examples, window = batch["tokens"].shape
    return examples * (window - 1)

  return Task(init, step, evaluate, summary, sample=sample, flops=flops, tokens=tokens, axes=axes)


def parts(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """(inputs_BL, targets_BL, segments_BL of the inputs or None); an input is 0 where there is no text."""
  tokens_BT, segments_BT = batch["tokens"], batch.get("segments")
  inputs_BL = jnp.maximum(tokens_BT[:, :-1], 0)
  return inputs_BL, tokens_BT[:, 1:], None if segments_BT is None else segments_BT[:, :-1]


def counts(batch: Batch) -> jax.Array:
  """Which positions' predictions count: bool (B, L)."""
  tokens_BT, segments_BT = batch["tokens"], batch.get("segments")
  real_BL = (tokens_BT[:, 1:] >= 0) & (tokens_BT[:, :-1] >= 0) & (batch["mask"] > 0)[:, None]
  return real_BL if segments_BT is None else real_BL & (segments_BT[:, 1:] == segments_BT[:, :-1])


def summary(sums: Mapping[str, Any]) -> dict[str, float]:
  """The named numbers of `language_modelling`. No token: UserError."""
  count = int(sums["count"])
  if count == 0:
    raise UserError("evaluation: there are no tokens to predict")
  loss = float(sums["loss"]) / count
  found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": float(sums["correct"]) / count}
  if sums["bytes"]:
    found["bits_per_byte"] = float(sums["loss"]) / math.log(2) / float(sums["bytes"])
  return found
