"""Generators and discriminators: sizes they make and refuse, published parameter counts, and what a class changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models import gan


def unboxed(module, *arguments, key=0):
  return nn.meta.unbox(module.init(jax.random.key(key), *arguments, train=False))


def count(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


PAIRS = [(gan.DCGenerator, gan.DCDiscriminator), (gan.ResNetGenerator, gan.ResNetDiscriminator)]


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("pair", PAIRS)
def test_they_make_and_read_each_size(pair, side):
  generator, discriminator = pair[0]((side, side, 3), 4), pair[1](4)
  z_BZ = jax.ShapeDtypeStruct((2, 5), jnp.float32)
  image = jax.eval_shape(lambda z: generator.init_with_output(jax.random.key(0), z, train=False)[0], z_BZ)
  assert image.shape == (2, side, side, 3)
  assert image.dtype == jnp.float32
  logits = jax.eval_shape(lambda x: discriminator.init_with_output(jax.random.key(0), x, train=False)[0], image)
  assert logits.shape == (2,)


def test_images_lie_between_minus_one_and_one():
  generator = gan.DCGenerator((8, 8, 1), 4)
  z_BZ = 100 * jax.random.normal(jax.random.key(1), (16, 5))
  image_BHWC = generator.apply(unboxed(generator, z_BZ), z_BZ, train=False)
  assert float(jnp.abs(image_BHWC).max()) <= 1.0


@pytest.mark.parametrize("shape", [(30, 30, 1), (28, 32, 1), (7, 7, 1), (4, 4, 1), (1, 1, 3), (2, 2, 1), (36, 36, 1)])
def test_other_sizes_are_refused_with_those_it_makes(shape):
  with pytest.raises(UserError, match=f"images of {shape[0]}x{shape[1]}.*such as 8, 16, 28, 32, 64"):
    gan.halvings(shape)


def test_halvings():
  assert [gan.halvings((side, side, 1)) for side in (8, 16, 28, 32, 40, 48, 64, 96)] == [1, 2, 2, 3, 3, 3, 4, 4]


def test_dcgan_64_is_the_published_network():
  """PyTorch's DCGAN example (nz = 100, ngf = 64, 3 channels) has 3,576,704 weights in its generator: its first layer is
  a 4×4 transposed convolution of one pixel, the same matrix as our dense one."""
  generator = gan.DCGenerator((64, 64, 3), 64)
  shapes = jax.eval_shape(lambda z: generator.init(jax.random.key(0), z, train=False), jnp.zeros((1, 100)))
  assert count(shapes["params"]) == 3_576_704 + 3  # ours has a bias for the image's channels


def test_sngan_32_discriminator_is_the_hand_count():
  """Miyato et al. 2018, table 4: 128 channels, four blocks of which two halve, a head without classes."""
  params = unboxed(gan.ResNetDiscriminator(128), jnp.zeros((1, 32, 32, 3)))["params"]
  first = (9 * 3 * 128 + 128) + (9 * 128 * 128 + 128) + (3 * 128 + 128)
  plain = 2 * (9 * 128 * 128 + 128)
  assert count(params) == first + (plain + 128 * 128 + 128) + 2 * plain + 129


def test_a_class_changes_what_is_made_and_how_it_is_judged():
  generator, discriminator = gan.DCGenerator((8, 8, 1), 4, classes=3), gan.DCDiscriminator(4, classes=3)
  z_BZ, label_B = jnp.ones((2, 5)), jnp.array([0, 2])
  variables = unboxed(generator, z_BZ, label_B)
  tables = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if "scale" in str(path)]
  assert tables
  disturb = lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
  variables["params"] = jax.tree.map(disturb, variables["params"])
  made = generator.apply(variables, z_BZ, label_B, train=False)
  assert not np.allclose(made[0], made[1])
  judge = unboxed(discriminator, made, label_B)
  logits_B = discriminator.apply(judge, jnp.stack([made[0], made[0]]), label_B, train=False)
  assert float(jnp.abs(logits_B[0] - logits_B[1])) > 1e-6


def test_the_projection_is_its_formula():
  head = gan.ProjectionHead(classes=3)
  x_BD, label_B = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32), jnp.array([0, 1, 2, 1])
  variables = nn.meta.unbox(head.init(jax.random.key(0), x_BD, label_B))
  params = variables["params"]
  expected = x_BD @ params["head"]["kernel"][:, 0] + params["head"]["bias"][0]
  expected += (params["row"]["embedding"][label_B] * x_BD).sum(-1)
  np.testing.assert_allclose(head.apply(variables, x_BD, label_B), expected, rtol=1e-5, atol=1e-6)


def test_doubling_repeats_each_pixel():
  x_BHWC = jnp.arange(12.0).reshape(1, 2, 2, 3)
  np.testing.assert_array_equal(gan.double(x_BHWC), np.repeat(np.repeat(x_BHWC, 2, 1), 2, 2))


@pytest.mark.parametrize("classes", [0, 3])
def test_points(classes):
  generator, discriminator = gan.PointGenerator(2, (8,), classes), gan.PointDiscriminator((8,), classes)
  z_BZ, label_B = jnp.ones((4, 5)), jnp.array([0, 1, 2, 0])
  points_BD = generator.apply(unboxed(generator, z_BZ, label_B), z_BZ, label_B, train=True)
  assert points_BD.shape == (4, 2)
  assert np.allclose(points_BD[0], points_BD[1]) == (classes == 0)
  assert discriminator.apply(unboxed(discriminator, points_BD, label_B), points_BD, label_B, train=True).shape == (4,)


def test_bf16_computes_in_bf16_and_gives_float32():
  generator = gan.DCGenerator((8, 8, 1), 4, dtype=jnp.bfloat16)
  z_BZ = jnp.ones((2, 5))
  variables = unboxed(generator, z_BZ)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
  assert generator.apply(variables, z_BZ, train=False).dtype == jnp.float32
  text = jax.jit(lambda v, z: generator.apply(v, z, train=False)).lower(variables, z_BZ).as_text()
  assert "bf16" in text
