"""The plain CNN's size by hand, and the images that it refuses."""

import jax
import jax.numpy as jnp
import pytest

from research.errors import UserError
from research.models.cnn import CNN
from research.models.table import parameter_count


def params_of(model, shape):
  return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))["params"]


def test_parameters_are_the_hand_count():
  # TensorFlow's tutorial network without its third convolution: 28×28 → 14×14 → 7×7, then 3136 → 128 → 10.
  model = CNN(10, (32, 64), head_widths=(128,))
  expected = (9 * 1 * 32 + 32) + (9 * 32 * 64 + 64) + (7 * 7 * 64 * 128 + 128) + (128 * 10 + 10)
  assert parameter_count(params_of(model, (28, 28, 1))) == expected == 421642


def test_norm_takes_the_convolutions_bias_away():
  model = CNN(10, (8, 16), convs_per_block=2, norm="batch", head_widths=())
  convolutions = 9 * (1 * 8 + 8 * 8 + 8 * 16 + 16 * 16)
  norms = 2 * (8 + 8 + 16 + 16)
  assert parameter_count(params_of(model, (8, 8, 1))) == convolutions + norms + (2 * 2 * 16 * 10 + 10)


def test_separable_convolutions_are_by_channel_and_then_across_channels():
  model = CNN(10, (8, 16), convs_per_block=2, separable=True, norm="batch", head_widths=())
  first, depthwise, pointwise = 9 * 1 * 8, 9 * (8 + 8 + 16), 8 * 8 + 8 * 16 + 16 * 16
  norms = 2 * (8 + 8 + 16 + 16) + 2 * (8 + 8 + 16)
  params = params_of(model, (8, 8, 1))
  assert parameter_count(params) == first + depthwise + pointwise + norms + (2 * 2 * 16 * 10 + 10)
  assert "depthwise_0_0" not in params


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    ({"kernel": 9}, (8, 8, 1), r"kernel of 9 is larger than the image \(8x8\)"),
    ({"kernel": 5, "widths": (4, 4)}, (28, 8, 1), r"kernel of 5 is larger than what 1 poolings leave .* \(14x4\)"),
    ({"kernel": 1, "widths": (4,) * 4}, (8, 8, 1), r"what 3 poolings leave of the image \(1x1\) is too small to pool"),
    ({}, (64,), r"wants images of shape \(height, width, channels\), not \(64,\)"),
  ],
)
def test_an_image_too_small_is_the_users_error(fields, shape, message):
  model = CNN(10, **fields)
  with pytest.raises(UserError, match=message):
    model.check(shape)
  with pytest.raises(UserError, match=message):
    params_of(model, shape)


@pytest.mark.parametrize(("fields", "shape"), [({"kernel": 8, "widths": (4,)}, (8, 8, 1)), ({"kernel": 3}, (7, 9, 3))])
def test_the_smallest_that_fits_is_let_through(fields, shape):
  model = CNN(10, **fields)
  model.check(shape)
  assert jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *shape)), train=False))[
    0
  ].shape == (2, 10)
