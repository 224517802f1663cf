"""Both feeds give the same batches, bit for bit; evaluation sees every example exactly once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data import feeds
from research.data.splits import open_splits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  return open_splits("sklearn:digits", cache_dir=str(tmp_path_factory.mktemp("cache"))).test


def batches(feed, steps):
  """What a compiled call sees: {name: array} for each step."""
  make = jax.jit(feed.batch)
  found = [jax.device_get(make(feed.inputs(step), jnp.int32(step))) for step in steps]
  feed.close()
  return found


def both(source, mesh, plan):
  return [feeds.make_feeds(source, mesh, [plan], kind=kind, budget_bytes=0)[0] for kind in ("device", "grain")]


def test_feeds_agree_bit_for_bit_from_any_step(digits, mesh):
  on_device, by_grain = both(digits, mesh, feeds.Shuffled(seed=3, batch_size=64, size=digits.size))
  steps = [0, 1, 2, 3, 4, 5, 6, 40, 41, 7]  # across epochs, and jumps as after a resume
  for a, b in zip(batches(on_device, steps), batches(by_grain, steps), strict=True):
    assert a.keys() == b.keys() == {"image", "label", "index", "mask"}
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_holds_the_rows_that_its_index_names(digits, mesh):
  for feed in both(digits, mesh, feeds.Shuffled(seed=0, batch_size=64, size=digits.size)):
    (batch,) = batches(feed, [11])
    expected = digits.gather(batch["index"])
    np.testing.assert_array_equal(batch["image"], expected["image"])
    np.testing.assert_array_equal(batch["label"], expected["label"])


@pytest.mark.parametrize("batch_size", [8, 64, 352, 360])
def test_evaluation_counts_every_example_once(digits, mesh, batch_size):
  for feed in both(digits, mesh, feeds.InOrder(batch_size, digits.size)):
    seen = [batch["index"][batch["mask"] > 0] for batch in batches(feed, range(len(feed.plan)))]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(digits.size))


def test_every_epoch_of_training_batches_is_the_whole_split(digits, mesh):
  (feed, _) = both(digits, mesh, feeds.Shuffled(seed=5, batch_size=40, size=digits.size))
  stream = np.concatenate([batch["index"] for batch in batches(feed, range(3 * digits.size // 40 + 1))])
  for epoch in range(3):
    part = stream[epoch * digits.size : (epoch + 1) * digits.size]
    np.testing.assert_array_equal(np.sort(part), np.arange(digits.size))


def test_auto_keeps_to_the_memory_budget(digits, mesh):
  plan = feeds.InOrder(8, digits.size)
  size = digits.nbytes
  assert size == digits.size * (8 * 8 + 4)
  (fits,) = feeds.make_feeds(digits, mesh, [plan], kind="auto", budget_bytes=size)
  (exceeds,) = feeds.make_feeds(digits, mesh, [plan], kind="auto", budget_bytes=size - 1)
  assert (fits.resident, exceeds.resident) == (True, False)


def test_the_batch_is_divided_over_the_data_axis(digits, mesh):
  _, by_grain = both(digits, mesh, feeds.Shuffled(seed=0, batch_size=64, size=digits.size))
  inputs = by_grain.inputs(0)
  assert {shard.data.shape for shard in inputs["image"].addressable_shards} == {(8, 8, 8, 1)}
  by_grain.close()


class _Elsewhere:
  """A batch's sharding as one of several processes sees it: rows on some of the devices, in any order."""

  is_fully_addressable = False

  def __init__(self, places):
    self.places = places

  def addressable_devices_indices_map(self, shape):
    devices = jax.devices()[: len(self.places)]
    return {device: (slice(*place),) for device, place in zip(devices, self.places, strict=True)}


@pytest.mark.parametrize(
  ("places", "rows"),
  [
    ([(None, 4), (4, 8)], [0, 1, 2, 3, 4, 5, 6, 7]),
    ([(12, None), (4, 8)], [4, 5, 6, 7, 12, 13, 14, 15]),  # in the mesh's order, whatever the process' number
    ([(8, 12), (8, 12)], [8, 9, 10, 11]),  # two devices of an axis that divides no batch
  ],
)
def test_a_process_reads_the_rows_of_its_devices(monkeypatch, places, rows):
  share = feeds.Share(_Elsewhere(places), 16)
  np.testing.assert_array_equal(share.rows_R, rows)
  given = []

  def from_parts(shape, sharding, part):
    given.extend([shape, [part((slice(*place),)) for place in sharding.places]])

  monkeypatch.setattr(feeds.arrays, "from_parts", from_parts)
  share.to_devices(np.stack([share.rows_R, -share.rows_R], axis=1))
  shape, parts = given
  assert shape == (16, 2)
  for (start, stop), part in zip(places, parts, strict=True):
    np.testing.assert_array_equal(part[:, 0], np.arange(16)[start:stop])
    np.testing.assert_array_equal(part[:, 1], -np.arange(16)[start:stop])
