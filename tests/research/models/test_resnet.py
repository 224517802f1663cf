"""ResNets against their published parameter counts, and the identity that each block starts as."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.resnet import Block, Bottleneck, ResNet
from research.models.table import parameter_count


def variables_of(model, side):
  x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (50, 25_557_032)])  # torchvision's tables
def test_imagenet_parameters_are_the_published_number(depth, published):
  variables = variables_of(ResNet(1000, depth, small_images=False), 224)
  assert parameter_count(variables["params"]) == published
  # A running mean and variance for each norm's scale and bias.
  norms = [leaf for path, leaf in jax.tree.leaves_with_path(nn.unbox(variables["params"])) if "norm" in str(path)]
  assert sum(leaf.size for leaf in norms) == sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))


def test_the_small_stem_differs_by_its_kernel_alone():
  small, large = (
    parameter_count(variables_of(ResNet(10, 18, small_images=small), 32)["params"]) for small in (True, False)
  )
  assert large - small == (7 * 7 - 3 * 3) * 3 * 64
  assert small == 11_173_962  # the count known for ResNet-18 on CIFAR-10


def test_group_norm_has_the_same_parameters_and_no_statistics():
  batch, group = (variables_of(ResNet(10, 18, norm=norm), 32) for norm in ("batch", "group"))
  assert parameter_count(batch["params"]) == parameter_count(group["params"])
  assert "batch_stats" not in group


@pytest.mark.parametrize("block", [Block(8, 1, "batch", "float32"), Bottleneck(2, 1, "batch", "float32")])
def test_a_block_starts_as_the_identity_whatever_its_convolutions(block):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 8)), jnp.float32)
  outputs, variables = jax.jit(lambda x: block.init_with_output(jax.random.key(0), x, train=False))(x)
  np.testing.assert_array_equal(outputs, jnp.maximum(x, 0.0))
  assert "projection" not in variables["params"]


@pytest.mark.parametrize("fields", [{"depth": 34}, {"norm": "layer"}])
def test_an_unknown_variant_is_the_users_error(fields):
  with pytest.raises(UserError, match="ResNet"):
    variables_of(ResNet(10, **fields), 32)
