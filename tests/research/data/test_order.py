"""The order is a permutation per epoch, the same on host and device, and looks random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from research.data import order


@settings(deadline=None, max_examples=15)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**62), epoch=st.integers(0, 2**21), data=st.data())
def test_every_run_of_batches_is_whole_permutations(size, seed, epoch, data):
  batch_size = data.draw(st.integers(1, size))
  first = epoch * size  # a multiple of the batch size is a multiple of the epoch's start
  stream = np.concatenate([order.batch_indices(seed, first + step, batch_size, size) for step in range(2 * size)])
  for start in range(0, len(stream) - size + 1, size):
    np.testing.assert_array_equal(np.sort(stream[start : start + size]), np.arange(size))


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (5, 3), (1437, 64), (50_000, 512), (2**31 - 1, 4096)])
def test_host_and_device_agree_bit_for_bit(size, batch_size):
  on_device = jax.jit(lambda step: order.batch_indices(7, step, batch_size, size))
  for step in [0, 1, size // batch_size, 12_345, 2**31 - 1]:
    expected = order.batch_indices(7, step, batch_size, size)
    actual = on_device(jnp.int32(step))
    assert actual.dtype == expected.dtype == np.int32
    np.testing.assert_array_equal(actual, expected)
    assert expected.min() >= 0
    assert expected.max() < size


@settings(deadline=None, max_examples=6)
@example(step=2**31 - 1, size=2**31 - 1, batch_size=2**31 - 2)
@given(step=st.integers(0, 2**31 - 1), size=st.integers(1, 2**31 - 1), batch_size=st.integers(1, 2**31 - 1))
def test_position_is_exact_far_beyond_32_bits(step, size, batch_size):
  actual = order.epoch_and_offset(jnp.int32(step), batch_size, size)
  epoch, offset = divmod(step * batch_size, size)
  assert (int(actual[0]), int(actual[1])) == (epoch % 2**32, offset)


def test_positions_are_uniform_over_epochs():
  size, epochs = 12, 6000
  order_EN = np.stack([order.batch_indices(3, epoch, size, size) for epoch in range(epochs)])
  counts_NN = np.stack([np.bincount(order_EN[:, place], minlength=size) for place in range(size)])
  chi_squared = ((counts_NN - epochs / size) ** 2 / (epochs / size)).sum()
  freedom = (size - 1) ** 2
  assert abs(chi_squared - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_of_one_epoch_are_not_neighbours_of_the_next():
  size = 4096
  first, second = (order.batch_indices(0, epoch, size, size).astype(np.int64) for epoch in (0, 1))
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.08
  assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.08
  assert (np.abs(np.diff(first)) == 1).mean() < 0.005


def test_seeds_that_differ_only_above_32_bits_differ():
  a, b = order.batch_indices(5, 0, 64, 1000), order.batch_indices(5 + 2**40, 0, 64, 1000)
  assert (a != b).mean() > 0.9


def test_a_batch_larger_than_the_data_is_refused():
  with pytest.raises(ValueError, match="a batch of 11 from 10"):
    order.batch_indices(0, 0, 11, 10)
