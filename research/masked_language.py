"""The task of guessing the tokens that were taken out of a text: BERT's masked language model (Devlin et al. 2019).

A batch has "tokens" (B, L) int32, −1 where there is no text, and with "segments" (B, L) int32 no document sees another.
Training masks by (seed, step), evaluation by the example's number alone: it is exact, the same each time, and the same
in batches of any size. Axes: B batch, L tokens, K places that are guessed, V vocabulary.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research import losses, optim
from research.errors import UserError
from research.flops import training_flops
from research.masking import Masked, Masking
from research.models.bert import Bert
from research.models.transformer_flops import unasked
from research.parallel import collectives
from research.parallel.tables import logical_axes
from research.task import Batch, Key, Metrics, State, Sums, Task

_EVALUATION_SEED = 15  # of the masks that all evaluations have, whatever a run's seed


def masked_language_modelling(
  model: Bert,
  optimizer: optax.GradientTransformation,
  masking: Masking,
  *,
  micro_batches: int = 1,
  ema_decay: float = 0.0,
) -> Task:
  """The task of a `model` whose method `guesses` tells the logits of masked tokens.

  Evaluation gives, over every token that was taken out of the split: loss (nats a token), perplexity and accuracy.

  Args:
    model: the network.
    optimizer: from research.optim.
    masking: which tokens are taken out.
    micro_batches: parts of a batch whose gradients are accumulated, weighted by their guesses.
    ema_decay: decay of the averaged parameters that evaluation uses; 0 for none.
  """

  def guesses(params: Any, batch: Batch, *, train: bool, **more) -> jax.Array:
    return model.apply(
      {"params": params},
      batch["inputs"],
      batch["places"],
      train=train,
      segments_BL=batch.get("segments"),
      method="unscored_guesses",
      **more,
    )

  def masked(batch: Batch, key: Key) -> dict[str, jax.Array]:
    """The batch with texts masked; "mask" is how many of each text's guesses count."""
    found: Masked = masking(batch["tokens"], batch["index"], key)
    targets_BK = jnp.where(batch["mask"][:, None] > 0, found.targets_BK, -1)
    more = {"segments": batch["segments"]} if "segments" in batch else {}
    count_B = (targets_BK >= 0).sum(axis=1).astype(jnp.float32)
    return {"inputs": found.inputs_BL, "places": found.places_BK, "targets": targets_BK, "mask": count_B, **more}

  def initialize(key: Key, batch: Batch) -> Any:
    tokens_BL = batch["tokens"][:1, :1]  # shapes of parameters depend on no length
    return model.init(key, tokens_BL, jnp.zeros_like(tokens_BL), train=False, method="guesses")["params"]

  def axes(batch: Batch) -> Any:
    return logical_axes(jax.eval_shape(initialize, jax.random.key(0), batch))

  def init(key: Key, batch: Batch) -> State:
    params = nn.meta.unbox(initialize(key, batch))
    extra = {"ema": jax.tree.map(jnp.copy, params)} if ema_decay else {}
    return State(jnp.int32(0), params, optimizer.init(params), extra)

  def counted(params: Any, batch: Batch, **more) -> tuple[jax.Array, Sums]:
    """(the mean loss, sums)."""
    real_BK = batch["targets"] >= 0
    count = real_BK.sum(dtype=jnp.int32)
    weight = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    mean, scores = losses.token_scores(guesses(params, batch, **more), batch["targets"], weight)
    right_BK = scores.guess_BL == batch["targets"]
    return mean, {
      "loss": scores.loss_BL.sum(), "count": count, "correct": (real_BK & right_BK).sum(dtype=jnp.int32)
    }  # fmt: skip

  def gradients_of(params: Any, batch: Batch, extra: Any, key: Key):
    def mean_loss(params):
      return counted(params, batch, train=True, rngs={"dropout": key})

    gradients, sums = jax.grad(mean_loss, has_aux=True)(params)
    return gradients, extra, sums

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    masking_key, dropout_key = jax.random.split(key)
    parts = collectives.each(lambda batch: masked(batch, masking_key), collectives.split(batch))
    gradients, _, sums = optim.accumulate_gradients(
      gradients_of, state.params, collectives.merge(parts), micro_batches, extra={}, key=dropout_key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = {"ema": optim.ema_update(state.extra["ema"], params, ema_decay, state.step)} if ema_decay else {}
    count = jnp.maximum(sums["count"], 1).astype(jnp.float32)
    found = {
      "loss": sums["loss"] / count,
      "accuracy": sums["correct"].astype(jnp.float32) / count,
      "gradient_norm": optax.tree.norm(gradients),
    }
    return State(state.step + 1, params, opt_state, extra), found

  def evaluate(state: State, batch: Batch) -> Sums:
    params = state.extra.get("ema", state.params)
    return counted(params, masked(batch, jax.random.key(_EVALUATION_SEED)), train=False)[1]

  def flops(batch: Batch) -> float:
    tokens_BL = batch["tokens"]
    places_BK = jax.ShapeDtypeStruct((tokens_BL.shape[0], masking.most(tokens_BL.shape[1])), jnp.int32)
    tokens_BL = jax.ShapeDtypeStruct(tokens_BL.shape, jnp.int32)
    guess = functools.partial(model.apply, train=False, method="guesses")
    initialize = functools.partial(model.init, train=False, method="guesses")
    variables = jax.eval_shape(initialize, jax.random.key(0), tokens_BL, places_BK)
    counted = training_flops(guess, variables, tokens_BL, places_BK)
    return counted - 3.0 * unasked(model.config, tokens_BL.shape[0], tokens_BL.shape[1] + 1)  # and [CLS]

  def tokens(batch: Batch) -> int:
    return math.prod(batch["tokens"].shape)

  return Task(init, step, evaluate, summary, flops=flops, tokens=tokens, axes=axes)


def summary(sums: Mapping[str, Any]) -> dict[str, float]:
  """The named numbers of `masked_language_modelling`. No guess: UserError."""
  count = int(sums["count"])
  if count == 0:
    raise UserError("evaluation: there are no tokens to guess")
  loss = float(sums["loss"]) / count
  return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": float(sums["correct"]) / count}
