"""The task of a generator that learns by playing against a discriminator: two networks and two optimizers in one step.

One update of the loop is `critic_steps` updates of the discriminator and one of the generator, compiled together, so a
checkpoint never falls between them. The game's losses are in `research/gan_losses.py`; this file plays it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research import optim, spectral
from research.flops import model_flops
from research.gan_losses import GanLoss, gradient_penalty, zero_centred_penalty
from research.parallel import collectives
from research.parallel.tables import logical_axes
from research.supervised import input_of
from research.task import Batch, Key, Metrics, State, Sums, Task


@dataclasses.dataclass(frozen=True)
class Game:
  """How the two play.

  Attributes:
    loss: an entry of gan_losses.LOSSES.
    critic_steps: updates of the discriminator for one of the generator, each on an equal part of the batch.
    simultaneous: both update from the same parameters; otherwise the generator answers the discriminator just updated.
    gradient_penalty, r1, r2: weights of the penalties on the discriminator's gradient; 0 for none.
    spectral_norm: divide the discriminator's kernels by their largest singular value.
    ema_decay: decay of the averaged generator that is sampled and judged; 0 for none.
  """

  loss: GanLoss
  critic_steps: int = 1
  simultaneous: bool = False
  gradient_penalty: float = 0.0
  r1: float = 0.0
  r2: float = 0.0
  spectral_norm: bool = False
  ema_decay: float = 0.0


class Adversaries:
  """Generator and discriminator as pure functions of the parts of a `State`.

  `state.params`, `opt_state` and `extra` each hold {"generator": …, "discriminator": …}: parameters, optimizer states
  and collections such as "batch_stats". `extra` also has "spectral", the singular vectors, and "ema", the averaged
  generator with its averaged statistics.
  """

  def __init__(self, generator: nn.Module, discriminator: nn.Module, latent: int):
    self.generator, self.discriminator, self.latent = generator, discriminator, latent

  def noise(self, key: Key, count: int) -> jax.Array:
    """z_BZ, standard normal float32."""
    return collectives.rows(lambda count: jax.random.normal(key, (count, self.latent), jnp.float32), count)

  def make(self, params: Any, statistics: Any, z_BZ: jax.Array, label_B: jax.Array | None) -> tuple[jax.Array, Any]:
    """The training form: → (fakes, the generator's new statistics)."""
    variables = {"params": params, **statistics}
    fake, new = self.generator.apply(variables, z_BZ, label_B, train=True, mutable=list(statistics))
    return fake, nn.meta.unbox(new)

  def score(self, params: Any, statistics: Any, x: jax.Array, label_B: jax.Array | None) -> tuple[jax.Array, Any]:
    """The training form: → (logits_B, the discriminator's new statistics)."""
    variables = {"params": params, **statistics}
    logits_B, new = self.discriminator.apply(variables, x, label_B, train=True, mutable=list(statistics))
    return logits_B, nn.meta.unbox(new)

  def generate(self, state: State, z_BZ: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
    """What the (averaged) generator makes of noise, float32: images in [−1, 1] or points."""
    averaged = state.extra.get("ema")
    params = averaged["params"] if averaged else state.params["generator"]
    statistics = averaged["statistics"] if averaged else state.extra["generator"]
    return self.generator.apply({"params": params, **statistics}, z_BZ, label_B, train=False)

  def judge_real(self, state: State, x: jax.Array, label_B: jax.Array | None) -> jax.Array:
    """The discriminator's logits_B as it stands."""
    params = state.params["discriminator"]
    if "spectral" in state.extra:
      params, _ = spectral.normalise(params, state.extra["spectral"], steps=0)
    variables = {"params": params, **state.extra["discriminator"]}
    return self.discriminator.apply(variables, x, label_B, train=False)


def adversarial(
  players: Adversaries,
  optimizers: dict[str, optax.GradientTransformation],
  game: Game,
  *,
  judge: Callable[[State, Key], dict[str, float]] | None = None,
  sample: Callable[[State, Key, int], Any] | None = None,
) -> Task:
  """The task.

  Args:
    players: both networks.
    optimizers: "generator" and "discriminator", from research.optim.
    game: how they play.
    judge: as in `Task`.
    sample: as in `Task`.

  Labels of fakes are those of the real examples beside them, so their frequencies agree.
  """

  def initialize(generator_key: Key, discriminator_key: Key, batch: Batch) -> dict[str, Any]:
    x, label_B = input_of(batch), batch.get("label")
    z_BZ = jnp.zeros((x.shape[0], players.latent), jnp.float32)
    return {
      "generator": players.generator.init(generator_key, z_BZ, label_B, train=False),
      "discriminator": players.discriminator.init(discriminator_key, x, label_B, train=False),
    }

  def axes(batch: Batch) -> Any:
    key = jax.random.key(0)
    variables = jax.eval_shape(initialize, key, key, batch)
    return {name: logical_axes(value["params"]) for name, value in variables.items()}

  def init(key: Key, batch: Batch) -> State:
    generator_key, discriminator_key, spectral_key = jax.random.split(key, 3)
    variables = initialize(generator_key, discriminator_key, batch)
    variables = {name: dict(nn.meta.unbox(value)) for name, value in variables.items()}
    params = {name: value.pop("params") for name, value in variables.items()}
    extra = dict(variables)
    if game.spectral_norm:
      extra["spectral"] = spectral.init_vectors(params["discriminator"], spectral_key)
    if game.ema_decay:  # copies: a donated buffer must not stand in two places
      averaged = {"params": params["generator"], "statistics": variables["generator"]}
      extra["ema"] = jax.tree.map(jnp.copy, averaged)
    return State(jnp.int32(0), params, {name: optimizers[name].init(params[name]) for name in params}, extra)

  def normalised(params: Any, vectors: Any, steps: int) -> tuple[Any, Any]:
    return spectral.normalise(params, vectors, steps) if game.spectral_norm else (params, vectors)

  def update_discriminator(mine: Any, parts: Any, key: Key):
    """mine: (params, opt_state, statistics, singular vectors), parts: (real, fake, label_B), as `collectives.each`
    takes them → (mine after one update, metrics)."""
    params, opt_state, statistics, vectors = mine

    def loss_of(params, real, fake, label_B):
      weights, newer = normalised(params, vectors, steps=1)
      real_B, after_real = players.score(weights, statistics, real, label_B)
      fake_B, after_fake = players.score(weights, after_real, fake, label_B)
      loss = game.loss.discriminator(real_B, fake_B).mean()
      found = {
        "critic_loss" if game.loss.critic else "discriminator_loss": loss,
        "real_logit": real_B.mean(),
        "fake_logit": fake_B.mean(),
      }
      if (threshold := game.loss.threshold) is not None:
        right_B = jnp.concatenate([real_B > threshold, fake_B < threshold])
        found["discriminator_accuracy"] = right_B.mean(dtype=jnp.float32)

      def score(x):
        return players.score(weights, statistics, x, label_B)[0]

      penalties = {
        "gradient_penalty": lambda: gradient_penalty(score, real, fake, key),
        "r1": lambda: zero_centred_penalty(score, real),
        "r2": lambda: zero_centred_penalty(score, fake),
      }
      for name, penalty in penalties.items():
        if weight := getattr(game, name):
          found[name] = penalty().mean()
          loss = loss + weight * found[name]
      return loss, (after_fake, newer, found)

    slopes = jax.grad(loss_of, has_aux=True)
    gradients, (statistics, vectors, found) = collectives.mean_of(lambda *part: slopes(params, *part), *parts)
    updates, opt_state = optimizers["discriminator"].update(gradients, opt_state, params)
    found["discriminator_gradient_norm"] = optax.tree.norm(gradients)
    vectors = jax.lax.stop_gradient(vectors)
    return (optax.apply_updates(params, updates), opt_state, statistics, vectors), found

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    real = _parts(input_of(batch), game.critic_steps)
    label = _parts(batch["label"], game.critic_steps) if "label" in batch else None
    keys = jax.random.split(key, (game.critic_steps, 2))
    params, statistics = state.params["generator"], state.extra["generator"]
    theirs = (
      state.params["discriminator"], state.opt_state["discriminator"], state.extra["discriminator"],
      state.extra.get("spectral"),
    )  # fmt: skip

    def fakes(params, noise_key, real, label_B):
      return players.make(params, statistics, players.noise(noise_key, real.shape[0]), label_B)

    def extra_update(theirs, part):
      *examples, (noise_key, penalty_key) = part
      real, label_B = collectives.split(tuple(examples))
      fake = collectives.each(lambda *part: fakes(params, noise_key, *part)[0], real, label_B)
      theirs, found = update_discriminator(theirs, (real, fake, label_B), penalty_key)
      return theirs, found["discriminator_gradient_norm"]

    if game.critic_steps > 1:
      earlier = jax.tree.map(lambda x: x[:-1], (real, label))
      theirs, earlier_norms = jax.lax.scan(extra_update, theirs, (*earlier, (keys[:-1, 0], keys[:-1, 1])))

    # The last update and the generator's answer share their fakes: one forward pass, as in PyTorch's DCGAN.
    real, label_B = collectives.split(jax.tree.map(lambda x: x[-1], (real, label)))
    fake, pull_back, made = collectives.vjp_of(
      lambda params, *part: fakes(params, keys[-1, 0], *part), params, real, label_B
    )
    before = theirs
    theirs, found = update_discriminator(theirs, (real, fake, label_B), keys[-1, 1])
    opponent, _, opponent_statistics, vectors = before if game.simultaneous else theirs
    weights, _ = normalised(opponent, vectors, steps=0)

    def generator_loss(fake, real, label_B):
      fake_B, _ = players.score(weights, opponent_statistics, fake, label_B)
      real_B = players.score(weights, opponent_statistics, real, label_B)[0] if game.loss.compares else fake_B
      return game.loss.generator(real_B, fake_B).mean()

    def answer(fake, real, label_B, made):
      loss, gradient = jax.value_and_grad(generator_loss)(fake, real, label_B)
      return loss, made, pull_back(gradient, real, label_B)

    loss, made, gradients = collectives.mean_of(answer, fake, real, label_B, made)
    updates, opt_state = optimizers["generator"].update(gradients, state.opt_state["generator"], params)
    params = optax.apply_updates(params, updates)

    extra = {"generator": made, "discriminator": theirs[2]}
    if game.spectral_norm:
      extra["spectral"] = theirs[3]
    if game.ema_decay:
      newest = {"params": params, "statistics": made}
      extra["ema"] = optim.ema_update(state.extra["ema"], newest, game.ema_decay, state.step)
    found |= {"generator_loss": loss, "generator_gradient_norm": optax.tree.norm(gradients)}
    if game.critic_steps > 1:  # the greatest of all, so that none of them can be bad unseen: a maximum keeps NaN
      found["discriminator_gradient_norm"] = jnp.maximum(found["discriminator_gradient_norm"], earlier_norms.max())
    return (
      State(
        state.step + 1,
        {"generator": params, "discriminator": theirs[0]},
        {"generator": opt_state, "discriminator": theirs[1]},
        extra,
      ),
      found,
    )

  def evaluate(state: State, batch: Batch) -> Sums:
    logits_B = players.judge_real(state, input_of(batch), batch.get("label"))
    return {"real_logit": (logits_B * batch["mask"]).sum(), "count": batch["mask"].sum()}

  def summarize(sums: Sums) -> dict[str, float]:
    return {"real_logit": float(sums["real_logit"]) / max(float(sums["count"]), 1.0)}

  def flops(batch: Batch) -> float:
    """Forward and backward passes that the mathematics asks for; the penalties' second derivatives are not counted."""
    part = {name: jax.ShapeDtypeStruct((x.shape[0] // game.critic_steps, *x.shape[1:]), x.dtype)
            for name, x in batch.items() if hasattr(x, "shape") and x.ndim}  # fmt: skip
    state = jax.eval_shape(init, jax.random.key(0), part)
    z = jax.ShapeDtypeStruct((input_of(part).shape[0], players.latent), jnp.float32)
    making = model_flops(players.generate, state, z, part.get("label"))
    judging = model_flops(players.judge_real, state, input_of(part), part.get("label"))
    # Discriminator: forward and both gradients on real and fake. Generator: the same for itself, and through the
    # discriminator forward and the input's gradient; its fakes were made for the discriminator's last update.
    return game.critic_steps * (6 * judging + making) + 2 * making + 2 * judging

  return Task(
    init=init, step=step, evaluate=evaluate, summarize=summarize, judge=judge, sample=sample, flops=flops, axes=axes
  )


def _parts(x_B: jax.Array, count: int) -> jax.Array:
  """(B, …) → (count, B/count, …), every count-th example to a part, so a batch sharded by examples stays in place."""
  return x_B.reshape(-1, count, *x_B.shape[1:]).swapaxes(0, 1)
