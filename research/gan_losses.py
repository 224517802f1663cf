"""What generator and discriminator play for, and the penalties on the discriminator's gradient.

A loss is one entry of `LOSSES`; the flag `--gan.loss` takes its choices from there. Logits are float32 (B,), higher for
what the discriminator takes for real.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.parallel import collectives


@dataclasses.dataclass(frozen=True)
class GanLoss:
  """The two sides of a game.

  Attributes:
    discriminator: (real_logits_B, fake_logits_B) → losses_B.
    generator: (real_logits_B, fake_logits_B) → losses_B.
    compares: whether the generator's loss looks at the real logits, which then have to be computed for it.
    threshold: the logit from which the discriminator takes an example for real; None where one alone says nothing.
    critic: the loss estimates a distance: near 0 it cannot tell fakes from reals, where other losses have then won.
  """

  discriminator: Callable[[jax.Array, jax.Array], jax.Array]
  generator: Callable[[jax.Array, jax.Array], jax.Array]
  compares: bool = False
  threshold: float | None = 0.0
  critic: bool = False


softplus, relu = jax.nn.softplus, jax.nn.relu


def _mean(logits_B: jax.Array) -> jax.Array:
  """Over the whole batch, on however many devices it is."""
  return collectives.mean(logits_B.mean())


LOSSES: dict[str, GanLoss] = {
  # Goodfellow et al. 2014: cross-entropy, the generator with its labels exchanged (section 3).
  "non_saturating": GanLoss(lambda real, fake: softplus(-real) + softplus(fake), lambda real, fake: softplus(-fake)),
  # Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17.
  "hinge": GanLoss(lambda real, fake: relu(1 - real) + relu(1 + fake), lambda real, fake: -fake),
  # Arjovsky et al. 2017, equation 2; it needs a discriminator of bounded slope: a gradient penalty or spectral norm.
  "wasserstein": GanLoss(lambda real, fake: fake - real, lambda real, fake: -fake, threshold=None, critic=True),
  # Mao et al. 2017, equation 9.
  "least_squares": GanLoss(
    lambda real, fake: 0.5 * ((real - 1) ** 2 + fake**2), lambda real, fake: 0.5 * (fake - 1) ** 2, threshold=0.5
  ),
  # Jolicoeur-Martineau 2019, section 4.1.2 (RSGAN): each fake against one real.
  "relativistic": GanLoss(
    lambda real, fake: softplus(fake - real), lambda real, fake: softplus(real - fake), compares=True, threshold=None
  ),
  # The same, section 4.2 (RaSGAN): each against the mean of the others.
  "relativistic_average": GanLoss(
    lambda real, fake: softplus(_mean(fake) - real) + softplus(fake - _mean(real)),
    lambda real, fake: softplus(_mean(real) - fake) + softplus(real - _mean(fake)),
    compares=True,
    threshold=None,
  ),
}

Score = Callable[[jax.Array], jax.Array]  # inputs (B, …) → logits_B


def zero_centred_penalty(score: Score, x: jax.Array) -> jax.Array:
  """½ ‖∇ₓ score(x)‖², one for each example: R1 on real inputs, R2 on fakes (Mescheder et al. 2018, equation 9)."""
  return 0.5 * _squared_slopes(score, x)


def gradient_penalty(score: Score, real: jax.Array, fake: jax.Array, key: jax.Array) -> jax.Array:
  """(‖∇ score‖ − 1)² at random points between pairs of real and fake (Gulrajani et al. 2017, equation 3)."""
  shape = (1,) * (real.ndim - 1)
  weight = collectives.rows(lambda count: jax.random.uniform(key, (count, *shape), real.dtype), real.shape[0])
  slopes_B = _squared_slopes(score, weight * real + (1 - weight) * fake)
  return (jnp.sqrt(slopes_B + 1e-12) - 1) ** 2  # the root has no derivative at zero


def _squared_slopes(score: Score, x: jax.Array) -> jax.Array:
  gradient = jax.grad(lambda x: score(x).sum())(x).astype(jnp.float32)
  return (gradient**2).reshape(gradient.shape[0], -1).sum(-1)
