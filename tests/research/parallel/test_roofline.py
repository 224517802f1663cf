"""Peak figures and what is made of them."""

import dataclasses

import jax
import pytest

from research.errors import UserError
from research.parallel import chips, roofline
from research.parallel.roofline import Work

V5E = chips.chip("v5e")


@pytest.mark.parametrize(
  ("work", "bound", "seconds"),
  [
    (Work(197e12, 1e9, 1e9), "compute", 1.0),
    (Work(1e12, 819e9, 1e9), "memory", 1.0),
    (Work(1e12, 1e9, 400e9), "network", 2.0),
  ],
)
def test_the_slowest_part_is_the_bound(work, bound, seconds):
  found = roofline.estimate(work, V5E, "bfloat16")
  assert (found.bound, found.seconds) == (bound, pytest.approx(seconds))


def test_parts_of_a_cpu_do_one_thing_after_the_other():
  """Mutation: with the slowest part alone it takes 4 s."""
  chip = dataclasses.replace(V5E, flops=10.0, bandwidth=5.0, network=2.0, shared=True, meeting=0.5)
  found = roofline.estimate(Work(40.0, 10.0, 2.0, 3), chip, "bfloat16")
  assert found.seconds == pytest.approx(40 / 10 + 10 / 5 + 2 / 2 + 3 * 0.5)
  assert (found.bound, found.network) == ("compute", pytest.approx(2.5))


def test_float32_is_what_jax_makes_of_it():
  h100 = chips.chip("h100")
  slow, fast = (roofline.estimate(Work(1e15, 0.0, 0.0), h100, dtype) for dtype in ("float32", "bfloat16"))
  assert slow.seconds / fast.seconds == pytest.approx(989 / 494)


def test_every_chip_has_its_source_and_a_memory_that_it_reads_in_a_blink():
  """A slip of a factor of a thousand in a table would show here: accelerators read all they hold in 10 to 100 ms."""
  for chip in chips.CHIPS.values():
    assert chip.source
    assert 0.01 < chip.memory / chip.bandwidth < 0.1, chip.name
    assert 100 < chip.flops / chip.bandwidth < 1000, chip.name  # FLOPs for a byte
    assert 0.05 < chip.network / chip.bandwidth < 0.5, chip.name


def test_an_unknown_chip_is_told_the_nearest():
  with pytest.raises(UserError, match=r"no chip 'v5' \(did you mean v5p"):
    chips.chip("v5")


def test_virtual_devices_share_what_the_machine_was_measured_at():
  whole, shared = roofline.measured(1), roofline.measured(8)
  assert shared.memory * 8 == pytest.approx(whole.memory)
  assert 1e9 < whole.flops_f32 < 1e14
  assert whole.meeting == 0 < shared.meeting < 0.1
  assert roofline.here(jax.device_count()).name == "cpu"
