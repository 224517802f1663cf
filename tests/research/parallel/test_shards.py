"""Sums over virtual shards: one tree, wherever the shards are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from research.parallel import collectives
from research.parallel.mesh import make_mesh
from research.parallel.shards import Shards, round_twice

V = 8
WHOLE, CUT = PartitionSpec(), PartitionSpec("data")


def over(devices, function, *rows, out=WHOLE):
  """function(*rows) of each device's part, in shards."""

  def part(*rows):
    with collectives.sharded(Shards("data", V, jnp.int32(0))):
      return function(*rows)

  mesh = make_mesh(f"data:{devices}")
  run = jax.shard_map(part, mesh=mesh, in_specs=CUT, out_specs=out, check_vma=False)
  return jax.device_get(jax.jit(run)(*rows))


@pytest.fixture
def rows_BD():
  return np.random.default_rng(0).standard_normal((16, 1000)).astype(np.float32) * np.logspace(-3, 3, 1000, dtype="f4")


def tree(parts):
  """Pairs of neighbours, pairs of pairs."""
  return parts[0] if len(parts) == 1 else tree([a + b for a, b in zip(parts[::2], parts[1::2], strict=True)])


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_sum_is_the_balanced_tree_whatever_the_devices(devices, rows_BD):
  found = over(devices, lambda x: collectives.total_of(lambda x: x[0] * 2, collectives.split(x)), rows_BD)
  expected = tree(list(2 * rows_BD[::2]))
  np.testing.assert_array_equal(found, expected)
  in_turn = 2 * rows_BD[::2].cumsum(axis=0, dtype=np.float32)[-1]
  assert (expected != in_turn).any()  # so an order of its own is seen


@pytest.mark.parametrize("devices", [1, 4])
def test_a_shard_sees_itself_alone(devices, rows_BD):
  key = jax.random.key(3)

  def of_shard(x):
    assert x.shape == (2, 1000)
    assert collectives.axis_name() is None
    drawn = collectives.rows(lambda count: jax.random.uniform(key, (count,)), 2)
    return x, drawn, collectives.own(key), collectives.mean(x.sum())

  def function(x):
    x, drawn, keys, sums = collectives.each(of_shard, collectives.split(x))
    return *collectives.merge((x, drawn)), jax.random.key_data(keys), sums

  x, drawn_B, keys, sums = over(devices, function, rows_BD, out=CUT)
  np.testing.assert_array_equal(x, rows_BD)
  np.testing.assert_array_equal(drawn_B, jax.random.uniform(key, (16,)))
  assert len({tuple(each) for each in keys}) == V
  np.testing.assert_allclose(sums, rows_BD.reshape(V, -1).sum(axis=1), rtol=1e-4)


def test_means_and_weights(rows_BD):
  mask_B = (np.arange(16) < 5).astype(np.float32)

  def part(x, mask):
    weight = mask.sum()
    mean = (x * mask[:, None]).sum(axis=0) / weight  # NaN in a shard of no example
    return mean, weight, mask.mean(), {"count": weight}

  def function(x, mask):
    return collectives.combined(part, collectives.split(x), collectives.split(mask))

  mean_D, share, sums = over(2, function, rows_BD, mask_B)
  np.testing.assert_allclose(mean_D, rows_BD[:5].mean(axis=0), rtol=1e-5, atol=1e-3)
  assert share == 5 / 16
  assert sums == {"count": 5}


def test_psum_has_another_order(monkeypatch, rows_BD):
  """Then sums on 2 devices and on 8 differ, which test_same_bits.py looks for in whole updates."""
  monkeypatch.setattr(Shards, "_between", lambda self, tree: lax.psum(tree, self.axis))
  found = [over(n, lambda x: collectives.total_of(lambda x: x[0], collectives.split(x)), rows_BD) for n in (1, 8)]
  assert (found[0] != found[1]).any()


def test_the_flag_is_set_once():
  environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  round_twice(environment)
  round_twice(environment)
  assert environment["XLA_FLAGS"] == "--xla_force_host_platform_device_count=8 --xla_cpu_max_isa=AVX"
