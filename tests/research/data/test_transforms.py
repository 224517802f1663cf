"""Augmentations do what their papers say, draw only from their key, and keep shapes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data import transforms

KEY = jax.random.key(0)


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    "image": jnp.asarray(rng.integers(1, 256, (64, 10, 8, 3), dtype=np.uint8)),
    "label": jnp.asarray(rng.integers(0, 5, 64, dtype=np.int32)),
    "mask": jnp.ones(64, jnp.float32),
  }


def test_normalise_gives_mean_0_and_deviation_1(batch):
  pixels = np.asarray(batch["image"], np.float64)
  mean_C, std_C = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
  x_BHWC = transforms.normalise(mean_C, std_C)(batch, KEY)["image"]
  assert x_BHWC.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(x_BHWC, np.float64).mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(np.asarray(x_BHWC, np.float64).std((0, 1, 2)), 1, atol=1e-6)


def test_pad_and_crop_cuts_each_example_out_of_its_own_padding(batch):
  padded = np.pad(batch["image"], ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
  cropped = np.asarray(transforms.pad_and_crop(2)(batch, KEY)["image"])
  places = set()
  for before, after in zip(padded, cropped, strict=True):
    found = [(r, c) for r in range(5) for c in range(5) if (before[r : r + 10, c : c + 8] == after).all()]
    assert found
    places.add(found[0])
  assert len(places) > 15  # 64 draws of 25 places leave about 2 out
  assert {r for r, _ in places} == {c for _, c in places} == set(range(5))


def test_padding_wider_than_the_image_still_works():
  batch = {"image": jnp.full((4, 1, 1, 1), 9, jnp.uint8)}
  np.testing.assert_array_equal(transforms.pad_and_crop(3)(batch, KEY)["image"], batch["image"])


def test_flip_mirrors_half_of_the_examples(batch):
  before, after = np.asarray(batch["image"]), np.asarray(transforms.flip()(batch, KEY)["image"])
  mirrored = [(b[:, ::-1] == a).all() for b, a in zip(before, after, strict=True)]
  same = [(b == a).all() for b, a in zip(before, after, strict=True)]
  assert all(m != s for m, s in zip(mirrored, same, strict=True))
  assert 16 < sum(mirrored) < 48


def test_cutout_zeroes_one_square_that_may_leave_the_image(batch):
  holes = np.asarray(transforms.cutout(4)(batch, KEY)["image"] == 0).all(-1)
  for hole in holes:
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole.sum() == len(rows) * len(columns)
    assert 2 <= len(rows) <= 4
    assert 2 <= len(columns) <= 4
  assert {hole.sum() for hole in holes} >= {16, 12}


def test_mixup_blends_inputs_and_labels_by_the_same_weight():
  inputs = {"features": jnp.eye(16, dtype=jnp.float32), "label": jnp.arange(16, dtype=jnp.int32)}
  mixed = transforms.mixup(0.4, 16)(inputs, KEY)
  # With one-hot features equal to one-hot labels, both must be mixed alike, row by row.
  np.testing.assert_allclose(mixed["features"], mixed["label_probabilities"], atol=1e-7)
  np.testing.assert_allclose(mixed["label_probabilities"].sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(mixed["label_probabilities"].sum(0), 1, atol=1e-6)  # partners are a permutation


def test_mixups_weight_follows_the_beta_distribution():
  inputs = {"features": jnp.arange(2, dtype=jnp.float32)[:, None], "label": jnp.arange(2, dtype=jnp.int32)}
  weights = jax.vmap(lambda key: transforms.mixup(0.5, 2)(inputs, key)["label_probabilities"].max())(
    jax.random.split(KEY, 4000)
  )
  # max(w, 1 - w), or 1 where each example is its own partner: E = 1/2 · 1 + 1/2 · (1/2 + 1/π) for Beta(½, ½).
  assert abs(weights.mean() - (0.5 + 0.5 * (0.5 + 1 / np.pi))) < 0.01


def test_label_smoothing_keeps_a_distribution(batch):
  smooth = transforms.smooth_labels(0.1, 5)(batch, KEY)["label_probabilities"]
  np.testing.assert_allclose(smooth.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(np.sort(smooth, 1)[:, -1], 0.92, atol=1e-6)
  assert (smooth.argmax(1) == batch["label"]).all()


def test_a_chain_gives_every_transform_a_key_of_its_own(batch):
  noise = lambda batch, key: {**batch, "draws": (*batch.get("draws", ()), float(jax.random.uniform(key)))}  # noqa: E731
  draws = transforms.chain([noise, noise, noise])(batch, KEY)["draws"]
  assert len(set(draws)) == 3


def test_the_same_key_gives_the_same_bits_under_jit(batch):
  chained = transforms.chain([transforms.pad_and_crop(2), transforms.flip(), transforms.normalise([9.0], [3.0])])
  eager, compiled = chained(batch, KEY)["image"], jax.jit(chained)(batch, KEY)["image"]
  np.testing.assert_array_equal(eager, compiled)
