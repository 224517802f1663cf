"""Devices that are not here: what they are, and what is said of those that there are not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from research import aot
from research.errors import UserError

pytestmark = pytest.mark.aot


@pytest.mark.parametrize(("name", "kind"), [("v5e:2x2", "TPU v5 lite"), ("v6e:2x2", "TPU v6 lite")])
def test_a_tpu_topology_has_its_chips(name, kind):
  devices = aot.tpu(name)
  assert len(devices) == 4
  assert {device.device_kind for device in devices} == {kind}


def test_a_product_compiles_for_an_h100():
  (device,) = aot.gpu("h100")
  x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=SingleDeviceSharding(device))
  compiled = jax.jit(lambda x: x @ x, compiler_options=aot.OPTIONS).lower(x).compile()
  assert "gemm" in compiled.as_text()


def test_what_is_not_known_is_said():
  with pytest.raises(UserError, match=r"aot: no GPU 'h10' \(did you mean h100\?\)"):
    aot.gpu("h10")
  with pytest.raises(UserError, match="aot: no devices of v5e:3x17"):
    aot.tpu("v5e:3x17")
