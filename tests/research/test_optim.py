"""Optimizers and schedules against their papers' formulas in float64, and accumulation against the large batch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import optim
from research.errors import UserError

STEPS = 10


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = "sgd"
  learning_rate: float = 0.1
  schedule: str = "constant"
  warmup_steps: int = 0
  final_learning_rate_fraction: float = 0.0
  momentum: float = 0.9
  beta1: float = 0.9
  beta2: float = 0.99
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  weight_decay_mask: str = "kernels"
  clip_norm: float = 0.0


def random_tree(seed):
  random = np.random.default_rng(seed)
  tree = {"hidden": {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}}
  return jax.tree.map(lambda x: x.astype(np.float32), tree | {"head": {"kernel": random.normal(size=(3, 2))}})


def run(config, gradients, params):
  """The parameters after one update for each tree of gradients."""
  optimizer = optim.make_optimizer(config, STEPS)

  @jax.jit
  def update(gradient, state, params):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(params)
  for gradient in gradients:
    params, state = update(gradient, state, params)
  return params


class Reference:
  """One parameter's optimizer in float64, from the paper; `decayed` is whether the mask lets it decay."""

  def __init__(self, config, value, decayed):
    self.c, self.w = config, value.astype(np.float64)
    self.decay = config.weight_decay if decayed else 0.0
    self.adapt = decayed
    self.m, self.v, self.t = 0.0, 0.0, 0

  def adam(self, g):
    self.t += 1
    self.m = self.c.beta1 * self.m + (1 - self.c.beta1) * g
    self.v = self.c.beta2 * self.v + (1 - self.c.beta2) * g**2
    corrected = self.m / (1 - self.c.beta1**self.t), self.v / (1 - self.c.beta2**self.t)
    return corrected[0] / (np.sqrt(corrected[1]) + self.c.epsilon)

  def step(self, g):
    g = g.astype(np.float64)
    if self.c.name in ("sgd", "momentum", "nesterov", "adam"):
      g = g + self.decay * self.w
    if self.c.name == "sgd":
      direction = g
    elif self.c.name == "momentum":
      self.v = self.c.momentum * self.v + g
      direction = self.v
    elif self.c.name == "nesterov":
      self.v = self.c.momentum * self.v + g
      direction = g + self.c.momentum * self.v
    elif self.c.name == "adam":
      direction = self.adam(g)
    elif self.c.name == "adamw":
      direction = self.adam(g) + self.decay * self.w
    elif self.c.name == "lamb":
      direction = self.adam(g) + self.decay * self.w
      direction *= np.linalg.norm(self.w) / np.linalg.norm(direction) if self.adapt else 1.0
    self.w = self.w - self.c.learning_rate * direction


@pytest.mark.parametrize("mask", ["kernels", "all"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "lamb"])
def test_three_updates_are_the_papers(name, mask):
  config = Config(name=name, weight_decay=0.05, weight_decay_mask=mask)
  params, gradients = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
  references = jax.tree.map(lambda w: Reference(config, w, decayed=mask == "all" or w.ndim >= 2), params)
  for gradient in gradients:
    jax.tree.map(lambda reference, g: reference.step(g), references, gradient)
  expected = jax.tree.map(lambda reference: reference.w, references)
  actual = run(config, gradients, params)
  # Three float32 updates of size up to 0.1 on values of size 1.
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)


def test_muon_orthogonalises_hidden_kernels_and_leaves_the_rest_to_adamw():
  random = np.random.default_rng(0)
  shapes = {
    "hidden": {"kernel": (32, 16), "bias": (16,)},
    "conv": {"kernel": (3, 3, 4, 8)},
    "head": {"kernel": (16, 4)},
  }
  params, gradient = (
    jax.tree.map(lambda s: random.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    for _ in range(2)
  )
  config = Config(name="muon", weight_decay=0.05)
  muon = run(config, [gradient], params)
  adamw = run(dataclasses.replace(config, name="adamw"), [gradient], params)
  for one, other in ((muon["hidden"]["bias"], adamw["hidden"]["bias"]), (muon["head"], adamw["head"])):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
  for name in ("hidden", "conv"):
    kernel = params[name]["kernel"].astype(np.float64)
    direction = (kernel - np.asarray(muon[name]["kernel"])) / config.learning_rate - 0.05 * kernel
    direction = direction.reshape(-1, direction.shape[-1])
    u, _, v = np.linalg.svd(gradient[name]["kernel"].reshape(direction.shape).astype(np.float64), full_matrices=False)
    # Newton and Schulz's five steps bring singular values to about 0.7-1.2, not to 1 (Jordan 2024).
    scale = 0.2 * math.sqrt(max(direction.shape))
    singular = np.linalg.svd(direction, compute_uv=False) / scale
    assert 0.6 < singular.min() <= singular.max() < 1.3
    agreement = (direction * (u @ v)).sum() / np.linalg.norm(direction) / np.linalg.norm(u @ v)
    assert agreement > 0.97
    # The scale is there so that an update's root mean square is AdamW's 0.2.
    assert np.sqrt((direction**2).mean()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("name", ["muon", "adamw", "adam"])
def test_stacked_layers_and_experts_are_updated_as_if_each_stood_alone(name):
  shapes = {"kernel": (6, 4), "bias": (4,), "up_kernel": (5, 6, 4)}
  random = np.random.default_rng(0)
  make = lambda: [{key: random.normal(size=s).astype(np.float32) for key, s in shapes.items()} for _ in range(3)]  # noqa: E731
  config = Config(name=name, weight_decay=0.1)
  layers, gradients = make(), make()
  stack = lambda trees: {"layers": jax.tree.map(lambda *each: np.stack(each), *trees)}  # noqa: E731
  stacked = run(config, [stack(gradients)], stack(layers))["layers"]
  for number, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
    alone = run(config, [gradient], layer)
    one = {"kernel": layer["up_kernel"][2]}
    expert = run(config, [{"kernel": gradient["up_kernel"][2]}], one)
    np.testing.assert_allclose(stacked["up_kernel"][number, 2], expert["kernel"], rtol=1e-4, atol=1e-6)
    for key in ("kernel", "bias"):
      np.testing.assert_allclose(stacked[key][number], alone[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", optim.NAMES)
def test_every_optimizer_brings_a_quadratic_down(name):
  target = random_tree(5)

  def loss(params):
    return sum(((a - b) ** 2).sum() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

  rate = 0.4 if name == "muon" else 0.1  # 200 updates of 0.2 times the rate have to cover a distance of about 1.5
  optimizer = optim.make_optimizer(Config(name=name, learning_rate=rate, schedule="cosine", warmup_steps=5), 200)

  def update(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  params = jax.tree.map(jnp.asarray, random_tree(0))
  (trained, _), _ = jax.jit(lambda c: jax.lax.scan(update, c, None, length=200))((params, optimizer.init(params)))
  assert float(loss(trained)) < 0.02 * float(loss(params))


def rates(total=100, **fields):
  schedule = optim.make_schedule(Config(learning_rate=2.0, **fields), total)
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total + 20)))


def test_schedules_start_at_the_peak_and_end_at_the_final_fraction():
  for schedule in ("cosine", "linear"):
    rate = rates(schedule=schedule, final_learning_rate_fraction=0.1)
    assert rate[0] == 2.0
    np.testing.assert_allclose(rate[50], 0.5 * (2.0 + 0.2), rtol=1e-6)
    np.testing.assert_allclose(rate[100:], 0.2, rtol=1e-6)  # and it stays
    assert (np.diff(rate[:101]) < 0).all()
  np.testing.assert_array_equal(rates(schedule="constant", final_learning_rate_fraction=0.1), 2.0)


def test_cosine_is_loshchilov_and_hutters_equation():
  step = np.arange(100)
  expected = 0.2 + 0.5 * (2.0 - 0.2) * (1 + np.cos(np.pi * step / 100))
  np.testing.assert_allclose(rates(schedule="cosine", final_learning_rate_fraction=0.1)[:100], expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warmup_rises_in_equal_steps_from_above_zero_to_the_peak(schedule):
  rate = rates(schedule=schedule, warmup_steps=9)
  np.testing.assert_allclose(rate[:10], 0.2 * np.arange(1, 11), rtol=1e-6)
  assert rate.max() == pytest.approx(2.0, rel=1e-6)
  if schedule != "constant":
    np.testing.assert_allclose(rate[100], 0.0, atol=1e-6)


@pytest.mark.parametrize(("warmup", "top"), [(0, 30), (40, 40)])
def test_one_cycle_has_its_three_known_points(warmup, top):
  rate = rates(schedule="one_cycle", warmup_steps=warmup, final_learning_rate_fraction=0.01)
  np.testing.assert_allclose([rate[0], rate[top], rate[100]], [2.0 / 25, 2.0, 0.02], rtol=1e-5)
  assert rate.argmax() == top
  np.testing.assert_allclose(rate[top // 2], (2.0 + 2.0 / 25) / 2, rtol=1e-5)  # half way up a half cosine
  assert (np.diff(rate[: top + 1]) > 0).all()
  assert (np.diff(rate[top:101]) < 0).all()


def test_the_optimizer_follows_its_schedule():
  config = Config(schedule="linear", warmup_steps=2)
  gradient = {"w": np.ones(1, np.float32)}
  params = run(config, [gradient] * STEPS, {"w": np.zeros(1, np.float32)})
  total = sum(float(optim.make_schedule(config, STEPS)(step)) for step in range(STEPS))
  np.testing.assert_allclose(params["w"], -total, rtol=1e-5)


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
  params = jax.tree.map(np.zeros_like, random_tree(0))
  gradient = random_tree(1)
  norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(gradient)))

  def update(clip_norm):
    return run(Config(learning_rate=1.0, clip_norm=clip_norm), [gradient], params)

  for clip_norm, scale in ((0.5 * norm, 0.5), (2.0 * norm, 1.0), (0.0, 1.0)):
    expected = jax.tree.map(lambda g, scale=scale: -scale * g, gradient)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5), update(clip_norm), expected)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "adamm"}, "no name 'adamm'"),
    ({"schedule": "cosin"}, "no schedule 'cosin'"),
    ({"weight_decay_mask": "some"}, "no weight_decay_mask 'some'"),
    ({"warmup_steps": STEPS}, "does not fit in a run of 10 steps"),
  ],
)
def test_a_wrong_config_is_the_users_error(fields, message):
  with pytest.raises(UserError, match=message):
    optim.make_optimizer(Config(**fields), STEPS)


# Gradient accumulation.


def linear_model_gradients(params, batch, extra, key):
  """Masked mean squared error of a two-layer model; `extra` counts calls; sums hold the loss and the examples."""
  del key

  def loss(params):
    predictions_B = jnp.tanh(batch["features"] @ params["a"]) @ params["b"]
    losses_B = jnp.square(predictions_B - batch["target"])
    total = (losses_B * batch["mask"]).sum()
    return total / jnp.maximum(batch["mask"].sum(), 1.0), total

  gradients, total = jax.grad(loss, has_aux=True)(params)
  return gradients, extra + 1, {"loss": total, "count": batch["mask"].sum(dtype=jnp.int32)}


def accumulation_inputs(mask):
  random = np.random.default_rng(0)
  size = len(mask)
  params = {"a": random.normal(size=(5, 7)), "b": random.normal(size=7)}
  batch = {"features": random.normal(size=(size, 5)), "target": random.normal(size=size), "mask": np.asarray(mask)}
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch))


@functools.partial(jax.jit, static_argnums=(0, 3))
def accumulate(function, params, batch, micro_batches):
  extra = jnp.zeros((), jnp.int32)
  return optim.accumulate_gradients(function, params, batch, micro_batches, extra=extra, key=jax.random.key(0))


MASKS = {
  "no example masked": [1] * 12,
  "some masked": [1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1],
  # With 4 micro-batches the second takes examples 1, 5 and 9.
  "a micro-batch entirely masked": [1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1],
  "everything masked": [0] * 12,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_accumulated_gradients_are_the_large_batchs(mask):
  params, batch = accumulation_inputs(mask)
  large, _, large_sums = accumulate(linear_model_gradients, params, batch, 1)
  for micro_batches in (4, 12):
    small, _, small_sums = accumulate(linear_model_gradients, params, batch, micro_batches)
    # Sums of a dozen float32 gradients in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), small, large)
    assert int(small_sums["count"]) == int(large_sums["count"]) == sum(mask)
    np.testing.assert_allclose(small_sums["loss"], large_sums["loss"], rtol=1e-6)


def test_an_empty_micro_batch_changes_nothing_even_with_nan_gradients():
  params, batch = accumulation_inputs(MASKS["a micro-batch entirely masked"])

  def unguarded(params, batch, extra, key):
    gradients, extra, sums = linear_model_gradients(params, batch, extra, key)
    real = batch["mask"].sum()
    return jax.tree.map(lambda g: g * (real / real), gradients), extra, sums  # 0/0 where nothing is real

  large, _, _ = accumulate(linear_model_gradients, params, batch, 1)
  small, calls_with_examples, _ = accumulate(unguarded, params, batch, 4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), small, large)
  assert int(calls_with_examples) == 3  # extra of the empty one was dropped


def test_extra_passes_through_micro_batches_in_order_and_keys_differ():
  params, batch = accumulation_inputs([1] * 6)
  batch["target"] = jnp.arange(6.0)

  def record(params, batch, extra, key):
    extra = 10 * extra + batch["target"][0].astype(jnp.int32)
    return params, extra, {"key": jax.nn.one_hot(jax.random.bits(key) % 97, 97)}

  _, extra, sums = accumulate(record, params, batch, 3)
  assert int(extra) == 12  # first examples 0, 1, 2: micro-batches are strided
  assert float(sums["key"].max()) == 1.0


def test_a_batch_that_does_not_divide_is_the_users_error():
  params, batch = accumulation_inputs([1] * 12)
  with pytest.raises(UserError, match="a batch of 12 does not divide into 5 micro-batches"):
    accumulate(linear_model_gradients, params, batch, 5)


def test_a_sharded_batch_is_split_without_moving_examples():
  params, batch = accumulation_inputs([1] * 32)
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  params, batch = jax.device_put(params, whole), jax.device_put(batch, rows)

  program = accumulate.lower(linear_model_gradients, params, batch, 4).compile().as_text()
  for move in ("all-to-all", "all-gather", "collective-permute"):
    assert move not in program


# The moving average.


def test_ema_is_its_closed_form():
  decay, steps = 0.5, 12
  trees = [{"w": jnp.asarray([float(i**2), -1.0 * i])} for i in range(steps + 1)]
  ema = trees[0]
  update = jax.jit(optim.ema_update, static_argnums=2)
  for step in range(steps):
    ema = update(ema, trees[step + 1], decay, jnp.asarray(step, jnp.int32))
  # ema = Σ_i w_i p_i, w_i = (1 − d_i) Π_{j>i} d_j, and the start has Π d_j.
  decays = [min(decay, (1 + s) / (10 + s)) for s in range(steps)]
  weights = [math.prod(decays)] + [(1 - decays[i]) * math.prod(decays[i + 1 :]) for i in range(steps)]
  assert decays[7] < decay == decays[8]  # both regimes are in it
  expected = sum(weight * np.asarray(tree["w"], np.float64) for weight, tree in zip(weights, trees, strict=True))
  np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)


def test_ema_of_constant_parameters_is_exactly_them():
  params = {"w": jnp.asarray([0.1, 1e6])}
  np.testing.assert_array_equal(optim.ema_update(params, params, 0.999, jnp.asarray(3))["w"], params["w"])
