"""DCGAN on 28×28 pixels, width 64, batch 64: an update of the discriminator on a real and a fake batch, then the
generator's; all sides draw the noise anew, and batch normalisation is in both networks.
"""

import os

from benchmarks.updates import sides, turns

BATCH, LATENT, WIDTH, RATE = sides.of_size(64, gpu=1024), 64, 64, 2e-4


def flagship(dtype: str) -> turns.Run:
  """Flagship's own task, as experiments.gan compiles it."""
  import jax

  from experiments.schema import Optim
  from research import optim
  from research.adversarial import Adversaries, Game, adversarial
  from research.allocator import keep_freed_memory
  from research.gan_losses import LOSSES
  from research.models.gan import DCDiscriminator, DCGenerator
  from research.task import step_key

  keep_freed_memory()  # as experiments.work does
  networks = DCGenerator((28, 28, 1), WIDTH, dtype=dtype), DCDiscriminator(WIDTH, norm="batch", dtype=dtype)
  players = Adversaries(*networks, LATENT)
  rule = Optim(name="adam", learning_rate=RATE, beta1=0.5, schedule="constant")
  optimizers = {name: optim.make_optimizer(rule, 1000) for name in ("generator", "discriminator")}
  task = adversarial(players, optimizers, Game(LOSSES["non_saturating"]))
  batch = {"image": _images(jax)}
  state = jax.jit(task.init)(jax.random.key(0), batch)

  def step(state, batch):
    return task.step(state, batch, step_key(0, state.step))

  step = jax.jit(step, donate_argnums=0)

  def run(count: int) -> None:
    nonlocal state
    for _ in range(count):
      state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  return run


def flax() -> turns.Run:
  """The same networks as a flax script writes them: nn.Conv, nn.ConvTranspose, two value_and_grads."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Generator(nn.Module):
    @nn.compact
    def __call__(self, z):
      x = nn.Dense(7 * 7 * 2 * WIDTH, use_bias=False)(z).reshape(-1, 7, 7, 2 * WIDTH)
      x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
      x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.ConvTranspose(WIDTH, (4, 4), (2, 2), use_bias=False)(x)))
      return jnp.tanh(nn.ConvTranspose(1, (4, 4), (2, 2))(x))

  class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.leaky_relu(nn.Conv(WIDTH, (4, 4), (2, 2))(x), 0.2)
      x = nn.Conv(2 * WIDTH, (4, 4), (2, 2), use_bias=False)(x)
      x = nn.leaky_relu(nn.BatchNorm(use_running_average=False)(x), 0.2)
      return nn.Dense(1)(x.reshape(BATCH, -1))[:, 0]

  generator, discriminator, optimizer = Generator(), Discriminator(), optax.adam(RATE, b1=0.5)
  real, keys = _images(jax), jax.random.split(jax.random.key(0))
  g = generator.init(keys[0], jnp.zeros((BATCH, LATENT)))
  d = discriminator.init(keys[1], real)

  def judge(params, statistics, x):
    return discriminator.apply({"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"])

  @jax.jit
  def step(g, d, g_opt, d_opt, key):
    z = jax.random.normal(key, (BATCH, LATENT))

    def make(params):
      return generator.apply({"params": params, "batch_stats": g["batch_stats"]}, z, mutable=["batch_stats"])

    fake, made = make(g["params"])

    def d_loss(params):
      on_real, new = judge(params, d["batch_stats"], real)
      on_fake, new = judge(params, new["batch_stats"], fake)
      return (nn.softplus(-on_real) + nn.softplus(on_fake)).mean(), new

    gradients, new = jax.grad(d_loss, has_aux=True)(d["params"])
    updates, d_opt = optimizer.update(gradients, d_opt)
    d = {"params": optax.apply_updates(d["params"], updates), **new}

    def g_loss(params):
      return nn.softplus(-judge(d["params"], d["batch_stats"], make(params)[0])[0]).mean()

    updates, g_opt = optimizer.update(jax.grad(g_loss)(g["params"]), g_opt)
    return {"params": optax.apply_updates(g["params"], updates), **made}, d, g_opt, d_opt

  state, number = (g, d, optimizer.init(g["params"]), optimizer.init(d["params"])), 0

  def run(count: int) -> None:
    nonlocal state, number
    for _ in range(count):
      number += 1
      state = step(*state, jax.random.key(number))
    jax.block_until_ready(state)

  return run


def torch(dtype: str, channels_last: bool = False) -> turns.Run:
  """PyTorch's DCGAN example with these sizes, eager."""
  import torch
  from torch import nn

  torch.set_num_threads(os.cpu_count())
  generator = nn.Sequential(
    nn.Linear(LATENT, 7 * 7 * 2 * WIDTH, bias=False), nn.Unflatten(1, (2 * WIDTH, 7, 7)), nn.BatchNorm2d(2 * WIDTH),
    nn.ReLU(True), nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(True),
    nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1), nn.Tanh(),
  )  # fmt: skip
  discriminator = nn.Sequential(
    nn.Conv2d(1, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
    nn.BatchNorm2d(2 * WIDTH), nn.LeakyReLU(0.2, True), nn.Flatten(), nn.Linear(7 * 7 * 2 * WIDTH, 1),
  )  # fmt: skip
  torch.set_default_device(sides.torch_device())
  generator, discriminator = generator.to(sides.torch_device()), discriminator.to(sides.torch_device())
  g_opt, d_opt = (torch.optim.Adam(net.parameters(), RATE, (0.5, 0.999)) for net in (generator, discriminator))
  real, entropy = torch.rand(BATCH, 1, 28, 28) * 2 - 1, nn.BCEWithLogitsLoss()
  ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
  if channels_last:
    generator, discriminator, real = (
      each.to(memory_format=torch.channels_last) for each in (generator, discriminator, real)
    )

  def run(count: int) -> None:
    for _ in range(count):
      with sides.torch_precision(dtype):
        fake = generator(torch.randn(BATCH, LATENT))
        d_loss = entropy(discriminator(real), ones) + entropy(discriminator(fake.detach()), zeros)
      d_opt.zero_grad()
      d_loss.backward()
      d_opt.step()
      g_opt.zero_grad()
      with sides.torch_precision(dtype):
        g_loss = entropy(discriminator(fake), ones)
      g_loss.backward()
      g_opt.step()
    if sides.GPU:
      torch.cuda.synchronize()

  return run


def _images(jax):
  return jax.random.uniform(jax.random.key(1), (BATCH, 28, 28, 1), minval=-1.0, maxval=1.0)


ROW = turns.Row(
  f"DCGAN, {BATCH} images of 28×28, width 64, Adam, both networks",
  {**sides.five(flagship, flax, torch), "PyTorch, channels last": lambda: torch("float32", channels_last=True)},
)
