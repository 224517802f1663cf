"""The vision transformer: patches by hand, its definition from parts, what its head sees, stochastic depth."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.transformer import Transformer
from research.models.transformer_config import Config
from research.models.vit import ViT, grid_sinusoids, patches

CONFIG = Config(layers=2, width=8, heads=2, causal=False, initializer="vit")


def images(batch=3, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, 4, 6, 3)), jnp.float32)


def params_of(model, x):
  shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False)))["params"]
  random = np.random.default_rng(1)
  return jax.tree.map(lambda s: jnp.asarray(random.normal(0.1, 0.4, s.shape), s.dtype), shapes)


def test_patches_are_a_strided_convolution():
  x_BHWC, kernel_PD = images(), np.random.default_rng(1).normal(size=(2 * 2 * 3, 5)).astype(np.float32)
  convolved = jax.lax.conv_general_dilated(
    x_BHWC, kernel_PD.reshape(2, 2, 3, 5), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(patches(x_BHWC, 2) @ kernel_PD, convolved.reshape(3, 6, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_it_is_its_parts(pooling, positions):
  model, x_BHWC = ViT(CONFIG, 5, 2, pooling, positions), images()
  params = params_of(model, x_BHWC)
  weights = jax.tree.map(np.asarray, params)
  x_BLD = np.asarray(patches(x_BHWC, 2)) @ weights["embed"]["kernel"] + weights["embed"]["bias"]
  places = weights["positions"][0] if positions == "learned" else np.asarray(grid_sinusoids(2, 3, 8))
  if pooling == "class":
    x_BLD = np.concatenate([weights["class_token"].repeat(3, axis=0), x_BLD], axis=1)
    places = places if positions == "learned" else np.pad(places, ((1, 0), (0, 0)))
  seen_BLD, *_ = Transformer(CONFIG).apply({"params": params["transformer"]}, jnp.asarray(x_BLD + places), train=False)
  pooled_BD = np.asarray(seen_BLD[:, 0] if pooling == "class" else seen_BLD.mean(axis=1))
  expected = pooled_BD @ weights["head"]["kernel"] + weights["head"]["bias"]
  np.testing.assert_allclose(model.apply({"params": params}, x_BHWC, train=False), expected, rtol=1e-4, atol=1e-4)


def test_the_head_begins_at_zero():
  model = ViT(CONFIG, 5, 2)
  variables = jax.jit(lambda: nn.meta.unbox(model.init(jax.random.key(0), images(), train=False)))()
  np.testing.assert_array_equal(model.apply(variables, images(), train=False), np.zeros((3, 5)))


def test_sinusoids_tell_columns_and_rows_apart():
  places = np.asarray(grid_sinusoids(3, 4, 16)).reshape(3, 4, 16)
  omega = 10_000.0 ** -(np.arange(4) / 3)
  np.testing.assert_allclose(places[1, 2, :4], np.sin(2 * omega), rtol=1e-5)
  np.testing.assert_allclose(places[1, 2, 4:8], np.cos(2 * omega), rtol=1e-5)
  np.testing.assert_allclose(places[1, 2, 8:12], np.sin(omega), rtol=1e-5)
  np.testing.assert_array_equal(places[0, :, 8:], places[0, :1, 8:].repeat(4, 0))


def test_stochastic_depth_passes_by_a_share_of_the_last_blocks_branches():
  config = dataclasses.replace(CONFIG, stochastic_depth=0.4)
  model = Transformer(config)
  x_BLD = jnp.broadcast_to(jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 8)), jnp.float32), (2000, 3, 8))
  params = params_of(model, x_BLD[:1])
  made = jax.jit(lambda: model.apply({"params": params}, x_BLD, train=True, rngs={"dropout": jax.random.key(0)})[0])()
  _, counts = np.unique(np.round(np.asarray(made)[:, 0, 0], 3), return_counts=True)
  # The first block keeps both its branches; the second each with probability 0.6.
  shares = np.sort(counts / 2000)
  np.testing.assert_allclose(shares, [0.16, 0.24, 0.24, 0.36], atol=0.04)
  plain = Transformer(CONFIG).apply({"params": params}, x_BLD[:1], train=False)[0]
  np.testing.assert_allclose(model.apply({"params": params}, x_BLD[:1], train=False)[0], plain, rtol=1e-6)


def test_patches_that_do_not_fill_the_image_are_refused():
  with pytest.raises(UserError, match="patches of 3 do not fill images of 28×28; 2 would"):
    ViT(CONFIG, 5, 3).check((28, 28, 1))
  with pytest.raises(UserError, match="a width that 4 divides, not 6"):
    ViT(dataclasses.replace(CONFIG, width=6), 5, 2, positions="sinusoidal").check((4, 4, 1))
