"""Pure, keyed augmentations inside the compiled step: (batch, key) → batch, so they are the same on every feed.

Each leaves the batch's other arrays alone and draws only from the key it is given, for all examples of the batch where
it sees a virtual shard of them (`parallel.shards`). Images are x_BHWC.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from research.parallel.collectives import own, rows
from research.task import Batch, Key

Transform = Callable[[Batch, Key], Batch]


def chain(transforms: Sequence[Transform]) -> Transform:
  """Applies transforms in turn, each with a key of its own."""

  def apply(batch: Batch, key: Key) -> Batch:
    for place, transform in enumerate(transforms):
      batch = transform(batch, jax.random.fold_in(key, place))
    return batch

  return apply


def normalise(mean_C: Sequence[float], std_C: Sequence[float]) -> Transform:
  """uint8 or float images → float32, minus the channel mean, over the channel deviation (both in the raw unit)."""

  def apply(batch: Batch, key: Key) -> Batch:
    del key
    x_BHWC = batch["image"].astype(jnp.float32)
    shape = (1, 1, 1, -1)
    mean, scale = jnp.asarray(mean_C, jnp.float32), 1 / jnp.asarray(std_C, jnp.float32)
    return {**batch, "image": (x_BHWC - mean.reshape(shape)) * scale.reshape(shape)}

  return apply


def pad_and_crop(padding: int) -> Transform:
  """Pads by reflection and cuts the original size out at a random place, each its own (He et al. 2015, §4.2)."""

  def apply(batch: Batch, key: Key) -> Batch:
    x_BHWC = batch["image"]
    height, width, channels = x_BHWC.shape[1:]
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded_BHWC = jnp.pad(x_BHWC, edges, mode="reflect" if min(height, width) > padding else "edge")
    corner_B2 = rows(lambda count: jax.random.randint(key, (count, 2), 0, 2 * padding + 1), x_BHWC.shape[0])

    def crop(x_HWC, corner_2):
      return jax.lax.dynamic_slice(x_HWC, (corner_2[0], corner_2[1], 0), (height, width, channels))

    return {**batch, "image": jax.vmap(crop)(padded_BHWC, corner_B2)}

  return apply


def flip() -> Transform:
  """Mirrors each image left to right with probability one half."""

  def apply(batch: Batch, key: Key) -> Batch:
    x_BHWC = batch["image"]
    mirrored_B = rows(lambda count: jax.random.bernoulli(key, 0.5, (count, 1, 1, 1)), x_BHWC.shape[0])
    return {**batch, "image": jnp.where(mirrored_B, x_BHWC[:, :, ::-1], x_BHWC)}

  return apply


def cutout(size: int) -> Transform:
  """Sets a square of `size` pixels to zero, the mean after normalising; it may reach over the edge (DeVries 2017)."""

  def apply(batch: Batch, key: Key) -> Batch:
    x_BHWC = batch["image"]
    batch_size, height, width, _ = x_BHWC.shape

    def covered(key, length):  # a run of `size` around a centre that is uniform over the axis
      centre_B = rows(lambda count: jax.random.randint(key, (count, 1), 0, length), batch_size)
      start_B = centre_B - size // 2
      place_L = jnp.arange(length)[None, :]
      return (place_L >= start_B) & (place_L < start_B + size)

    rows_key, columns_key = jax.random.split(key)
    hole_BHW = covered(rows_key, height)[:, :, None] & covered(columns_key, width)[:, None, :]
    return {**batch, "image": jnp.where(hole_BHW[..., None], jnp.zeros((), x_BHWC.dtype), x_BHWC)}

  return apply


def mixup(alpha: float, classes: int) -> Transform:
  """Blends each example with another of its batch by one Beta(alpha, alpha) weight (Zhang et al. 2018).

  Adds "label_probabilities" (B, classes) float32, which the loss takes in place of "label".
  """

  def apply(batch: Batch, key: Key) -> Batch:
    weight_key, order_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32)
    name = "image" if "image" in batch else "features"
    other_B = jax.random.permutation(own(order_key), batch[name].shape[0])
    label_BV = jax.nn.one_hot(batch["label"], classes, dtype=jnp.float32)
    return {
      **batch,
      name: weight * batch[name] + (1 - weight) * batch[name][other_B],
      "label_probabilities": weight * label_BV + (1 - weight) * label_BV[other_B],
    }

  return apply


def smooth_labels(amount: float, classes: int) -> Transform:
  """Takes `amount` of each label's probability and spreads it over all classes (Szegedy et al. 2016, §7).

  Adds or softens "label_probabilities" (B, classes) float32.
  """

  def apply(batch: Batch, key: Key) -> Batch:
    del key
    label_BV = batch.get("label_probabilities")
    if label_BV is None:
      label_BV = jax.nn.one_hot(batch["label"], classes, dtype=jnp.float32)
    return {**batch, "label_probabilities": (1 - amount) * label_BV + amount / classes}

  return apply
