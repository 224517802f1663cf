"""The task of an autoencoder: plain, denoising or variational. Labels are not looked at.

Errors are averaged over an example's values; likelihoods are summed over them, in nats. What is random at evaluation is
a function of an example's index, so every evaluation sees the same noise, whatever the batches and the devices.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from research import losses, optim
from research.errors import UserError
from research.flops import training_flops
from research.models.autoencoder import Autoencoder, expected_value, gaussian_kl, log_likelihood
from research.parallel import arrays, collectives
from research.parallel.tables import logical_axes
from research.supervised import input_of
from research.task import Batch, Key, Metrics, Sample, State, Sums, Task

EVALUATION_SEED = 0x5EED  # of the noise that every evaluation repeats
COLUMNS = 8  # of pictures
_BINARY, _CODE, _FIRST_WEIGHT = 0, 1, 2  # what an example's key is folded with, for each use of it


@dataclasses.dataclass(frozen=True)
class Noise:
  """What is done to the input of a denoising autoencoder, whose target stays clean (Vincent et al. 2008).

  Attributes:
    kind: gaussian adds N(0, sigma²) to every value and clips nothing; masking sets a share of values to zero; missing
      replaces them by `fill`, and the network sees besides which values are known.
    sigma: standard deviation, in the unit of the values.
    rate: probability that a column is lost, or a pixel with all its channels.
    fill: (D,) or (C,): what stands for a missing value, the training mean.
  """

  kind: str
  sigma: float = 0.0
  rate: float = 0.0
  fill: tuple[float, ...] = (0.0,)

  def __call__(self, x: jax.Array, keys_B: Key) -> tuple[jax.Array, jax.Array]:
    """(B, …) and a key for each → (noisy values, which are known: bool (B, H, W, 1) or (B, D))."""

    def spoil(x, key):
      shape = (*x.shape[:-1], 1) if x.ndim == 3 else x.shape
      if self.kind == "gaussian":
        return x + self.sigma * jax.random.normal(key, x.shape), jnp.ones(shape, bool)
      known = jax.random.bernoulli(key, 1.0 - self.rate, shape)
      fill = jnp.asarray(self.fill if self.kind == "missing" else (0.0,), x.dtype)
      return jnp.where(jnp.broadcast_to(known, x.shape), x, jnp.broadcast_to(fill, x.shape)), known

    return jax.vmap(spoil)(x, keys_B)


@dataclasses.dataclass(frozen=True)
class Variational:
  """A variational autoencoder's likelihood and objective (Kingma and Welling 2014).

  Attributes:
    likelihood: one of models.autoencoder.LIKELIHOODS.
    binarize: draws each pixel anew as 0 or 1, 1 with its brightness as probability. Without it a bernoulli's value of
      a grey pixel is a cross-entropy and no likelihood.
    sigma: standard deviation of the gaussian, the same for all values; 0: learned, from 1.
    beta: weight of the KL divergence in the objective (Higgins et al. 2017); the metrics are those of weight 1.
    beta_steps: updates over which that weight rises from 0, linearly (Bowman et al. 2016).
    iwae_samples: K of `iwae_bound` at evaluation; 0: none.
  """

  likelihood: str = "bernoulli"
  binarize: bool = False
  sigma: float = 1.0
  beta: float = 1.0
  beta_steps: int = 0
  iwae_samples: int = 0

  def weight(self, step: jax.Array) -> jax.Array:
    """The KL divergence's weight in the update that starts from `step` finished ones, float32."""
    return self.beta * jnp.minimum(1.0, (step.astype(jnp.float32) + 1.0) / max(self.beta_steps, 1))


def autoencoding(
  model: Autoencoder,
  optimizer: optax.GradientTransformation,
  *,
  noise: Noise | None = None,
  variational: Variational | None = None,
  micro_batches: int = 1,
  ema_decay: float = 0.0,
  examples: np.ndarray | None = None,
) -> Task:
  """The task of `model` on batch["image"], float32 in [0, 1], or batch["features"].

  It is denoising with `noise`, variational with `variational`, and plain with neither. Evaluation gives

  - plain: loss = mse, and of images psnr = −10·log₁₀ mse in dB. That is the PSNR of the mean error over all images; the
    mean of the images' own PSNRs is larger, by Jensen's inequality.
  - denoising: these of the reconstruction, noisy_mse and noisy_psnr of what was spoiled, and gain_db, the difference of
    the two PSNRs; with missing values also missing_mse and noisy_missing_mse, over the missing ones alone.
  - variational: nats an example: reconstruction E_q[log p(x|z)] (by one draw of z), kl, elbo = reconstruction − kl,
    loss = −elbo, and iwae_bound.

  Args:
    model: with `posterior` exactly where `variational` is given.
    optimizer: from research.optim.
    micro_batches: parts of a batch whose gradients are accumulated.
    ema_decay: decay of the averaged parameters that evaluation uses; 0 for none.
    examples: images_NHWC uint8, a multiple of COLUMNS, to be shown with their reconstructions; None: no samples.
  """
  terms_of = functools.partial(_bounds, model, variational) if variational else functools.partial(_errors, model, noise)

  def initialize(key: Key, batch: Batch) -> Any:
    return model.init(key, _network_input(noise, input_of(batch)))["params"]

  learns_sigma = variational and variational.likelihood == "gaussian" and not variational.sigma

  def axes(batch: Batch) -> Any:
    names = logical_axes(jax.eval_shape(initialize, jax.random.key(0), batch))
    return {**names, "log_sigma": ()} if learns_sigma else names

  def init(key: Key, batch: Batch) -> State:
    params = nn.meta.unbox(initialize(key, batch))
    if learns_sigma:
      params = {**params, "log_sigma": jnp.float32(0)}
    extra = {"ema": jax.tree.map(jnp.copy, params)} if ema_decay else {}
    return State(jnp.int32(0), params, optimizer.init(params), extra)

  def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
    beta = variational.weight(state.step) if variational else None

    def gradients_of(params: Any, batch: Batch, extra: Any, key: Key):
      def objective(params):
        keys_B = collectives.rows(functools.partial(jax.random.split, key), batch["mask"].shape[0])
        terms = terms_of(params, input_of(batch), keys_B)
        terms["objective"] = terms["loss"] if beta is None else beta * terms["kl"] - terms["reconstruction"]
        sums = _masked_sums(terms, batch["mask"])
        return sums["objective"] / jnp.maximum(batch["mask"].sum(), 1), sums

      gradients, sums = jax.grad(objective, has_aux=True)(params)
      return gradients, extra, sums

    gradients, _, sums = optim.accumulate_gradients(
      gradients_of, state.params, dict(batch), micro_batches, extra={}, key=key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = {"ema": optim.ema_update(state.extra["ema"], params, ema_decay, state.step)} if ema_decay else {}
    count = jnp.maximum(sums["count"], 1).astype(jnp.float32)
    found = {name: sums[name] / count for name in ("loss", "reconstruction", "kl") if name in sums}
    if variational and variational.beta_steps:
      found["beta"] = beta
    return State(state.step + 1, params, opt_state, extra), {**found, "gradient_norm": optax.tree.norm(gradients)}

  def evaluate(state: State, batch: Batch) -> Sums:
    params, x, keys_B = state.extra.get("ema", state.params), input_of(batch), evaluation_keys(batch["index"])
    terms = terms_of(params, x, keys_B)
    if variational and variational.iwae_samples:
      terms["iwae_bound"] = iwae_bound(model, variational, params, x, keys_B)
    return _masked_sums(terms, batch["mask"])

  @functools.partial(jax.jit, static_argnums=2)
  def pictures(state: State, key: Key, count: int) -> dict[str, jax.Array]:
    params, x = state.extra.get("ema", state.params), jnp.asarray(examples, jnp.float32) / 255.0
    if variational:
      return _variational_pictures(model, variational, params, x, key, count)
    spoiled, known = noise(x, jax.random.split(key, x.shape[0])) if noise else (x, None)
    made = model.apply({"params": params}, _network_input(noise, spoiled, known))
    return {"samples": _rows(count, *((x, spoiled, made) if noise else (x, made)))}

  def sample(state: State, key: Key, count: int) -> Sample:
    made = arrays.get(pictures(state, key, count))
    return {"samples": made.pop("samples"), **made}  # first again: a compiled function sorts what it returns

  def flops(batch: Batch) -> float:
    x = jax.eval_shape(functools.partial(_network_input, noise), input_of(batch))
    return training_flops(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)

  summarize = functools.partial(summary, images=len(model.shape) == 3)
  return Task(init, step, evaluate, summarize, sample=None if examples is None else sample, flops=flops, axes=axes)


def summary(sums: Mapping[str, Any], *, images: bool) -> dict[str, float]:
  """Means of what was summed, and for errors the decibels of `autoencoding`. No examples: UserError."""
  count = int(sums["count"])
  if count == 0:
    raise UserError("evaluation: there are no examples to evaluate on")
  found = {name: float(value) / count for name, value in sums.items() if name != "count"}
  if "missing" in found:
    missing = found.pop("missing")
    found |= {name: value / missing if missing else math.nan for name, value in found.items() if "missing" in name}
  if images:
    found |= {name.replace("mse", "psnr"): decibels(1.0, found[name]) for name in ("mse", "noisy_mse") if name in found}
  if "noisy_mse" in found:
    found["gain_db"] = decibels(found["noisy_mse"], found["mse"])
  return found


def decibels(greater: float, less: float) -> float:
  """10·log₁₀ (greater / less): the PSNR, of a peak of 1 and an error; the gain, of two errors."""
  with np.errstate(all="ignore"):  # an error of 0 gives infinity, and NaN stays NaN
    return float(10 * np.log10(np.divide(greater, less)))


def evaluation_keys(index_B: jax.Array) -> Key:
  """Each example's own key, the same in every evaluation. (B,) int32 → keys_B."""
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(EVALUATION_SEED), index_B)


def iwae_bound(model: Autoencoder, variational: Variational, params: Any, x: jax.Array, keys_B: Key) -> jax.Array:
  """log (1/K) Σ_k p(x, z_k) / q(z_k|x), (B,) nats: on average between elbo and log p(x) (Burda et al. 2016, §3)."""
  x, mean_BZ, log_variance_BZ = _posterior(model, variational, params, x, keys_B)

  def log_weight_B(k: jax.Array) -> jax.Array:
    use = _FIRST_WEIGHT + k
    reconstruction_B, z_BZ, noise_BZ = _draw(model, variational, params, x, mean_BZ, log_variance_BZ, keys_B, use)
    # log N(z; 0, I) − log q(z|x): the normalisers cancel, and log q's exponent is the noise's.
    return reconstruction_B + 0.5 * (jnp.square(noise_BZ) + log_variance_BZ - jnp.square(z_BZ)).sum(axis=1)

  count = variational.iwae_samples
  return jax.nn.logsumexp(jax.lax.map(log_weight_B, jnp.arange(count)), axis=0) - math.log(count)


def _errors(model: Autoencoder, noise: Noise | None, params: Any, x: jax.Array, keys_B: Key):
  """{name: values_B}; over the missing values not the mean but the sum, and their number."""
  spoiled, known = noise(x, keys_B) if noise else (x, None)
  outputs = model.apply({"params": params}, _network_input(noise, spoiled, known))
  errors_B = losses.mean_squared_error(outputs, x)
  terms = {"loss": errors_B, "mse": errors_B}
  if noise:
    terms["noisy_mse"] = losses.mean_squared_error(spoiled, x)
  if noise and noise.kind == "missing":
    lost, over = jnp.broadcast_to(~known, x.shape), tuple(range(1, x.ndim))
    terms["missing"] = lost.sum(axis=over, dtype=jnp.int32)
    terms["missing_mse"] = jnp.where(lost, jnp.square(outputs - x), 0.0).sum(axis=over)
    terms["noisy_missing_mse"] = jnp.square(spoiled - x).sum(axis=over)  # known values are as they were
  return terms


def _bounds(model: Autoencoder, variational: Variational, params: Any, x: jax.Array, keys_B: Key):
  x, mean_BZ, log_variance_BZ = _posterior(model, variational, params, x, keys_B)
  reconstruction_B, *_ = _draw(model, variational, params, x, mean_BZ, log_variance_BZ, keys_B, _CODE)
  kl_B = gaussian_kl(mean_BZ, log_variance_BZ)
  elbo_B = reconstruction_B - kl_B
  return {"loss": -elbo_B, "elbo": elbo_B, "reconstruction": reconstruction_B, "kl": kl_B}


def _posterior(model: Autoencoder, variational: Variational, params: Any, x: jax.Array, keys_B: Key):
  """→ (x as the likelihood sees it, mean_BZ, log_variance_BZ)."""
  if variational.binarize:
    x = jax.vmap(lambda x, key: jax.random.bernoulli(jax.random.fold_in(key, _BINARY), x))(x, keys_B).astype(x.dtype)
  return x, *model.apply({"params": params}, x, method="encode")


def _draw(model, variational, params, x, mean_BZ, log_variance_BZ, keys_B, use):
  """A draw of the posterior for one of the uses of a key: (log p(x|z) of (B,) nats, z_BZ, z's standard noise_BZ)."""
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, use)
  noise_BZ = jax.vmap(lambda key: jax.random.normal(key, mean_BZ.shape[1:]))(keys_B)
  z_BZ = mean_BZ + jnp.exp(0.5 * log_variance_BZ) * noise_BZ
  outputs = model.apply({"params": params}, z_BZ, method="decode")
  log_sigma = params["log_sigma"] if "log_sigma" in params else math.log(variational.sigma or 1.0)
  return log_likelihood(variational.likelihood, outputs, x, log_sigma), z_BZ, noise_BZ


def _network_input(noise: Noise | None, x: jax.Array, known: jax.Array | None = None) -> jax.Array:
  """x, and with missing values the mask of known ones behind it, as one more channel or as many more columns."""
  if noise is None or noise.kind != "missing":
    return x
  shape = (*x.shape[:-1], 1) if x.ndim == 4 else x.shape
  return jnp.concatenate([x, jnp.ones(shape, x.dtype) if known is None else known.astype(x.dtype)], axis=-1)


def _masked_sums(terms: dict[str, jax.Array], mask_B: jax.Array) -> Sums:
  """Padding may hold anything, NaN too, so it is replaced and not multiplied by zero."""
  real_B = mask_B > 0
  sums = {name: jnp.where(real_B, value_B, jnp.zeros_like(value_B)).sum() for name, value_B in terms.items()}
  return {**sums, "count": real_B.sum(dtype=jnp.int32)}


def _variational_pictures(model, variational, params, x, key, count) -> dict[str, jax.Array]:
  """Decoded draws of the prior; examples over their reconstructions; straight lines between examples' codes."""
  seen, mean_BZ, _ = _posterior(model, variational, params, x, jax.random.split(key, x.shape[0]))

  def decoded(z_BZ):
    outputs = model.apply({"params": params}, z_BZ, method="decode")
    return jnp.clip(expected_value(variational.likelihood, outputs), 0.0, 1.0)

  latent = mean_BZ.shape[1]
  ends = mean_BZ[:COLUMNS].reshape(2, -1, latent)
  between = jnp.linspace(ends[0], ends[1], COLUMNS, axis=1).reshape(-1, latent)
  return {
    "samples": decoded(jax.random.normal(jax.random.fold_in(key, x.shape[0]), (count, latent))),
    "reconstructions": _rows(count, x, *([seen] if variational.binarize else []), decoded(mean_BZ)),
    "interpolation": decoded(between).reshape(-1, COLUMNS, *x.shape[1:]),
  }


def _rows(count: int, *kinds_NHWC: jax.Array) -> jax.Array:
  """Pictures of the same examples under each other, about `count` of them: (R, COLUMNS, H, W, C) in [0, 1]."""
  size, *shape = kinds_NHWC[0].shape
  blocks = max(1, min(size, count // len(kinds_NHWC)) // COLUMNS)
  stacked = jnp.stack([kind[: blocks * COLUMNS].reshape(blocks, COLUMNS, *shape) for kind in kinds_NHWC], axis=1)
  return jnp.clip(stacked.reshape(-1, COLUMNS, *shape), 0.0, 1.0)
