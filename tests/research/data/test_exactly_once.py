"""Whoever serves an update, and however many they are, all hosts together read each example once an epoch.

Switched off once: where a host takes the first so many rows of a batch (`Share.rows_R = np.arange(count)`) instead of
those of its own devices, or `order.batch_indices` drops the rest of an epoch that fills no batch, this fails.
"""

import random

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import feeds


class Numbers:
  """A source whose every example is its own number."""

  def gather(self, indices_R):
    return {"number": np.array(indices_R)}


class OfOneHost:
  """A batch's sharding as one of several hosts sees it: the rows that its devices hold, in any order."""

  is_fully_addressable = False

  def __init__(self, places):
    self._places = places

  def addressable_devices_indices_map(self, shape):
    return {number: (slice(*place),) for number, place in enumerate(self._places)}


def layout(rng, batch_size):
  """The shardings of 1 to 4 hosts, each with as many of the devices as chance gives it, but one at least.

  Each part of the batch is on one device, or on two where an axis of the mesh divides no batch.
  """
  count = rng.choice([count for count in range(1, 9) if batch_size % count == 0])
  rows, copies = batch_size // count, rng.choice([1, 1, 2])
  places = copies * [(part * rows, (part + 1) * rows) for part in range(count)]
  rng.shuffle(places)
  hosts = min(rng.randint(1, 4), len(places))
  cuts = sorted(rng.sample(range(1, len(places)), hosts - 1))
  return copies, [OfOneHost(places[a:b]) for a, b in zip([0, *cuts], [*cuts, len(places)], strict=True)]


def update(plan, step, copies, shardings):
  """The examples that the hosts read for one update, by their places in the batch, each once."""
  found = {}
  for sharding in shardings:
    feed = feeds.GrainFeed(plan, Numbers(), sharding)
    rows = feed._rows(step)
    np.testing.assert_array_equal(rows["number"], rows["index"])
    for place, number in zip(feed._share.rows_R.tolist(), rows["number"].tolist(), strict=True):
      assert place not in found or (copies > 1 and found[place] == number)
      found[place] = number
  return [found[place] for place in range(plan.batch_size)]  # a place that nobody reads is a KeyError


@settings(deadline=None, max_examples=40)
@given(
  size=st.integers(1, 60), seed=st.integers(0, 2**32 - 1), first=st.integers(0, 10**6), chance=st.integers(0, 2**32),
  data=st.data(),
)  # fmt: skip
def test_all_hosts_together_read_an_epoch_once(size, seed, first, chance, data):
  """Over three epochs from any one on; hosts and devices are others at each update."""
  batch_size = data.draw(st.integers(1, size))
  plan, rng = feeds.Shuffled(seed, batch_size, size), random.Random(chance)
  begin = first * size  # updates: the beginning of an epoch, whatever the batch
  read = []
  for step in range(begin, begin - (-3 * size // batch_size)):
    read += update(plan, step, *layout(rng, batch_size))
  for epoch in range(3):
    assert sorted(read[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_the_fake_says_what_a_sharding_says(mesh):
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  real = sharding.addressable_devices_indices_map((16,))
  fake = OfOneHost([(2 * part, 2 * part + 2) for part in range(8)]).addressable_devices_indices_map((16,))
  assert list(real.values()) == list(fake.values())
