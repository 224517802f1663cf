"""The fast CNN's size by hand and the shapes that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.fast_cnn import FastCNN, space_to_depth
from research.models.table import parameter_count


def params_of(model, shape):
  return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))["params"]


def test_the_defaults_are_pages_resnet_9():
  convolutions = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
  expected = sum(9 * i * o + 2 * o for i, o in convolutions) + 512 * 10
  assert parameter_count(params_of(FastCNN(10), (32, 32, 3))) == expected == 6_573_120


def test_space_to_depth_moves_each_square_into_channels():
  x_BHWC = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  folded = np.asarray(space_to_depth(x_BHWC))
  assert folded.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(folded[1, 1, 2], np.asarray(x_BHWC)[1, 2:4, 4:6].ravel())


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    ({"widths": (8, 8), "residual_convs": (1, 1)}, (32, 32, 3), "a stem and 1 stages, but residual_convs names 2"),
    ({}, (4, 32, 3), "image of 4x32 cannot be halved 3 times"),
    ({"space_to_depth": True}, (33, 32, 3), "image of even sides, not 33x32"),
    ({}, (3072,), r"not \(3072,\)"),
  ],
)
def test_what_does_not_fit_is_the_users_error(fields, shape, message):
  with pytest.raises(UserError, match=message):
    FastCNN(10, **fields).check(shape)
  with pytest.raises(UserError, match=message):
    params_of(FastCNN(10, **fields), shape)
