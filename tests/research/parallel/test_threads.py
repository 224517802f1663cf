"""Threads for several CPU devices. Without them tests/experiments/test_strategies.py stands still, and is aborted."""

import pytest

from research.parallel import threads


@pytest.mark.parametrize(
  ("before", "after"),
  [
    ({}, None),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
    ({"XLA_FLAGS": "--x=1 --xla_force_host_platform_device_count=8 --y"}, "32"),
    ({"JAX_NUM_CPU_DEVICES": "2"}, "8"),
    ({"JAX_NUM_CPU_DEVICES": "2", "NPROC": "3"}, "3"),
  ],
)
def test_there_are_several_for_each_of_several_devices(before, after):
  environment = dict(before)
  threads.make_room(environment)
  assert environment.get("NPROC") == after
