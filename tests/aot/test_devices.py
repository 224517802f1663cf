"""Devices that are not here: what they are, and what is said of those that there are not."""

import subprocess
import sys

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


def test_a_refusal_is_one_line_whatever_libtpu_has_to_say():
  command = [sys.executable, "-m", "experiments.mlp", "preflight", "--config=iris", "--topology=v5p:3x3x3"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("preflight: there is no topology v5p:3x3x3 (did you mean ")
  assert done.stderr.count("\n") == 1


def test_what_a_gpu_passes_over_is_a_note_of_the_page():
  words = ["--config=stdlib", "--topology=h100:1", "--model.width=32", "--model.layers=1"]
  done = subprocess.run(
    [sys.executable, "-m", "experiments.gpt", "preflight", *words], capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "    passed over        norm does not run as mosaic_gpu: rows of 32 are no multiple of 64\n" in done.stdout
