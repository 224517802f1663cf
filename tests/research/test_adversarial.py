"""The game's one step against the same updates written out by hand, and what it must not mix."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import gan_losses, spectral
from research.adversarial import Adversaries, Game, adversarial
from research.models.gan import DCDiscriminator, DCGenerator, PointDiscriminator, PointGenerator
from research.task import step_key

LATENT = 3


def make(batch_size=8, networks=None, batch=None, optimizers=None, **game):
  """(task, players, optimizers, state, batch) of a small game over points or given networks."""
  networks = networks or (PointGenerator(2, (8,)), PointDiscriminator((8,)))
  game = {"loss": gan_losses.LOSSES["non_saturating"], **game}
  players = Adversaries(*networks, LATENT)
  optimizers = optimizers or {"generator": optax.adam(1e-2), "discriminator": optax.sgd(0.1, momentum=0.9)}
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int32
    task = adversarial(players, optimizers, Game(**game))
  random = np.random.default_rng(0)
  batch = batch or {
    "features": jnp.asarray(random.normal(size=(batch_size, 2)), jnp.float32),
    "label": jnp.zeros(batch_size, jnp.int32),
    "mask": jnp.ones(batch_size),
  }
  return task, players, optimizers, task.init(jax.random.key(0), batch), batch


def step(task, state, batch, key=None):
  with jax.numpy_dtype_promotion("standard"):
    return jax.jit(task.step)(state, batch, step_key(0, state.step) if key is None else key)


def close(a, b, rtol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def by_hand(players, optimizers, state, batch, key, simultaneous):
  """Two gradients, two updates; nothing shared."""
  z_BZ = players.noise(jax.random.split(key, (1, 2))[0, 0], 8)
  real, generator, discriminator = batch["features"], state.params["generator"], state.params["discriminator"]

  def score(params, x):
    return players.discriminator.apply({"params": params}, x, train=True)

  def fakes(params):
    return players.generator.apply({"params": params}, z_BZ, train=True)

  def d_loss(params):
    return (jax.nn.softplus(-score(params, real)) + jax.nn.softplus(score(params, fakes(generator)))).mean()

  updates, d_state = optimizers["discriminator"].update(
    jax.grad(d_loss)(discriminator), state.opt_state["discriminator"], discriminator
  )
  newer = optax.apply_updates(discriminator, updates)
  opponent = discriminator if simultaneous else newer
  gradients = jax.grad(lambda params: jax.nn.softplus(-score(opponent, fakes(params))).mean())(generator)
  with jax.numpy_dtype_promotion("standard"):
    updates, g_state = optimizers["generator"].update(gradients, state.opt_state["generator"], generator)
  params = {"generator": optax.apply_updates(generator, updates), "discriminator": newer}
  return params, {"generator": g_state, "discriminator": d_state}


@pytest.mark.parametrize("simultaneous", [False, True])
def test_a_step_is_two_updates_by_hand(simultaneous):
  task, players, optimizers, state, batch = make(simultaneous=simultaneous)
  key = jax.random.key(3)
  expected = by_hand(players, optimizers, state, batch, key, simultaneous)
  new, _ = step(task, state, batch, key)
  close((new.params, new.opt_state), expected)
  assert int(new.step) == 1


def test_alternating_and_simultaneous_differ_only_in_the_generator():
  states = []
  for simultaneous in (False, True):
    task, _, _, state, batch = make(simultaneous=simultaneous)
    states.append(step(task, state, batch, jax.random.key(3))[0].params)
  close(states[0]["discriminator"], states[1]["discriminator"])
  heads = [each["generator"]["mlp"]["head"]["kernel"] for each in states]
  assert not np.allclose(*heads)


def test_critic_steps_are_so_many_updates_on_parts_of_the_batch():
  """Three parts of the batch are three updates of a discriminator whose generator stands still."""
  task, players, optimizers, state, batch = make(batch_size=12, critic_steps=3)
  key = jax.random.key(5)
  new, _ = step(task, state, batch, key)
  keys = jax.random.split(key, (3, 2))
  params, opt_state = state.params["discriminator"], state.opt_state["discriminator"]
  for part in range(3):
    fake = players.generator.apply({"params": state.params["generator"]}, players.noise(keys[part, 0], 4), train=True)
    real = batch["features"][part::3]

    def loss(params, real=real, fake=fake):
      real_B, fake_B = (players.discriminator.apply({"params": params}, x, train=True) for x in (real, fake))
      return (jax.nn.softplus(-real_B) + jax.nn.softplus(fake_B)).mean()

    updates, opt_state = optimizers["discriminator"].update(jax.grad(loss)(params), opt_state, params)
    params = optax.apply_updates(params, updates)
  close(new.params["discriminator"], params)
  close(new.opt_state["discriminator"], opt_state)


@pytest.mark.parametrize("name", ["r1", "r2", "gradient_penalty"])
def test_a_penalty_moves_the_discriminator_and_is_told(name):
  plain, _, _, state, batch = make()
  with_penalty, *_ = make(**{name: 2.0})
  first, found = step(plain, state, batch)
  second, told = step(with_penalty, state, batch)
  assert name not in found
  assert float(told[name]) > 0
  np.testing.assert_allclose(told["discriminator_loss"], found["discriminator_loss"], rtol=1e-6)  # told without it
  assert not np.allclose(
    first.params["discriminator"]["mlp"]["head"]["kernel"], second.params["discriminator"]["mlp"]["head"]["kernel"]
  )


def test_eight_devices_make_the_update_of_one(mesh):
  """A batch of 32 in two parts of 16, two examples to a device; batch statistics are the whole part's."""
  networks = (DCGenerator((8, 8, 1), 4), DCDiscriminator(4, norm="batch"))
  images = {"image": jax.random.normal(jax.random.key(1), (32, 8, 8, 1)), "label": jnp.zeros(32, jnp.int32)}
  options = {"networks": networks, "batch": images, "critic_steps": 2, "spectral_norm": True, "r1": 1.0}
  task, _, _, state, _ = make(**options)
  alone, told = step(task, state, images, jax.random.key(3))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  shared, found = step(task, jax.device_put(state, whole), jax.device_put(images, split), jax.random.key(3))
  close(shared.extra, alone.extra, rtol=1e-4)  # sums in another order
  close(found, told, rtol=1e-3)


def test_spectral_norm_plays_with_the_normalised_discriminator():
  task, players, _, state, batch = make(spectral_norm=True)
  real = batch["features"]
  for _ in range(30):
    state, found = step(task, state, batch)
  params, _ = spectral.normalise(state.params["discriminator"], state.extra["spectral"], steps=0)
  top = np.linalg.svd(np.asarray(params["mlp"]["hidden_0"]["kernel"]), compute_uv=False)[0]
  assert top == pytest.approx(1.0, rel=0.05)
  expected = players.discriminator.apply({"params": params}, real, train=False)
  np.testing.assert_allclose(players.judge_real(state, real, None), expected, rtol=1e-5)
  assert abs(float(found["real_logit"])) < 10


def test_the_average_is_of_parameters_and_statistics():
  networks = (DCGenerator((8, 8, 1), 2), DCDiscriminator(2, norm="batch"))
  images = {"image": jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)}
  task, players, _, state, _ = make(networks=networks, batch=images, ema_decay=0.5)
  new, _ = step(task, state, images)
  rate = 1 - min(0.5, 1 / 10)
  for part, newest in (("params", new.params["generator"]), ("statistics", new.extra["generator"])):
    old = state.extra["ema"][part]
    close(new.extra["ema"][part], jax.tree.map(lambda e, p: e + rate * (p - e), old, newest))
  z_BZ = jnp.ones((2, LATENT))
  variables = {"params": new.extra["ema"]["params"], **new.extra["ema"]["statistics"]}
  np.testing.assert_allclose(
    players.generate(new, z_BZ), players.generator.apply(variables, z_BZ, train=False), rtol=1e-6
  )


@pytest.mark.parametrize("loss", gan_losses.LOSSES)
def test_every_loss_learns_where_points_lie(loss):
  """Reals around (3, −1): the mean of the fakes comes near."""
  optimizer = optax.adam(3e-3, b1=0.0, b2=0.9)
  task, players, _, state, batch = make(
    batch_size=64, optimizers={"generator": optimizer, "discriminator": optimizer}, loss=gan_losses.LOSSES[loss],
    r1=1.0, ema_decay=0.99,
  )  # fmt: skip
  batch["features"] = 0.1 * batch["features"] + jnp.array([[3.0, -1.0]])
  play = jax.jit(task.step, donate_argnums=0)
  with jax.numpy_dtype_promotion("standard"):
    for _ in range(600):
      state, _ = play(state, batch, step_key(0, state.step))
  mean = np.asarray(players.generate(state, players.noise(jax.random.key(9), 256))).mean(0)
  np.testing.assert_allclose(mean, [3.0, -1.0], atol=0.5)


def test_evaluation_counts_real_examples_only():
  task, players, _, state, batch = make()
  sums = task.evaluate(state, {**batch, "mask": jnp.array([1.0, 1, 1, 0, 0, 0, 0, 0])})
  expected = players.judge_real(state, batch["features"][:3], None).mean()
  np.testing.assert_allclose(task.summarize(jax.device_get(sums))["real_logit"], expected, rtol=1e-5)


def test_flops_are_the_hand_count():
  task, *_, batch = make(critic_steps=2)
  made, judged = 2 * 4 * (3 * 8 + 8 * 2), 2 * 4 * (2 * 8 + 8)
  assert task.flops(batch) == 2 * (6 * judged + made) + 2 * made + 2 * judged


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_penalties_are_the_slopes_at_reals_and_at_fakes(name):
  task, players, _, state, batch = make(**{name: 2.0})
  key = jax.random.key(5)
  _, told = step(task, state, batch, key)
  z_BZ = players.noise(jax.random.split(key, (1, 2))[0, 0], 8)
  fake_BD = players.generator.apply({"params": state.params["generator"]}, z_BZ, train=True)

  def score(x_D):
    return players.discriminator.apply({"params": state.params["discriminator"]}, x_D[None], train=True)[0]

  slopes_BD = {each: jax.vmap(jax.grad(score))(x) for each, x in (("r1", batch["features"]), ("r2", fake_BD))}
  by_hand = {each: float(0.5 * (slope_BD**2).sum(-1).mean()) for each, slope_BD in slopes_BD.items()}
  np.testing.assert_allclose(told[name], by_hand[name], rtol=1e-5)
  assert abs(by_hand["r1"] / by_hand["r2"] - 1) > 1e-3, "this test could not tell them apart"


@pytest.mark.parametrize("loss", gan_losses.LOSSES)
def test_accuracy_is_told_where_a_logit_says_real_or_fake(loss):
  task, players, _, state, batch = make(loss=gan_losses.LOSSES[loss])
  key = jax.random.key(5)
  _, told = step(task, state, batch, key)
  assert ("critic_loss" in told) == (loss == "wasserstein")  # whose 0 is no victory
  assert ("discriminator_loss" in told) != ("critic_loss" in told)
  border = {"non_saturating": 0.0, "hinge": 0.0, "least_squares": 0.5}.get(loss)
  if border is None:
    assert "discriminator_accuracy" not in told
    return
  z_BZ = players.noise(jax.random.split(key, (1, 2))[0, 0], 8)
  fake_BD = players.generator.apply({"params": state.params["generator"]}, z_BZ, train=True)
  real_B, fake_B = (
    np.asarray(players.discriminator.apply({"params": state.params["discriminator"]}, x, train=True))
    for x in (batch["features"], fake_BD)
  )
  assert float(told["discriminator_accuracy"]) == ((real_B > border).mean() + (fake_B < border).mean()) / 2
