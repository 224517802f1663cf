"""Optimizers and learning-rate schedules from a config, gradient accumulation, and the moving average of parameters.

Parameters are plain (unboxed) trees of arrays. What decays and what Muon takes is decided by names and shapes: a matrix
or convolution is an array of two or more axes, an output layer is a module called "head". Axes along which arrays of
several layers ("layers") or experts ("…_kernel") are stacked do not count: each is treated as if it stood alone.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from research import mup
from research.errors import UserError
from research.parallel import collectives

NAMES = ("sgd", "momentum", "nesterov", "adam", "adamw", "lamb", "muon")
SCHEDULES = ("constant", "cosine", "linear", "one_cycle")
WEIGHT_DECAY_MASKS = ("kernels", "all")

Params = Any
Batch = Any
# (params, micro_batch, extra, key) → (gradients of the masked mean loss, new extra, sums that add up)
GradientFunction = Callable[[Params, Batch, Any, jax.Array], tuple[Params, Any, Any]]


class OptimConfig(Protocol):
  """What the functions here read of a config; any object with these attributes will do."""

  name: str  # one of NAMES
  learning_rate: float  # the highest of the schedule
  schedule: str  # one of SCHEDULES
  warmup_steps: int
  final_learning_rate_fraction: float  # of learning_rate, reached after the last step; constant ignores it
  momentum: float  # momentum, nesterov, muon
  beta1: float  # adam, adamw, lamb, and Muon's Adam half
  beta2: float
  epsilon: float
  weight_decay: float
  weight_decay_mask: str  # one of WEIGHT_DECAY_MASKS
  clip_norm: float  # of the global gradient norm; 0 is off


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
  """The learning rate as a function of the number of finished updates; float32, traceable.

  With W = warmup_steps, T = total_steps, s finished updates, peak = learning_rate, final = peak × fraction:

  - warm-up, s < W: peak·(s+1)/(W+1). It never wastes an update on a rate of 0, and gives peak at s = W.
  - constant: peak. linear: from peak at s = W straight to final at s = T.
  - cosine: the same ends along half a cosine (Loshchilov and Hutter 2017, equation 5).
  - one_cycle (Smith and Topin 2018, as PyTorch and fastai do it): half a cosine from peak/25 at s = 0 up to peak at
    s = W, or at 30% of T where W is 0, and half a cosine down to final at s = T. Momentum is not cycled.

  Beyond T the rate stays at final. Raises UserError for an unknown schedule and for a warm-up that leaves no step.
  """
  _check_choice("schedule", config.schedule, SCHEDULES)
  warmup, peak = config.warmup_steps, config.learning_rate
  if not 0 <= warmup < max(total_steps, 1):
    raise UserError(f"optim: warmup_steps {warmup} does not fit in a run of {total_steps} steps")
  one_cycle = config.schedule == "one_cycle"
  rise = (warmup or 0.3 * total_steps) if one_cycle else warmup
  final = config.final_learning_rate_fraction

  def schedule(step) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - rise) / (total_steps - rise), 0.0, 1.0)
    if config.schedule == "constant":
      fraction = jnp.ones_like(progress)
    elif config.schedule == "linear":
      fraction = 1.0 - (1.0 - final) * progress
    else:
      fraction = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(math.pi * progress))
    if one_cycle:
      rising = 1.0 - (1.0 - 1.0 / 25.0) * 0.5 * (1.0 + jnp.cos(math.pi * step / rise))
    else:
      rising = (step + 1.0) / (rise + 1.0)
    return peak * jnp.where(step < rise, rising, fraction)

  return schedule


def make_optimizer(
  config: OptimConfig, total_steps: int, growth: mup.Growth | None = None
) -> optax.GradientTransformation:
  """The optimizer, its schedule, clipping (before everything else) and weight decay, as one transformation.

  - sgd, momentum, nesterov: v ← m·v + g, as PyTorch (Sutskever et al. 2013 for Nesterov's form); no damping.
    Weight decay is the classic L2 term, added to the gradient.
  - adam (Kingma and Ba 2015): weight decay as an L2 term in the gradient.
  - adamw (Loshchilov and Hutter 2019): decoupled, −learning_rate·weight_decay·w, as PyTorch.
  - lamb (You et al. 2020): what weight_decay_mask leaves out also gets no trust ratio, as in the authors' code;
    a ratio from a bias's tiny norm would freeze it.
  - muon (Jordan 2024): orthogonalised momentum for kernels of hidden layers, a convolution's seen as a
    matrix (height·width·in, out); AdamW for biases, norms, embeddings and the layer called "head". Updates are scaled
    to AdamW's root mean square (Liu et al. 2025, equation 4), so that one learning rate serves both halves.

  With `growth` each step's size follows the shape of its parameter (`mup.scale_steps`), and Adam's epsilon is divided
  by m, as gradients are (Everett et al. 2024).

  Raises UserError for an unknown name or mask, and where maximal update has no rule.
  """
  _check_choice("name", config.name, NAMES)
  _check_choice("weight_decay_mask", config.weight_decay_mask, WEIGHT_DECAY_MASKS)
  mask = _is_kernel if config.weight_decay_mask == "kernels" else None
  decay = optax.add_decayed_weights(config.weight_decay, mask) if config.weight_decay else optax.identity()
  epsilon = config.epsilon / growth.multiplier if growth else config.epsilon
  adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=epsilon)
  muon_or_adam = _scale_by_muon_or_adam(config, adam)
  if growth:
    mup.check(config.name, config.weight_decay)
    sized = mup.scale_steps(growth, config.name)
    adam, muon_or_adam = optax.chain(adam, sized), optax.chain(muon_or_adam, sized)
  gradient = optax.chain(sized, decay) if growth else decay  # of the SGDs
  if config.name == "sgd":
    direction = gradient
  elif config.name in ("momentum", "nesterov"):
    direction = optax.chain(gradient, optax.trace(config.momentum, nesterov=config.name == "nesterov"))
  elif config.name == "adam":
    direction = optax.chain(decay, adam)
  elif config.name == "adamw":
    direction = optax.chain(adam, decay)
  elif config.name == "lamb":
    trust_ratio = optax.scale_by_trust_ratio()
    direction = optax.chain(adam, decay, optax.masked(trust_ratio, mask) if mask else trust_ratio)
  else:
    direction = optax.chain(muon_or_adam, decay)
  clip = _clip(config.clip_norm) if config.clip_norm else optax.identity()
  return _promoting(optax.chain(clip, direction, optax.scale_by_learning_rate(make_schedule(config, total_steps))))


def accumulate_gradients(
  gradient_function: GradientFunction,
  params: Params,
  batch: dict[str, jax.Array],
  micro_batches: int,
  *,
  extra: Any,
  key: jax.Array,
) -> tuple[Params, Any, Any]:
  """The gradients of a large batch from micro-batches taken one after the other, with one micro-batch's memory.

  Each micro-batch's gradients weigh as much as it has real examples (its mask's sum), so the result is the large
  batch's gradient to float tolerance also where examples are masked. A micro-batch without a real example changes
  nothing, even if its gradients are NaN. With batch normalisation the equality ends: statistics are a micro-batch's.

  Micro-batch m takes examples m, m+M, m+2M, …: a batch that is sharded over devices in contiguous pieces is
  split inside each device, and none is moved.

  Args:
    gradient_function: (params, micro_batch, extra, key) → (gradients of the mean over real examples, new extra, sums).
    batch: arrays (B, …), among them "mask" (B,).
    micro_batches: M; divides B. 1 calls the function once, with `key` itself.
    extra: threaded from one micro-batch to the next (batch statistics); any tree.
    key: folded with the micro-batch's number.

  Returns: gradients, the last extra, the sums of all micro-batches; where the batch is in parts on several devices
    (`parallel.collectives`), those of the whole batch. Raises UserError where M does not divide B.
  """
  return collectives.combined(
    lambda batch: _of_this_part(gradient_function, params, batch, micro_batches, extra, key), collectives.split(batch)
  )


def _of_this_part(gradient_function, params, batch, micro_batches, extra, key):
  """→ gradients, the weight that they have beside those of other parts, the last extra, sums."""
  size = batch["mask"].shape[0]
  if micro_batches < 1 or size % micro_batches:
    raise UserError(f"optim: a batch of {size} does not divide into {micro_batches} micro-batches")
  if micro_batches == 1:
    gradients, extra, sums = gradient_function(params, batch, extra, key)
    return gradients, batch["mask"].sum(), extra, sums

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(size // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

  def add_micro_batch(carry, numbered):
    gradients, weights, extra, sums = carry
    number, micro_batch = numbered
    new_gradients, new_extra, new_sums = gradient_function(params, micro_batch, extra, jax.random.fold_in(key, number))
    weight = micro_batch["mask"].sum()
    real = weight > 0
    weighted = jax.tree.map(lambda g: jnp.where(real, g * weight.astype(g.dtype), 0), new_gradients)
    gradients = jax.tree.map(jnp.add, gradients, weighted)
    extra = jax.tree.map(lambda old, new: jnp.where(real, new, old), extra, new_extra)
    return (gradients, weights + weight, extra, jax.tree.map(jnp.add, sums, new_sums)), None

  micro = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], micro)
  gradient_shapes, _, sum_shapes = jax.eval_shape(gradient_function, params, first, extra, key)
  zero_gradients, zero_sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (gradient_shapes, sum_shapes))
  start = (zero_gradients, jnp.zeros((), batch["mask"].dtype), extra, zero_sums)
  (gradients, weights, extra, sums), _ = jax.lax.scan(add_micro_batch, start, (jnp.arange(micro_batches), micro))
  total = jnp.where(weights > 0, weights, 1)
  return jax.tree.map(lambda g: g / total.astype(g.dtype), gradients), weights, extra, sums


def ema_update(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
  """The exponential moving average of parameters after one more update: ema + (1−d)·(params − ema).

  d = min(decay, (1+step)/(10+step)), `step` counting the updates finished before this one: early on the average spans
  the last ninth of the run, so the random start is forgotten as step⁻⁹ and no bias correction is left to do. (The rule
  is TensorFlow's; without the minimum it is polynomial-decay averaging, Shamir and Zhang 2013.)
  """
  step = jnp.asarray(step, jnp.float32)
  rate = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + rate.astype(e.dtype) * (p.astype(e.dtype) - e), ema, params)


def _scale_by_muon_or_adam(config: OptimConfig, adam: optax.GradientTransformation) -> optax.GradientTransformation:
  """optax.contrib.scale_by_muon for hidden kernels, `adam` for the rest; neither multiplied by a learning rate yet."""

  def labels(params: Params) -> Params:
    return jax.tree.map_with_path(lambda path, p: "muon" if _is_hidden_kernel(path, p) else "adam", params)

  def dimensions(params: Params) -> Params:
    # optax.partition leaves MaskedNodes, which have no leaves, where the other half's parameters were.
    return jax.tree.map_with_path(
      lambda path, p: contrib.MuonDimensionNumbers(
        reduction_axis=tuple(range(_stacks(path), p.ndim - 1)), output_axis=(p.ndim - 1,)
      ),
      params,
    )

  muon = contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=dimensions)

  def to_adam_rms(updates, params=None):
    del params
    return jax.tree.map_with_path(
      lambda path, u: u * (0.2 * math.sqrt(max(math.prod(u.shape[_stacks(path) : -1]), u.shape[-1]))), updates
    )

  return optax.partition({"muon": optax.chain(muon, optax.stateless(to_adam_rms)), "adam": adam}, labels)


def _clip(greatest: float) -> optax.GradientTransformation:
  """optax.clip_by_global_norm, which makes all gradients NaN where one is; this leaves them as they are, so that it can
  be told which one it was."""

  def clip(gradients, params=None):
    del params
    norm = optax.tree.norm(gradients)
    return jax.tree.map(lambda g: jnp.where(norm >= greatest, (g / norm.astype(g.dtype)) * greatest, g), gradients)

  return optax.stateless(clip)


def _promoting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Lets optax promote dtypes: its Adam raises a float to an int32 count, which strict promotion would refuse."""

  def init(params):
    with jax.numpy_dtype_promotion("standard"):
      return optimizer.init(params)

  def update(gradients, state, params=None):
    with jax.numpy_dtype_promotion("standard"):
      return optimizer.update(gradients, state, params)

  return optax.GradientTransformation(init, update)


def _is_kernel(params: Params) -> Params:
  return jax.tree.map_with_path(lambda path, p: p.ndim - _stacks(path) >= 2, params)


def _is_hidden_kernel(path: tuple, param: jax.Array) -> bool:
  names = _names(path)
  is_kernel = names[-1] == "kernel" or names[-1].endswith("_kernel")
  return is_kernel and param.ndim - _stacks(path) >= 2 and "head" not in names


def _stacks(path: tuple) -> int:
  """How many leading axes are a stack of layers or experts."""
  names = _names(path)
  return ("layers" in names) + names[-1].endswith("_kernel")


def _names(path: tuple) -> list[str]:
  return [str(getattr(entry, "key", entry)) for entry in path]


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise UserError(f"optim: no {field} {value!r} ({', '.join(choices)})")
