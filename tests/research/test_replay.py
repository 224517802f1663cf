"""A call that is made twice has to give the same bits, on every device; what lies is named."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import Job, recovering

from research import loop, replay, steps
from research.recovery import BadNumbers

PLAN = loop.Plan(total_steps=12, eval_every=6, checkpoint_every=6)


def with_a_flipped_bit(x, device, bit=3):
  """The same array, but for one bit of the copy (or the part) that a device holds."""
  parts = []
  for shard in x.addressable_shards:
    data = np.array(shard.data)
    if shard.device.id == device:
      data.reshape(-1).view(np.uint32)[0] ^= np.uint32(1 << bit)
    parts.append(jax.device_put(data, shard.device))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def kernel_of(state):
  return state.params["hidden_0"]["kernel"]


def with_kernel(state, kernel):
  return state.replace(params={**state.params, "hidden_0": {**state.params["hidden_0"], "kernel": kernel}})


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_run_that_is_checked_is_the_same_run(tmp_path, steps_per_call):
  job, calls = Job(steps_per_call=steps_per_call), []
  right = job.call
  job.call = steps.TrainingCall(
    lambda state, inputs, count: calls.append(int(jax.device_get(state.step))) or right(state, inputs, count)
  )
  checked, _, _ = recovering(job, tmp_path / "checked", dataclasses.replace(PLAN, check_replay_every=4))
  assert calls == ([0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 11] if steps_per_call == 1 else [0, 0, 4, 6, 6, 10, 10])
  plain, _, _ = recovering(Job(steps_per_call=steps_per_call), tmp_path / "plain", PLAN)
  chex.assert_trees_all_equal(jax.device_get(checked), jax.device_get(plain))


@pytest.mark.parametrize("mesh", ["data:2", "data:8"])
def test_a_flipped_bit_in_one_copy_is_found_and_its_device_named(tmp_path, mesh):
  """To XLA the copies are one array, of which it looks at any: `differing` alone sees nothing, since both calls start
  from the same copies. Leaving `_odd` out fails it."""
  job = Job(mesh=mesh)
  job.state = with_kernel(job.state, with_a_flipped_bit(kernel_of(job.state), 1))
  who = "cpu:0, cpu:1" if mesh == "data:2" else "cpu:1"  # of two copies nobody knows which is right
  wanted = rf"params/hidden_0/kernel at step 1 is not the same on all devices: not on {who}: stopped; the machine"
  with pytest.raises(BadNumbers, match=wanted):
    recovering(job, tmp_path, dataclasses.replace(PLAN, check_replay_every=1))
  assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]


def test_a_call_that_gives_other_bits_is_found_and_its_device_named(tmp_path):
  """Leaving `differing` out fails it where the state is divided: no other device has that part."""
  job, calls = Job(mesh="data:8"), []
  right = job.call

  def lying(state, inputs, count):
    state, metrics = right(state, inputs, count)
    calls.append(int(jax.device_get(state.step)))
    if calls.count(3) == 2:  # the repetition
      state = with_kernel(state, with_a_flipped_bit(kernel_of(state), 5))
    return state, metrics

  job.call = steps.TrainingCall(lying)
  wanted = "params/hidden_0/kernel at step 3 is another when its update is repeated, on cpu:5: stopped"
  with pytest.raises(BadNumbers, match=wanted):
    recovering(job, tmp_path, dataclasses.replace(PLAN, check_replay_every=3))


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")])
@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "bool"])
def test_each_bit_counts(mesh, spec, dtype):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2, (16, 3)).astype(bool) if dtype == "bool" else rng.normal(0, 50, (16, 3))
  x = jax.device_put(jnp.asarray(x, dtype), NamedSharding(mesh, spec))
  nan = jnp.full((2,), jnp.nan, device=NamedSharding(mesh, PartitionSpec()))
  assert not np.asarray(replay.differing([x, nan], [jnp.copy(x), jnp.copy(nan)])).any()  # NaN is NaN, bit for bit
  sums = np.asarray(replay.checksums([x, nan]))
  assert sums.shape == (8, 2)
  assert len(set(sums[:, 1])) == 1
  assert len(set(sums[:, 0])) == (1 if spec == PartitionSpec() else 8) or dtype == "bool"
  if dtype == "float32":
    for bit in (0, 17, 31):
      other = with_a_flipped_bit(x, 6, bit)
      assert np.argwhere(np.asarray(replay.differing([x, nan], [other, nan]))).tolist() == [[6, 0]]
      assert np.flatnonzero(np.asarray(replay.checksums([other, nan]))[:, 0] != sums[:, 0]).tolist() == [6]
