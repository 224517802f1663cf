"""Devices to compile for from their written form: what is known, and what is refused with the nearest named."""

import jax
import pytest

from research.errors import UserError
from research.parallel import topology
from research.parallel.chips import CHIPS, chip


def test_virtual_cpus_are_the_first_ones():
  target = topology.target("cpu:4")
  assert target.devices == jax.devices()[:4]
  assert target.platform == "cpu"


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("v5f:4x4", "no chip 'v5f' in --topology=v5f:4x4 (did you mean v5p?)"),
    ("v5e", "is no CHIP:SHAPE, such as v5e:4x4"),
    ("v5e:4by4", "is no CHIP:SHAPE, such as v5e:4x4"),
    ("h100:many", "is no GPU:COUNT, such as h100:8"),
    ("h100:9", "hosts have 8 GPUs each, so h100:8 and h100:16 are near"),
    ("v5e:128x128", "there is no topology v5e:128x128 (did you mean v5e:16x16?)"),
    ("cpu:100000", "wants 100,000 virtual devices; 512 at most"),
    ("cpu:0", "is no cpu:COUNT, such as cpu:8"),
    ("cpu:64", "wants 64 devices, and this process has 8 already"),
  ],
)
def test_refusals(name, said):
  with pytest.raises(UserError, match=r"^preflight: ") as error:
    topology.target(name)
  assert said in str(error.value)


@pytest.mark.parametrize("ask", [topology.target, chip])
def test_a_chip_that_there_is_not_is_told_the_others_once(ask):
  with pytest.raises(UserError) as error:
    ask("zzz")
  assert "did you mean" not in str(error.value)
  assert [str(error.value).count(name) for name in ("v4", "v5p", "v6e", "tpu7x", "a100", "h200")] == [1] * 6


def test_each_tpus_figures_are_of_its_own_page():
  assert {name: each.source for name, each in CHIPS.items() if name in topology.SLICES} == {
    name: f"cloud.google.com/tpu/docs/{name}" for name in topology.SLICES
  }


def test_a_mesh_that_leaves_chips_of_a_slice_out_is_refused():
  target = topology.Target("v5e:4x4", [object()] * 16, CHIPS["v5e"], "tpu")
  target.check(16)
  with pytest.raises(UserError, match=r"a mesh of 8 devices does not fill the 16 of v5e:4x4"):
    target.check(8)


def test_a_device_that_is_half_a_chip_has_half_of_its_peaks():
  whole = CHIPS["tpu7x"]
  half = topology._part_of(whole, 0.5)
  assert (half.flops, half.memory, half.network) == (whole.flops / 2, whole.memory / 2, whole.network / 2)
  assert half.name == whole.name
