"""What gpt.py, vit.py and text.py share: an update by AdamW with clipping on one batch, as each library writes it.

Weight decay is for what has two axes or more. The rates are one for all three: they change no speed.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import turns

RATE, DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.99), 1.0

Params = Any


def by_flagship(
  make_task: Callable[[Any], Any], batch: Mapping[str, np.ndarray], place: Callable[[Params], Params]
) -> turns.Run:
  """Flagship's own task as its experiments compile it.

  Args:
    make_task: optimizer → `research.task.Task`.
    batch: what its step takes, without "mask" and "index".
    place: the parameters that it draws → the same with the benchmark's weights in their places.
  """
  import jax
  import jax.numpy as jnp

  from experiments.schema import Optim
  from research import optim
  from research.allocator import keep_freed_memory
  from research.task import step_key

  keep_freed_memory()  # as experiments.work does
  rule = Optim(
    name="adamw", learning_rate=RATE, schedule="constant", beta2=BETAS[1], weight_decay=DECAY, clip_norm=CLIP
  )
  task = make_task(optim.make_optimizer(rule, 1000))
  size = len(next(iter(batch.values())))
  data = {**jax.tree.map(jnp.asarray, dict(batch)), "mask": jnp.ones(size), "index": jnp.arange(size)}
  state = jax.jit(task.init)(jax.random.key(0), data)
  params = jax.tree.map(jnp.asarray, place(state.params))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.params)
  state = state.replace(params=params)
  step = jax.jit(lambda state, data: task.step(state, data, step_key(0, state.step)), donate_argnums=0)

  def run(count: int) -> float:
    nonlocal state
    for _ in range(count):
      state, metrics = step(state, data)
    return float(metrics["loss"])

  return run


def by_optax(loss_of: Callable[[Params, Any], Any], params: Params, batch: Any) -> turns.Run:
  """A plain script's jitted step."""
  import jax
  import jax.numpy as jnp
  import optax

  rule = optax.adamw(RATE, b2=BETAS[1], weight_decay=DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), rule)
  params, batch = jax.tree.map(jnp.asarray, (params, batch))
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, batch):
    loss, gradients = jax.value_and_grad(loss_of)(params, batch)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  def run(count: int) -> float:
    nonlocal params, opt_state
    for _ in range(count):
      params, opt_state, loss = step(params, opt_state, batch)
    return float(loss)

  return run


def adamw(model: Any) -> Any:
  """PyTorch's, with decay for what has two axes or more."""
  import torch

  matrices = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim <= 1]
  groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
  return torch.optim.AdamW(groups, RATE, BETAS)


def by_torch(make_model: Callable[[], Any], loss_of: Callable[[Any], Any]) -> turns.Run:
  """Eager, on all cores. `loss_of` takes the model."""
  import torch

  torch.set_num_threads(os.cpu_count())
  model = make_model()
  optimizer = adamw(model)

  def run(count: int) -> float:
    for _ in range(count):
      loss = loss_of(model)
      optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
      optimizer.step()
    return loss.item()

  return run
