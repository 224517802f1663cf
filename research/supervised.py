"""The task of learning a label or a target from an input: what linear models, MLPs, CNNs and ResNets have in common."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research import losses, metrics, optim
from research.flops import training_flops
from research.parallel.tables import logical_axes
from research.task import Batch, Key, Metrics, State, Sums, Task

_ERRORS = {"mean_squared_error": losses.mean_squared_error, "mean_absolute_error": losses.mean_absolute_error}


def supervised(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  loss: str,
  micro_batches: int = 1,
  ema_decay: float = 0.0,
  target_center: float = 0.0,
  target_scale: float = 1.0,
  macro_f1: bool = False,
  mirrored: bool = False,
) -> Task:
  """The task of a model of (x, *, train) → logits_BC, or predictions_B.

  Args:
    model: may keep "batch_stats", and draw from the rng "dropout" in training.
    optimizer: from research.optim.
    loss: "softmax" over logits_BC, "sigmoid" of logits_B with labels 0 and 1, "mean_squared_error" or
      "mean_absolute_error" of predictions_B.
    micro_batches: parts of a batch whose gradients are accumulated.
    ema_decay: decay of the averaged parameters that evaluation uses; 0 for none.
    target_center: the training targets' mean. A regression's model learns (target − center) / scale, and its loss is
      in that unit; predictions, mse and mae are in the target's own.
    target_scale: the training targets' standard deviation.
    macro_f1: evaluate the mean of the classes' F1 scores too; of classifiers.
    mirrored: outside training the logits are the mean of those of an image and of its mirror image.
  """
  regression = loss in _ERRORS

  def losses_of(outputs: jax.Array, batch: Batch) -> jax.Array:
    if regression:
      return _ERRORS[loss](outputs, (batch["target"] - target_center) / target_scale)
    if loss == "sigmoid":
      soft = batch.get("label_probabilities")
      return losses.sigmoid_cross_entropy(outputs, batch["label"] if soft is None else soft[:, 1])
    return losses.softmax_cross_entropy(outputs, batch.get("label_probabilities", batch["label"]))

  def initialize(key: Key, batch: Batch) -> Any:
    return model.init(key, input_of(batch), train=False)

  def axes(batch: Batch) -> Any:
    return logical_axes(jax.eval_shape(initialize, jax.random.key(0), batch)["params"])

  def init(key: Key, batch: Batch) -> State:
    variables = nn.meta.unbox(initialize(key, batch))
    params = variables.pop("params")
    extra = dict(variables)
    if ema_decay:
      extra["ema"] = jax.tree.map(jnp.copy, params)  # a copy: a donated buffer must not stand in two places
    return State(jnp.int32(0), params, optimizer.init(params), extra)

  def gradients_of(params: Any, batch: Batch, statistics: Any, key: Key):
    """→ (gradients of the mean loss over real examples, new batch statistics, sums)."""

    def mean_loss(params):
      variables, collections = {"params": params, **statistics}, list(statistics)
      outputs, new = model.apply(variables, input_of(batch), train=True, mutable=collections, rngs={"dropout": key})
      losses_B = losses_of(outputs, batch)
      total = (losses_B * batch["mask"]).sum()
      correct = jnp.float32(0) if regression else _correct(outputs, batch)
      count = batch["mask"].sum()
      sums = {"loss": total, "correct": correct, "count": count}
      return total / jnp.maximum(count, 1), (new, sums)

    gradients, (new, sums) = jax.grad(mean_loss, has_aux=True)(params)
    return gradients, nn.meta.unbox(new), sums

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    statistics = {name: value for name, value in state.extra.items() if name != "ema"}
    gradients, extra, sums = optim.accumulate_gradients(
      gradients_of, state.params, dict(batch), micro_batches, extra=statistics, key=key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if ema_decay:
      extra = {**extra, "ema": optim.ema_update(state.extra["ema"], params, ema_decay, state.step)}
    count = jnp.maximum(sums["count"], 1)
    found = {"loss": sums["loss"] / count, "gradient_norm": optax.tree.norm(gradients)}
    if not regression:
      found["accuracy"] = sums["correct"] / count
    return State(state.step + 1, params, opt_state, extra), found

  def outputs_of(state: State, batch: Batch) -> jax.Array:
    statistics = {name: value for name, value in state.extra.items() if name != "ema"}
    variables = {"params": state.extra.get("ema", state.params), **statistics}
    outputs = model.apply(variables, input_of(batch), train=False)
    if not mirrored:
      return outputs
    return (outputs + model.apply(variables, batch["image"][:, :, ::-1], train=False)) / 2

  def evaluate(state: State, batch: Batch) -> Sums:
    outputs = outputs_of(state, batch)
    losses_B = losses_of(outputs, batch)
    if regression:
      predictions_B = outputs * target_scale + target_center
      return metrics.regression_sums(predictions_B, batch["target"], losses_B, batch["mask"], center=target_center)
    sums = metrics.classification_sums(outputs, batch["label"], losses_B, batch["mask"])
    return {**sums, **metrics.class_sums(outputs, batch["label"], batch["mask"])} if macro_f1 else sums

  def per_example(state: State, batch: Batch) -> dict[str, jax.Array]:
    outputs = outputs_of(state, batch)
    losses_B = losses_of(outputs, batch)
    if regression:
      return {"target": batch["target"], "prediction": outputs * target_scale + target_center, "loss": losses_B}
    return metrics.classification_examples(outputs, batch["label"], losses_B)

  def features(state: State, batch: Batch) -> jax.Array:
    seen = []

    def watch(call, arguments, named, context):
      if context.module.name == "head" and context.method_name == "__call__":
        seen.append(arguments[0])
      return call(*arguments, **named)

    with nn.intercept_methods(watch):
      outputs_of(state, batch)
    return seen[0].reshape(seen[0].shape[0], -1).astype(jnp.float32)

  def flops(batch: Batch) -> float:
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), input_of(batch))
    return training_flops(lambda v, x: model.apply(v, x, train=False), variables, input_of(batch))

  def summarize(sums: Sums) -> dict[str, float]:
    if regression:
      return metrics.regression_summary(sums)
    found = metrics.classification_summary(sums)
    return {**found, "macro_f1": metrics.macro_f1(sums)} if macro_f1 else found

  return Task(
    init=init,
    step=step,
    evaluate=evaluate,
    summarize=summarize,
    per_example=per_example,
    features=features,
    flops=flops,
    axes=axes,
  )


def input_of(batch: Batch) -> jax.Array:
  """What the model sees: "image", "tokens" or "features"."""
  return next(batch[name] for name in ("image", "tokens", "features") if name in batch)


def _correct(outputs: jax.Array, batch: Batch) -> jax.Array:
  """How many real examples the training forward pass got right, float32."""
  right_B = metrics.two_class_logits(outputs).argmax(axis=-1).astype(jnp.int32) == batch["label"]
  return jnp.where(right_B, batch["mask"], 0.0).sum()
