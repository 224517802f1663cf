"""An update on one batch as each library writes it, and the sides that a row has.

The optimizers are AdamW with clipping (weight decay for what has two axes or more), Adam, and Nesterov's momentum with
weight decay. Their rates are one for all sides: they change no speed.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.updates import turns

Params = Any
GPU = bool(os.environ.get("FLAGSHIP_BENCHMARK_GPU"))  # set by benchmarks.gpu


@dataclasses.dataclass(frozen=True)
class Rule:
  """An optimizer; `clip` is the norm that gradients are clipped to."""

  name: str = "adamw"
  rate: float = 1e-3
  betas: tuple[float, float] = (0.9, 0.99)
  momentum: float = 0.9
  decay: float = 0.1
  clip: float = 1.0


ADAMW = Rule()
ADAM = Rule("adam", betas=(0.9, 0.999), decay=0.0, clip=0.0)
NESTEROV = Rule("nesterov", rate=0.01, decay=5e-4, clip=0.0)


def of_size(cpu: int, gpu: int) -> int:
  """A batch that keeps the device busy."""
  return gpu if GPU else cpu


def five(flagship: Callable, flax: Callable, torch: Callable) -> dict[str, Callable[[], turns.Run]]:
  """A row's sides from functions of a dtype's name, and for flax of nothing."""
  return {
    "Flagship": functools.partial(flagship, "float32"),
    "flax": flax,
    "PyTorch": functools.partial(torch, "float32"),
    "Flagship, bfloat16": functools.partial(flagship, "bfloat16"),
    "PyTorch, bfloat16": functools.partial(torch, "bfloat16"),
  }


def by_flagship(
  make_task: Callable[[Any], Any],
  batch: Mapping[str, np.ndarray],
  place: Callable[[Params], Params],
  rule: Rule = ADAMW,
) -> turns.Run:
  """Flagship's own task as its experiments compile it.

  Args:
    make_task: optimizer → `research.task.Task`.
    batch: what its step takes, without "mask" and "index".
    place: the parameters that it draws → the same with the benchmark's weights in their places.
    rule: the optimizer.
  """
  import jax
  import jax.numpy as jnp

  from experiments.schema import Optim
  from research import optim
  from research.allocator import keep_freed_memory
  from research.task import step_key

  keep_freed_memory()  # as experiments.work does
  config = Optim(
    name=rule.name, learning_rate=rule.rate, schedule="constant", beta1=rule.betas[0], beta2=rule.betas[1],
    momentum=rule.momentum, weight_decay=rule.decay, clip_norm=rule.clip,
  )  # fmt: skip
  task = make_task(optim.make_optimizer(config, 1000))
  size = len(next(iter(batch.values())))
  data = {**jax.tree.map(jnp.asarray, dict(batch)), "mask": jnp.ones(size), "index": jnp.arange(size)}
  state = jax.jit(task.init)(jax.random.key(0), data)
  params = jax.tree.map(jnp.asarray, place(state.params))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.params)
  state = state.replace(params=params)

  def step(state, data):
    return task.step(state, data, step_key(0, state.step))

  step = jax.jit(step, donate_argnums=0)

  def run(count: int) -> float:
    nonlocal state
    for _ in range(count):
      state, metrics = step(state, data)
    return float(metrics["loss"])

  return run


def by_optax(
  loss_of: Callable[[Params, Any, Any], Any], params: Params, extra: Any, batch: Any, rule: Rule = ADAMW
) -> turns.Run:
  """A plain script's jitted step. `loss_of` takes params, extra (batch statistics, or None), batch, and gives the loss
  and the new extra."""
  import jax
  import jax.numpy as jnp
  import optax

  def matrices(params: Params) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)

  if rule.name == "nesterov":
    decay = optax.add_decayed_weights(rule.decay, matrices)
    direction = optax.chain(decay, optax.sgd(rule.rate, rule.momentum, nesterov=True))
  elif rule.name == "adam":
    direction = optax.adam(rule.rate, *rule.betas)
  else:
    direction = optax.adamw(rule.rate, *rule.betas, weight_decay=rule.decay, mask=matrices)
  optimizer = optax.chain(optax.clip_by_global_norm(rule.clip), direction) if rule.clip else direction
  params, extra, batch = jax.tree.map(jnp.asarray, (params, extra, batch))
  state = params, extra, optimizer.init(params)

  @jax.jit
  def step(params, extra, opt_state, batch):
    (loss, extra), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, extra, batch)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), extra, opt_state), loss

  def run(count: int) -> float:
    nonlocal state
    for _ in range(count):
      state, loss = step(*state, batch)
    return float(loss)

  return run


def torch_optimizer(model: Any, rule: Rule = ADAMW) -> Any:
  """PyTorch's, with decay for what has two axes or more."""
  import torch

  matrices = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim <= 1]
  groups = [{"params": matrices, "weight_decay": rule.decay}, {"params": others, "weight_decay": 0.0}]
  fused = {"fused": True} if GPU else {}
  if rule.name == "nesterov":
    return torch.optim.SGD(groups, rule.rate, rule.momentum, nesterov=True, **fused)
  return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule.name](groups, rule.rate, rule.betas, **fused)


def torch_device() -> str:
  """The GPU where `benchmarks.gpu` asks for it, and the CPU otherwise."""
  return "cuda" if GPU else "cpu"


def torch_precision(dtype: str) -> contextlib.AbstractContextManager:
  """Autocast for bfloat16, which is what PyTorch's users write."""
  import torch

  return torch.autocast(torch_device(), torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def by_torch(
  make_model: Callable[[], Any],
  loss_of: Callable[[Any], Any],
  rule: Rule = ADAMW,
  dtype: str = "float32",
  compiled: bool = False,
) -> turns.Run:
  """Eager or by torch.compile, on all cores or the GPU. `loss_of` takes the model."""
  import torch

  torch.set_num_threads(os.cpu_count())
  model = make_model().to(torch_device())
  optimizer = torch_optimizer(model, rule)
  if compiled:
    model = torch.compile(model)

  def run(count: int) -> float:
    for _ in range(count):
      with torch_precision(dtype):
        loss = loss_of(model)
      optimizer.zero_grad()
      loss.backward()
      if rule.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), rule.clip)
      optimizer.step()
    return loss.item()

  return run
